"""Texts of a wanted length in tokens, read and asked about as a user's document is."""

import lzma
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from app.errors import CancelledError, ConfigError, InputError

if TYPE_CHECKING:
    from app.runtime.engine import Engine
    from app.runtime.memory import RegionMemory

ROUNDS = 4


def never() -> bool:
    """A `cancelled` that never is."""
    return False


def encode(engine: "Engine", text: str) -> list[int]:
    """Token ids of a text as a document: BOS, then its parts, exactly as ingestion and the app do it."""
    from app.ingest import spans
    from app.ingest.text import split_parts

    memories = spans.encode(split_parts(text), engine.text_tokenizer, engine.bos_id)
    return memories[0].token_ids


def lines_of(path: Path) -> list[str]:
    """The lines of a document, as ingestion cleans it; of a text packed as .xz, as they are.

    Raises:
        InputError: the file cannot be read, or holds no text.
    """
    if path.suffix == ".xz":
        try:
            lines = lzma.open(path, "rt", encoding="utf-8").read().splitlines()
        except (OSError, lzma.LZMAError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read as packed text: {error}") from error
    else:
        from app.ingest.load import load_document

        lines = [line for part in load_document(path).parts for line in part.text.splitlines()]
    if not any(map(str.strip, lines)):
        raise InputError(f"{path}: holds no text; choose another file")
    return lines


def around(lines: Sequence[str], rng: random.Random) -> Iterator[str]:
    """The lines for ever, from a random one on."""
    start = rng.randrange(len(lines))
    while True:
        yield from lines[start:]
        start = 0


def fit(
    engine: "Engine", lines: Callable[[], Iterator[str]], compose: Callable[[list[str]], str], tokens: int
) -> list[int]:
    """Make a document of `tokens` tokens, or up to a line fewer.

    Args:
        lines: gives filler lines without end, the same at each call; the last one taken is cut at a word.
        compose: makes the document of the lines taken.

    Returns:
        The document's token ids.

    Raises:
        ConfigError: what `compose` adds to the filler leaves no room for it.
    """
    fixed = len(encode(engine, compose([])))
    costs: dict[str, int] = {}
    drift, best = 0, []
    for _ in range(ROUNDS):  # lines are counted one by one; the whole may come out a little longer or shorter
        taken, counted, line = _take(engine, lines(), tokens - fixed - drift, costs)
        if not taken:
            break
        ids = encode(engine, compose(taken))
        if len(best) < len(ids) <= tokens:
            best = ids
        if tokens - line <= len(ids) <= tokens:
            return ids
        drift = len(ids) - fixed - counted
    if not best:
        raise ConfigError(f"a text of {tokens} tokens has no room: what is planted takes {fixed}; ask for more tokens")
    return best


def _take(engine: "Engine", lines: Iterator[str], budget: int, costs: dict[str, int]) -> tuple[list[str], int, int]:
    """Lines of `budget` tokens in all, what they cost, and what the line that was cut would have cost whole."""

    def cost(line: str) -> int:
        return max(1, len(engine.text_tokenizer.encode(line + "\n", add_special_tokens=False).ids))

    taken, left = [], budget
    for line in lines:
        if line not in costs:
            costs[line] = cost(line)
        if costs[line] > left:
            break
        taken.append(line)
        left -= costs[line]
    words = line.split()
    piece = " ".join(words[: max(0, left) * len(words) // costs[line]])
    if piece and cost(piece) <= left:
        taken.append(piece)
        left -= cost(piece)
    return taken, budget - left, costs[line]


def plant(lines: Sequence[str], passages: Sequence[str], depths: Sequence[float]) -> str:
    """Put each passage at its depth (0 start, 1 end) among the lines."""
    planted = list(lines)
    for depth, passage in sorted(zip(depths, passages, strict=True), key=lambda place: -place[0]):
        planted.insert(round(depth * len(lines)), passage)
    return "\n".join(planted) + "\n"


def answer(
    engine: "Engine", memory: "RegionMemory", question: str, max_new_tokens: int, cancelled: Callable[[], bool] = never
) -> str:
    """The greedy answer to one question in a fresh chat over a memory that was read before."""
    from app.runtime.config import GenerationConfig

    turn = engine.encode_turn([{"role": "user", "content": question}])
    config = GenerationConfig(max_new_tokens=max_new_tokens)
    ids = list(engine.generate(engine.open_chat([memory]), turn, config, cancelled=cancelled))
    if cancelled():
        raise CancelledError("stopped")
    return engine.decode(ids).strip()
