"""The library: documents come and go, their memories are kept, pinned or evicted, and their pages are shown."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.chat.coverage import Coverage, coverage, read_parts
from app.chat.focus import choices
from app.chat.jobs import Jobs
from app.chat.loaded_model import LoadedModel, sessions_over
from app.errors import InputError
from app.ingest.page_image import Pages
from app.ingest.stream import Step, Watch, in_steps, returned
from app.records import DocumentInfo, Evidence, Part

if TYPE_CHECKING:
    from app.ingest.page_image import Located
    from app.store.store import Store


@dataclass(frozen=True)
class DiskSpace:
    """What memories take on the disk.

    Attributes:
        documents: bytes of each document's memories by id, under all models and recipes.
        expected: bytes that those which are not read yet will take, by id; only where the number of tokens is known.
        pinned: ids of documents whose memory stays.
        used_bytes, budget_bytes, free_bytes: of all memories; of the setting; of the disk.
    """

    documents: dict[str, int]
    expected: dict[str, int]
    pinned: set[str]
    used_bytes: int
    budget_bytes: int
    free_bytes: int


class Library:
    """The documents of one data folder."""

    def __init__(self, store: "Store", model: LoadedModel, jobs: Jobs, room: Callable[[], None] = lambda: None) -> None:
        """Args: room: refuses another document where there may be no more."""
        self._store, self._model, self._jobs, self._room = store, model, jobs, room
        self._adding_stops = 0

    def add_document(
        self,
        path: Path,
        *,
        password: str | None = None,
        name: str | None = None,
        encoding: str | None = None,
        ocr: bool = False,
    ) -> DocumentInfo:
        """Put a file, folder or archive into the library; the same bytes again change nothing.

        Args:
            encoding: of a text that is not UTF-8, when it was found wrongly; read under another it is another document.

        Raises:
            InputError, PasswordError: why it cannot be read.
            LimitError: there is no room for it.
            CancelledError: `stop_adding` was called.
        """
        return returned(self.adding(path, password=password, name=name, encoding=encoding, ocr=ocr))

    def adding(
        self,
        path: Path,
        *,
        password: str | None = None,
        name: str | None = None,
        encoding: str | None = None,
        ocr: bool = False,
    ) -> Generator[Step, None, DocumentInfo]:
        """As `add_document`, telling how far it is; closing the generator ends it as `stop_adding` does.

        Args:
            ocr: read scanned pages by OCR; a document of the same bytes that was read without it is replaced. Pictures
                are read so in any case, as the PDFs that are made of them.

        A document whose tokens could not be counted any more stays in the library; reading it counts them.
        """
        from app.ingest.load import load_document
        from app.ingest.picture import as_pdf

        file, called = Path(path), name or Path(path).name

        self._room()

        def work(watch: Watch) -> DocumentInfo:
            options = {"password": password, "encoding": encoding, "cancelled": watch.cancelled}
            with as_pdf(file, called, watch.cancelled) as made:
                options["name"] = f"{called}.pdf" if made else name
                options["ocr_folder"] = self._model.settings.home / "ocr" if ocr or made else None
                document = load_document(made or file, progress=watch.progress("opening it"), **options)
                watch.step = Step("putting it into the library")
                id = self._store.add_document(document, watch.cancelled, replace=ocr)
                if document.keep_file:
                    self._store.keep_source(id, made or file, options["name"] or called)
            del document  # its text is in the library now, and memory is needed for the tokens
            if engine := self._model.loaded:  # its length in tokens, and so what reading will take, is known at once
                reader = sessions_over(self._store, engine).reader
                reader.texts(id, progress=watch.progress("counting its tokens"), cancelled=watch.cancelled)
            return self.document(id)

        stops = self._adding_stops
        return in_steps(work, lambda: self._adding_stops != stops)

    def stop_adding(self) -> None:
        """End the adding of files within a second."""
        self._adding_stops += 1

    def documents(self, policy: str = "") -> list[DocumentInfo]:
        """The library, newest first, as it was read under a policy; "" stands for the one at the start."""
        return self._store.documents(self._model.recipe_under(policy))

    def document(self, id: str) -> DocumentInfo:
        """A document by id, the beginning of one, or title."""
        return self._store.document(id, self._model.recipe)

    def delete_document(self, id: str) -> None:
        """Forget a document and its memory; answers given from it stay."""
        with self._jobs.claim("deleting a document"):
            id = self.document(id).id
            self._model.forget(id)
            self._store.delete_document(id)
        self._store.catch_up()

    def suggestions(self, documents: Sequence[str]) -> list[str]:
        """Questions to begin with about the first of these documents: none before it was read, nor untried ones."""
        return (self._store.suggestions(documents[0], self._model.recipe) or []) if documents else []

    def places(self, documents: Sequence[str]) -> list[tuple[str, str]]:
        """(what a list shows, what `ask` takes) of documents and their chapters, or folders and files."""
        found = [self.document(id) for id in documents]
        return [choice for info in found for choice in choices(info, self._store.parts(info.id))]

    def coverage(
        self, document: str, evidence: Sequence[Evidence] = (), stats: Mapping[str, Any] | None = None
    ) -> Coverage:
        """The strip of a document: what has been read, and what an answer looked at; never waits for the model.

        Args:
            evidence, stats: of the answer.
        """
        info = self.document(document)
        texts = self._store.memories(info.id, self._model.recipe) or []
        done = [len(t.token_ids) if info.state == "read" else self._stored(info.id, n) for n, t in enumerate(texts)]
        whole = (stats or {}).get("whole")
        worked = self._store.part_notes(info.id, whole, "") if whole else ()
        parts = self._store.parts(info.id)
        return coverage(info, parts, read_parts(texts, done), evidence=evidence, stats=stats, worked=worked)

    def _stored(self, document: str, memory: int) -> int:
        """Tokens of a memory that are stored, while it is read."""
        keys = self._store.manifest(document, self._model.recipe, memory)
        return len(keys) * (self._store.blocks.tokens_in(keys[0]) or 0) if keys else 0

    def pin(self, document: str, pinned: bool = True) -> DocumentInfo:
        """Keep the memory of a document whatever the disk budget says, or no longer."""
        info = self.document(document)
        self._store.pin(info.id, pinned)
        return info

    def evict(self, document: str) -> DocumentInfo:
        """Delete the memory of a document; its text stays, and it is read again when it is asked about."""
        with self._jobs.claim("deleting a memory"):
            info = self.document(document)
            self._model.forget(info.id)
            self._store.evict(info.id)
        self._store.catch_up()
        return info

    def choosable(self) -> set[str]:
        """Ids of the documents whose encoding can be chosen with `decode_again`."""
        return {id for id, path in self._store.sources().items() if path.suffix != ".pdf"}

    def decode_again(self, document: str, encoding: str | None) -> Generator[Step, None, DocumentInfo]:
        """Read a text that is not UTF-8 again under another encoding, None to find it; returns the new document.

        The old one is deleted, unless a chat is about it.

        Raises:
            InputError: its file is not kept.
            ConfigError: there is no such encoding.
        """
        info = self.document(document)
        source = self._store.source(info.id)
        if source is None or source.suffix == ".pdf":
            raise InputError(f"{info.title}: its file is not kept, add it again with another encoding")
        name = info.title if info.title.lower().endswith(source.suffix) else info.title + source.suffix
        new = yield from self.adding(source, name=name, encoding=encoding)
        if new.id != info.id and not any(info.id in chat.documents for chat in self._store.chats()):
            self.delete_document(info.id)
        return new

    def disk_space(self) -> DiskSpace:
        """Sizes of what is read and of what would be; never waits for the model."""
        stats, sizes = self._store.stats(), self._store.sizes()
        rate = self.token_bytes()
        expected = {
            info.id: round(info.tokens * rate)
            for info in self.documents()
            if rate and info.tokens and info.state != "read"
        }
        return DiskSpace(
            documents=sizes,
            expected=expected,
            pinned=self._store.pinned(),
            used_bytes=stats["kv_bytes"],
            budget_bytes=stats["disk_budget_bytes"],
            free_bytes=stats["free_disk_bytes"],
        )

    def token_bytes(self) -> float:
        """Bytes on disk per token read: as measured on what is stored, else what K and V take; 0 before the model."""
        kept = self._store.kept(self._model.recipe)
        if tokens := sum(item.tokens for item in kept):
            return sum(item.size_bytes for item in kept) / tokens
        return float(self._model.loaded.shape.token_bytes) if self._model.loaded else 0.0


class DocumentPages:
    """Pages of documents whose file is kept, as pictures."""

    def __init__(self, store: "Store") -> None:
        self._store, self._pages = store, Pages()

    def close(self) -> None:
        self._pages.close()

    def page_image(self, document: str, part: int) -> bytes | None:
        """The page that a part of a PDF was read from, as JPEG; None where its file is not kept.

        Raises:
            InputError: it cannot be drawn.
        """
        source = self._pdf(document)
        return self._pages.draw(source, part - 1) if source else None

    def locate(self, document: str, part: Part, start: int, end: int) -> "Located | None":
        """Where characters [start, end) of a part stand on its page; None where there is no page to show.

        Raises:
            InputError: the page cannot be looked at.
        """
        source = self._pdf(document)
        if source is None:
            return None
        found = self._pages.locate(source, part.index - 1, part.text, start, 0 if part.boxes else end)
        read = tuple(tuple(box[2:6]) for box in part.boxes_of(start, end)) if part.boxes else found.boxes
        return replace(found, boxes=read)

    def _pdf(self, document: str) -> Path | None:
        source = self._store.source(self._store.document(document, "").id)
        return source if source and source.suffix == ".pdf" else None
