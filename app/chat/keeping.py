"""What is kept and for how long: sizes, pins, eviction, forks and edits of chats, and chats as files."""

from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from app import markdown
from app.chat.focus import Sight
from app.errors import InputError, NotFoundError
from app.ingest.stream import Step
from app.memory.config import GenerationConfig
from app.records import ChatInfo, Delta, DocumentInfo, Done, Message, Part, Reading, Versions
from app.tasks.scoring import ending, only_refuses
from app.wellformed import whole

if TYPE_CHECKING:
    from app.chat.sessions import Job, Sessions
    from app.ingest.page_image import Located, Pages
    from app.runtime.engine import Engine
    from app.store.store import Store
    from app.store.transfer import Fit


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


class Keeping:
    """Part of DocumentChat."""

    store: "Store"
    _engine: "Engine | None"
    _ready: "Sessions | None"
    _pages: "Pages"

    if TYPE_CHECKING:

        def chat(self, id: str) -> ChatInfo: ...
        def document(self, id: str) -> DocumentInfo: ...
        def documents(self) -> list[DocumentInfo]: ...
        def adding(
            self, path: Path, *, name: str | None = None, encoding: str | None = None
        ) -> Generator[Step, None, DocumentInfo]: ...
        def delete_document(self, id: str) -> None: ...
        def messages(self, chat: str) -> list[Message]: ...
        def claim(self, what: str, since: int | None = None) -> AbstractContextManager["Job"]: ...
        def engine(self) -> "Engine": ...
        def _sessions_under(self, policy: str) -> "Sessions": ...
        def _sessions_of(self, chat: str) -> "Sessions": ...
        def policy_of(self, chat: str | None = None) -> str: ...
        def _recipe_under(self, policy: str) -> str: ...

        @property
        def _recipe(self) -> str: ...

    def disk_space(self) -> DiskSpace:
        """Sizes of what is read and of what would be; never waits for the model."""
        stats, sizes = self.store.stats(), self.store.sizes()
        rate = self.token_bytes()
        expected = {
            info.id: round(info.tokens * rate)
            for info in self.documents()
            if rate and info.tokens and info.state != "read"
        }
        return DiskSpace(
            documents=sizes,
            expected=expected,
            pinned=self.store.pinned(),
            used_bytes=stats["kv_bytes"],
            budget_bytes=stats["disk_budget_bytes"],
            free_bytes=stats["free_disk_bytes"],
        )

    def token_bytes(self) -> float:
        """Bytes on disk per token read: as measured on what is stored, else what K and V take; 0 before the model."""
        kept = self.store.kept(self._recipe)
        if tokens := sum(item.tokens for item in kept):
            return sum(item.size_bytes for item in kept) / tokens
        return float(self._engine.shape.token_bytes) if self._engine else 0.0

    def pin(self, document: str, pinned: bool = True) -> DocumentInfo:
        """Keep the memory of a document whatever the disk budget says, or no longer."""
        info = self.document(document)
        self.store.pin(info.id, pinned)
        return info

    def evict(self, document: str) -> DocumentInfo:
        """Delete the memory of a document; its text stays, and it is read again when it is asked about."""
        with self.claim("deleting a memory"):
            info = self.document(document)
            if self._ready:
                self._ready.session = None
                self._ready.reader.forget(info.id)
            self.store.evict(info.id)
        self.store.catch_up()
        return info

    # --- versions

    def versions(self, chat: str) -> dict[int, Versions]:
        """The answers that have other versions, by the id of the answer that is shown."""
        return self.store.versions(self.chat(chat).id)

    def show_version(self, chat: str, turn: int) -> None:
        """Show another version of a turn; `turn` is one of `Versions.turns`.

        The next question in it runs those of its turns again that the chat's memory lacks.

        Raises:
            NotFoundError: there is no such turn.
            InUseError: something is being answered.
        """
        with self.claim("changing the version"):
            if self._ready:
                self._ready.session = None
            self.store.show_version(self.chat(chat).id, turn)

    # --- branches: turns are counted from 1; after turn 0 a chat holds its documents, just read

    def fork(self, chat: str, turn: int | None = None) -> str:
        """A new chat that begins as this one stood after a turn; all its memory is shared, nothing is read.

        Args:
            turn: the last turn to take over; None takes all.

        Returns:
            the new chat's id.

        Raises:
            NotFoundError: there is no such turn.
        """
        id = self.chat(chat).id
        if turn is None:
            turn = len(questions(self.store.messages(id)))
        if turn < 0:
            raise InputError(f"turn {turn}: turns are counted from 1; 0 stands for the documents, just read")
        return self.store.fork(id, turn)

    def _question(self, chat: str, turn: int | None = None) -> tuple[str, int]:
        """A question and the number of turns before it.

        Args:
            turn: which one; None is the last.

        Raises:
            NotFoundError: there is no such turn.
        """
        asked = questions(self.messages(chat))
        number = len(asked) if turn is None else turn
        if not 1 <= number <= len(asked):
            raise NotFoundError(f"chat {chat!r}: has {len(asked)} questions; question {number} is not there")
        return asked[number - 1].content, number - 1

    def edit(
        self,
        chat: str,
        turn: int,
        question: str,
        *,
        generation: GenerationConfig = GenerationConfig(),
        focus: Sequence[str] = (),
        mute: Sequence[str] = (),
        so_far: Collection[str] = (),
    ) -> Iterator[Reading | Delta | Done]:
        """Ask another question in the place of an earlier one. Only the new turn is run; no document is read again.

        The turns from there on stay as another version of the chat (`show_version`).

        Raises:
            NotFoundError: there is no such turn.
        """
        question = whole(question).strip()
        if not question:
            raise InputError("the question is empty; type one")
        since = self.stops
        self.engine()
        with self.claim("answering", since) as job:
            id = self.chat(chat).id
            sessions = self._sessions_of(id)
            _, after = self._question(id, turn)
            session = yield from sessions.open(id, job, so_far)
            sessions.see(session, Sight(tuple(focus), tuple(mute)))
            yield from sessions.answer(session, question, generation, job, after=after)

    # --- files

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
        source = self.store.source(self.document(document).id)
        return source if source and source.suffix == ".pdf" else None

    def choosable(self) -> set[str]:
        """Ids of the documents whose encoding can be chosen with `decode_again`."""
        return {id for id, path in self.store.sources().items() if path.suffix != ".pdf"}

    def decode_again(self, document: str, encoding: str | None) -> Generator[Step, None, DocumentInfo]:
        """Read a text that is not UTF-8 again under another encoding, None to find it; returns the new document.

        The old one is deleted, unless a chat is about it.

        Raises:
            InputError: its file is not kept.
            ConfigError: there is no such encoding.
        """
        info = self.document(document)
        source = self.store.source(info.id)
        if source is None or source.suffix == ".pdf":
            raise InputError(f"{info.title}: its file is not kept, add it again with another encoding")
        name = info.title if info.title.lower().endswith(source.suffix) else info.title + source.suffix
        new = yield from self.adding(source, name=name, encoding=encoding)
        if new.id != info.id and not any(info.id in chat.documents for chat in self.store.chats()):
            self.delete_document(info.id)
        return new

    def export_chat(self, chat: str) -> str:
        """The chat as Markdown, passages included."""
        info = self.chat(chat)
        titles = []
        for id in info.documents:
            try:
                titles.append(self.document(id).title)
            except NotFoundError:
                titles.append("a document since deleted")
        about = f"Documents: {', '.join(titles) or 'none'}. Model: {info.model}."
        lines = [f"# {markdown.plain(info.title)}", "", markdown.plain(about), ""]
        for message in self.store.messages(info.id):
            lines += _markdown(message)
        return "\n".join(lines)

    def export_json(self, chat: str) -> str:
        """The chat as JSON, passages and costs included; `import_chat` takes it."""
        from app.store.transfer import to_json

        return to_json(self.store, self.chat(chat).id)

    def export_file(self, chat: str, path: Path) -> dict[str, int]:
        """Write the chat with its documents and their memory as one file; returns what went out, counted."""
        from app.store.transfer import export_chat

        return export_chat(self.store, self.chat(chat).id, path, self._recipe_under(self.policy_of(chat)))

    def import_chat(self, path: Path, *, text_only: bool = False) -> str:
        """Take in a chat that `export_file` or `export_json` wrote; returns its id here.

        Args:
            text_only: leave the memory out; the documents are read again when asked about.

        Raises:
            InputError: not such a file, damaged, or its memory does not fit this model: which part differs.
        """
        from app.store.transfer import from_json, import_chat, is_json

        def fit(policy: str) -> "Fit":
            return self._sessions_under(policy or self.policy_of()).reader.fit()

        with self.claim("importing a chat"):
            if is_json(path):
                return from_json(self.store, path)
            return import_chat(self.store, path, None if text_only else fit)


def _markdown(message: Message) -> list[str]:
    """Lines of a message: what was said, how an answer ended, and its passages."""
    if message.role == "user":
        lines = ["**You**", "", markdown.plain(message.content), ""]
    else:
        known = range(1, len(message.evidence) + 1)
        marks = [(place, f" [{number}]") for place, number in message.stats.get("cited", ()) if number in known]
        lines = ["**Lectern**", "", markdown.source(message.content, marks), ""]
    if ended := ending(message.stats.get("ended", ""), message.stats.get("new_tokens", 0)):
        lines += [f"*{ended}*", ""]
    if message.evidence and only_refuses(message.content):
        lines += ["Looked at, without finding an answer:", ""]
    for number, item in enumerate(message.evidence, start=1):
        quote = " ".join(item.text.split())
        passage = f"[{number}] {item.title}, {item.label} ({item.weight:.0%} of the attention): {quote}"
        lines += [f"> {markdown.plain(passage)}", ""]
    return lines


def questions(messages: list[Message]) -> list[Message]:
    """The questions among a chat's messages, one per turn."""
    return [message for message in messages if message.role == "user"]
