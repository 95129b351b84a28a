"""Saved chats: begun, named, found, forked and deleted, with what they are about and how they are answered."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from app.chat.jobs import Jobs
from app.chat.library import Library
from app.chat.loaded_model import LoadedModel
from app.errors import InputError
from app.memory.config import GenerationConfig
from app.records import AnswerSettings, ChatHit, ChatInfo, Message, Versions, turns_of
from app.wellformed import one_line

if TYPE_CHECKING:
    from app.store.store import Store


TITLE_CHARS = 60


class SavedChats:
    """The chats of one data folder. Turns are counted from 1; after turn 0 a chat holds its documents, just read."""

    def __init__(self, store: "Store", model: LoadedModel, jobs: Jobs, library: Library) -> None:
        self._store, self._model, self._jobs, self._library = store, model, jobs, library

    def new_chat(self, documents: Sequence[str] = (), policy: str = "", system: str = "") -> str:
        """Start a chat over documents, in this order, under a policy; "" stands for the one at the start.

        Args:
            system: system text in place of the model's own.
        """
        ids = [self._library.document(d).id for d in documents]
        return self._store.create_chat(
            ids, self._model.settings.model_name, policy=policy or self._model.policy_of(), system=system
        )

    def forget_empty(self, chat: str) -> None:
        """Delete a chat in which nothing was said."""
        if not self._store.messages(chat):
            self._store.delete_chat(chat)

    def chats(self, query: str | None = None) -> list[ChatInfo]:
        return self._store.chats(query)

    def search_chats(self, query: str, limit: int = 30) -> list[ChatHit]:
        """Chats that hold every word of the query, the last used first, with the words marked."""
        return self._store.search_chats(query, limit)

    def chat(self, id: str) -> ChatInfo:
        return self._store.chat(id)

    def messages(self, chat: str) -> list[Message]:
        return self._store.messages(self.chat(chat).id)

    def rename_chat(self, chat: str, title: str) -> None:
        """Raises InputError when the title is empty."""
        title = one_line(title)
        if not title:
            raise InputError("the title is empty; give the chat a name")
        self._store.rename_chat(self.chat(chat).id, title)

    def delete_chat(self, chat: str) -> None:
        with self._jobs.claim("deleting a chat"):
            self._model.forget()
            self._store.delete_chat(self.chat(chat).id)

    def set_chat_documents(self, chat: str, ids: Sequence[str]) -> None:
        """Attach these documents and no others; none of them is read again for it."""
        self._store.set_chat_documents(self.chat(chat).id, [self._library.document(d).id for d in ids])

    def answer_settings(self, chat: str | None = None) -> AnswerSettings:
        """How a chat is answered; None: how new chats are."""
        return self._store.answer_settings(self.chat(chat).id if chat else None)

    def set_answer_settings(self, chat: str | None, settings: AnswerSettings) -> None:
        """Keep how a chat is answered, from its next question on; None: how new chats are.

        With another system text its turns are run again.

        Raises:
            ConfigError: a value that cannot be.
            InUseError: something is being answered.
        """
        GenerationConfig(settings.temperature, settings.top_p, settings.max_new_tokens)
        if chat is None or self.answer_settings(chat).system == settings.system:
            return self._store.set_answer_settings(self.chat(chat).id if chat else None, settings)
        with self._jobs.claim("changing a chat"):
            self._model.forget()
            self._store.set_answer_settings(self.chat(chat).id, settings)

    def set_chat_policy(self, chat: str, policy: str) -> None:
        """Read and answer a chat under another policy from its next question on.

        Its documents are read then if they were not read under that policy, and its turns are run again; the answers
        stay as they were given, and so do the documents' memories under other policies.

        Raises:
            ConfigError: the policy is not known, or cannot be had with this model and these settings.
        """
        id = self.chat(chat).id
        self._model.engine_under(policy)
        self._store.set_chat_policy(id, policy)

    def versions(self, chat: str) -> dict[int, Versions]:
        """The answers that have other versions, by the id of the answer that is shown."""
        return self._store.versions(self.chat(chat).id)

    def show_version(self, chat: str, turn: int) -> None:
        """Show another version of a turn; `turn` is one of `Versions.turns`.

        The next question in it runs those of its turns again that the chat's memory lacks.

        Raises:
            NotFoundError: there is no such turn.
            InUseError: something is being answered.
        """
        with self._jobs.claim("changing the version"):
            self._model.forget()
            self._store.show_version(self.chat(chat).id, turn)

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
            turn = len(turns_of(self._store.messages(id)))
        if turn < 0:
            raise InputError(f"turn {turn}: turns are counted from 1; 0 stands for the documents, just read")
        return self._store.fork(id, turn)


def title_of(question: str) -> str:
    """The title of a chat that begins with this question."""
    line = " ".join(question.split())
    return line if len(line) <= TITLE_CHARS else line[: TITLE_CHARS - 1].rstrip() + "…"
