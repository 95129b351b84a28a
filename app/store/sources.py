"""Files that documents were made of, kept where more than their text is needed: PDFs to show, texts to decode anew."""

import logging
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from app.errors import StoreError
from app.store.room import Room

log = logging.getLogger(__name__)
FOLDER = "sources"
MOST_BYTES = 512 << 20  # a larger file is not kept
_ENDING = re.compile(r"\.\w{1,8}", re.ASCII)


class Sources:
    """The part of the store that keeps files, in a folder of their own, by the document's id."""

    home: Path
    room: Room

    def keep_source(self, document: str, path: Path, name: str) -> None:
        """Keep a copy of the file that a document was made of; nothing is kept of one that the disk has no room for.

        Args:
            name: of the file, whose ending is kept too.
        """
        ending = Path(name).suffix.lower()
        kept = self._folder / f"{document}{ending if _ENDING.fullmatch(ending) else '.txt'}"
        new = kept.with_suffix(".new")
        try:
            size_bytes = path.stat().st_size
            if size_bytes > MOST_BYTES:
                return
            self.room.require(size_bytes)
            self._folder.mkdir(exist_ok=True)
            shutil.copyfile(path, new)
            self.forget_source(document)
            os.replace(new, kept)
        except (OSError, StoreError) as error:
            new.unlink(missing_ok=True)
            log.warning("%s is not kept: %s", name, error)

    def source(self, document: str) -> Path | None:
        """The file of a document, None when it is not kept."""
        return next((path for path in self._folder.glob(f"{document}.*") if path.suffix != ".new"), None)

    def sources(self) -> dict[str, Path]:
        """All files that are kept, by document."""
        return {path.stem: path for path in self._folder.glob("*.*") if path.suffix != ".new"}

    def forget_source(self, document: str) -> None:
        """Delete the file of a document, if it is kept."""
        while kept := self.source(document):
            with suppress(OSError):
                kept.unlink()
                continue
            break

    @property
    def _folder(self) -> Path:
        return self.home / FOLDER
