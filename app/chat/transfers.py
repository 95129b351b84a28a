"""Chats as files: written as Markdown, as JSON or with all their memory, and taken in."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from app import markdown
from app.chat.jobs import Jobs
from app.chat.loaded_model import LoadedModel
from app.errors import NotFoundError
from app.records import Message
from app.tasks.scoring import ending, only_refuses

if TYPE_CHECKING:
    from app.store.store import Store
    from app.store.transfer import Fit


class Transfers:
    """Takes chats out of one data folder and into it."""

    def __init__(self, store: "Store", model: LoadedModel, jobs: Jobs, room: Callable[[], None] = lambda: None) -> None:
        """Args: room: refuses another document where there may be no more."""
        self._store, self._model, self._jobs, self._room = store, model, jobs, room

    def export_chat(self, chat: str) -> str:
        """The chat as Markdown, passages included."""
        info = self._store.chat(chat)
        titles = []
        for id in info.documents:
            try:
                titles.append(self._store.document(id, "").title)
            except NotFoundError:
                titles.append("a document since deleted")
        about = f"Documents: {', '.join(titles) or 'none'}. Model: {info.model}."
        lines = [f"# {markdown.plain(info.title)}", "", markdown.plain(about), ""]
        for message in self._store.messages(info.id):
            lines += _markdown(message)
        return "\n".join(lines)

    def export_json(self, chat: str) -> str:
        """The chat as JSON, passages and costs included; `import_chat` takes it."""
        from app.store.transfer import to_json

        return to_json(self._store, self._store.chat(chat).id)

    def export_file(self, chat: str, path: Path) -> dict[str, int]:
        """Write the chat with its documents and their memory as one file; returns what went out, counted."""
        from app.store.transfer import export_chat

        return export_chat(
            self._store, self._store.chat(chat).id, path, self._model.recipe_under(self._model.policy_of(chat))
        )

    def import_chat(self, path: Path, *, text_only: bool = False, own: bool = False) -> str:
        """Take in a chat that `export_file` or `export_json` wrote; returns its id here.

        Args:
            own: another library of the same owner wrote it just now; its documents keep their ids.
            text_only: leave the memory out; the documents are read again when asked about.

        Raises:
            InputError: not such a file, damaged, or its memory does not fit this model: which part differs.
        """
        from app.store.transfer import from_json, import_chat, is_json

        self._room()

        def fit(policy: str) -> "Fit":
            return self._model.sessions_under(policy or self._model.policy_of()).reader.fit()

        with self._jobs.claim("importing a chat"):
            if is_json(path):
                return from_json(self._store, path)
            return import_chat(self._store, path, None if text_only else fit, own=own)


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
