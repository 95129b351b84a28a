"""How an answer knows what it says: where its attention went, beside that of an answer to an empty question."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.records import FROM_MEMORY
from app.runtime.cache import RegionCache
from app.runtime.engine import Engine
from app.tasks.scoring import NO_ANSWER
from app.runtime.evidence import AnswerEvidence, Shares

LEAST = 1e-4  # a region that draws no more than this of all attention over an empty question's is not looked at


@dataclass(frozen=True)
class Unasked:
    """Where an answer to an empty question looks in some documents.

    Attributes:
        density: as `AnswerEvidence` has it.
        shares: of all its attention.
    """

    density: Sequence[float] = ()
    shares: Shares = Shares()

    @classmethod
    def of(cls, evidence: AnswerEvidence) -> "Unasked":
        return cls(evidence.density.tolist(), evidence.shares)


def looked_beyond(documents: Sequence[float], unasked: Sequence[float]) -> float:
    """By how much the region that gained most drew more attention than it does when nothing is asked.

    Args:
        documents, unasked: [regions] shares of all attention; `unasked` is empty where it is not known.
    """
    if len(documents) != len(unasked):
        return max(documents, default=0.0)
    return max((mass - before for mass, before in zip(documents, unasked, strict=True)), default=0.0)


def known(shares: Shares, unasked: Unasked) -> dict[str, Any]:
    """The fields of AnswerStats that say how an answer knows what it says."""
    beyond = looked_beyond(shares.documents, unasked.shares.documents)
    return {
        "on_documents": round(sum(shares.documents), 4),
        "on_chat": None if shares.chat is None else round(max(0.0, shares.chat), 4),
        "on_question": None if shares.question is None else round(max(0.0, shares.question), 4),
        "looked_beyond": round(max(0.0, beyond), 5),
        "source": FROM_MEMORY if shares.documents and beyond <= LEAST else "text" if shares.documents else "",
    }


def held(
    engine: Engine,
    cache: RegionCache,
    before: int,
    turn: Sequence[int],
    alone: Sequence[int],
) -> float | None:
    """By how many nats the documents make a refusal less likely than the question alone does.

    Args:
        cache: after an answer; `before`: tokens of its tail before the turn, whose prompt is `turn`.
        alone: the question as the first turn of a chat without documents.

    Returns:
        None where tokens of the chat were dropped.
    """
    if engine.shape.compaction:
        return None
    refusal = engine.text_tokenizer.encode(NO_ANSWER, add_special_tokens=False).ids
    twin = cache.fork()
    twin.tail.truncate(before)
    twin.narrow(cache.evidence.chosen if cache.evidence else None)
    bos = [] if engine.bos_id is None else [engine.bos_id]
    with_them = engine.score(twin, turn, refusal).sum()
    without = engine.score(engine.open_chat([]), [*bos, *alone], refusal).sum()
    return round(float(without - with_them), 3)
