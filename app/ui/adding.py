"""Files that come to the page, in whichever tab: opened one by one, and read behind."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.api.reading import BackgroundReading
from app.errors import CancelledError, LecternError
from app.records import DocumentInfo
from app.ui import format
from app.ui.asking import closed_after
from app.ui.uploads import Uploads

if TYPE_CHECKING:
    from app.chat import DocumentChat


@dataclass(frozen=True)
class Adding:
    """Where the adding of files stands.

    Attributes:
        status: HTML: the file being opened, then one message per file that failed.
        added: ids of the documents so far, those that were there already too.
        changed: the library holds something else than before.
    """

    status: str
    added: tuple[str, ...] = ()
    changed: bool = False


def add(
    chat: "DocumentChat",
    reading: BackgroundReading,
    files: Sequence[str],
    uploads: Uploads,
    password: str = "",
    by_ocr: bool = False,
) -> Iterator[Adding]:
    """Add files one by one; each is read behind as soon as it is there. A bad one leaves its message and the others go
    on. Uploads are deleted afterwards.

    Args:
        by_ocr: read scanned pages so.
    """
    notices: list[str] = []
    added: list[str] = []
    for number, file in enumerate(files, 1):
        path = Path(file)
        which = f"{number} of {len(files)}: " if len(files) > 1 else ""
        yield Adding(format.waiting(f"Opening {which}{path.name}") + "".join(notices), tuple(added), changed=True)
        try:
            with uploads.taken(file) as own:
                document = yield from _add_one(chat, own, password, which, "".join(notices), by_ocr)
            added.append(document.id)
            if document.state == "read":
                notices.append(format.notice(f"{document.title} is in the library already; nothing had to be read."))
            else:
                reading.add(document.id)
        except CancelledError:
            left = len(files) - number + 1
            notices.append(format.notice(f"Stopped; {format.plural(left, 'file')} not added."))
            for other in files[number:]:
                with suppress(LecternError), uploads.taken(other):
                    pass
            break
        except Exception as error:
            notices.append(format.failure(error))
    yield Adding("".join(notices), tuple(dict.fromkeys(added)), changed=True)


def _add_one(
    chat: "DocumentChat", path: Path, password: str, which: str, notices: str, by_ocr: bool
) -> Generator[Adding, None, DocumentInfo]:
    """Add one file, telling now and then how far it is."""
    with closed_after(chat.library.adding(path, password=password or None, name=path.name, ocr=by_ocr)) as steps:
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                return end.value
            yield Adding(format.waiting(f"{which}{path.name}: {step.words}") + notices)
