"""Under an answer: branch off a new chat there, ask its question differently, or show another version of it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from app.chat.focus import Sight
from app.errors import NotFoundError
from app.memory.config import GenerationConfig
from app.records import Message
from app.ui import asking, format
from app.ui.asking import View

if TYPE_CHECKING:
    from app.chat import DocumentChat


def turn_of(messages: Sequence[Message], answer: str) -> int:
    """The turn, counted from 1, that ends in the message of this id; 0 when there is none."""
    turns = 0
    for message in messages:
        turns += message.role == "user"
        if str(message.id) == answer:
            return turns
    return 0


def fork(chat: "DocumentChat", chat_id: str | None, answer: str) -> str | None:
    """Fork the shown chat after an answer; returns the chat to show.

    Raises:
        LecternError: the chat or the answer is not there any more, or nothing can be written.
    """
    if chat_id is None:
        return None
    turn = turn_of(chat.saved.messages(chat_id), answer)
    if not turn:
        raise NotFoundError("This answer is not here any more; nothing was forked.")
    return chat.saved.fork(chat_id, turn)


def version(chat: "DocumentChat", chat_id: str | None, turn: str) -> View:
    """The chat with another version of one of its turns; `turn` is the id that its button names."""
    try:
        if chat_id and turn.isdecimal():
            chat.saved.show_version(chat_id, int(turn))
        return asking.show(chat, chat_id)
    except Exception as error:
        return replace(asking.show(chat, chat_id), status=format.failure(error))


def edit(
    chat: "DocumentChat",
    chat_id: str | None,
    answer: str,
    question: str,
    generation: GenerationConfig = GenerationConfig(),
    sight: Sight = Sight(),
    so_far: Sequence[str] = (),
) -> Iterator[View]:
    """Ask another question in the place of the one that an answer answers, and show it as it comes."""
    kept = asking.show(chat, chat_id)
    turn = turn_of(chat.saved.messages(chat_id), answer) if chat_id else 0
    if not (chat_id and turn and question.strip()):
        yield View(kept.messages, chat_id, format.notice("There is no such question to ask again."))
        return
    questions = [place for place, message in enumerate(kept.messages) if message.get("role") == "user"]
    before = kept.messages[: questions[turn - 1]]
    start = View((*before, {"role": "user", "text": question}), chat_id, asking.thinking(chat), running=True)
    stops = chat.jobs.stops
    yield start
    events = chat.edit(
        chat_id, turn, question, generation=generation, focus=sight.focus, mute=sight.mute, so_far=so_far
    )
    yield from asking.follow(chat, events, start, kept, question, stops)
