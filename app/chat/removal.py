"""Removal: how much less likely an answer becomes when a passage it looked at is masked."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

from app.chat.evidence import Attached
from app.chat.sessions import Session, Sessions
from app.errors import CancelledError, InputError
from app.records import Evidence, Removal, turns_of

CONTROLS = 5  # other places that are masked for comparison


def removal(
    sessions: Sessions, session: Session, item: Evidence, message: int, cancelled: Callable[[], bool]
) -> Removal:
    """Score the very answer of `message` with a passage and without it, and without others of the same size.

    Stores nothing and leaves the chat as it is. Focus, mute and second look of the answer stand.

    Raises:
        InputError: the passage is not attached any more, or the answer is empty.
        CancelledError: `cancelled` said so.
    """
    twin, history, question = sessions.before(session, message)
    engine, sight = sessions.engine, twin.sight
    prompt = sessions.prompt(twin, history, question.content)
    answer = _answer(sessions, session, twin, prompt, message)
    stats = sessions.store.message_stats(message)
    if stats.get("second_look"):  # drafts are greedy, and words find the same: the same again
        offered = sum(sessions.offered(twin, history, question.content), [])
        twin.cache.narrow(engine.look_up(twin.cache, prompt, offered, cancelled=cancelled))

    def score(*hidden: Evidence) -> list[float]:
        if cancelled():
            raise CancelledError("stopped; nothing was changed")
        sessions.see(twin, sight, *hidden)
        return engine.score(twin.cache, prompt, answer).tolist()

    before, seen = score(), twin.cache.allowed
    visible = None if seen is None else seen.tolist()
    after = score(item)
    others = _others(item, sessions.reader.attached(session.documents), visible)
    falls = [sum(before) - sum(score(other)) for other in others]
    return Removal(
        evidence=item.id,
        pieces=tuple(engine.pieces(answer)),
        before=tuple(before),
        after=tuple(after),
        control=median(falls) if falls else None,
        controls=len(falls),
    )


def _answer(sessions: Sessions, session: Session, twin: Session, prompt: Sequence[int], message: int) -> list[int]:
    """The answer's tokens: those that were generated where the chat's memory has them, else its text's."""
    engine = sessions.engine
    said = [turn.answer for turn in turns_of(sessions.store.messages(session.chat))]
    turn = [answer.id for answer in said].index(message)
    start, ids = twin.cache.tail.tokens, session.cache.tail.token_ids
    end = start + len(prompt)
    if session.turns[turn] > end and list(ids[start:end]) == list(prompt):
        answer = [token for token in ids[end : session.turns[turn]] if token not in engine.stop_ids]
    else:
        answer = engine.text_tokenizer.encode(said[turn].content, add_special_tokens=False).ids
    if not answer:
        raise InputError("the answer is empty; there is nothing to score")
    return answer


def _others(item: Evidence, attached: Sequence[Attached], visible: Sequence[bool] | None) -> list[Evidence]:
    """Other places that the answer could see, with as many regions; the same ones for the same passage."""
    taken, count = {(item.document, *region) for region in item.regions}, len(item.regions)
    runs = []
    for memory in attached:
        for first in range(memory.first_region == 0, memory.regions - count + 1):  # the sinks cannot be masked
            regions = tuple((memory.number, region) for region in range(first, first + count))
            seen = visible is None or all(visible[memory.first_region + first : memory.first_region + first + count])
            if seen and not any((memory.document.id, *region) in taken for region in regions):
                runs.append((memory.document.id, regions))
    picked = random.Random(item.id).sample(runs, min(CONTROLS, len(runs)))
    return [replace(item, document=document, regions=regions) for document, regions in picked]
