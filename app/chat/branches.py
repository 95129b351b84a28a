"""What a chat allows besides going on: to branch off at any turn, and to ask an earlier question differently."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from app.chat.focus import Sight
from app.errors import InputError, NotFoundError
from app.memory.config import GenerationConfig
from app.records import ChatInfo, Delta, Done, Message, Reading
from app.wellformed import whole

if TYPE_CHECKING:
    from app.chat.sessions import Job, Sessions
    from app.runtime.engine import Engine
    from app.store.store import Store


class Branches:
    """Part of DocumentChat. Turns are counted from 1; after turn 0 a chat holds its documents, just read."""

    store: "Store"

    if TYPE_CHECKING:

        def chat(self, id: str) -> ChatInfo: ...
        def messages(self, chat: str) -> list[Message]: ...
        def claim(self, what: str, since: int | None = None) -> AbstractContextManager["Job"]: ...
        def engine(self) -> "Engine": ...
        def _sessions_of(self, chat: str) -> "Sessions": ...

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

        The turns from there on stay until the new answer is saved in their place; fork first to keep them.

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


def questions(messages: list[Message]) -> list[Message]:
    """The questions among a chat's messages, one per turn."""
    return [message for message in messages if message.role == "user"]
