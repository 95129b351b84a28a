"""How well long texts are searched: exactly, roughly, by adjacent and by similar clusters; recall and cost by length.

    python benchmarks/tree.py --lengths 16384 65536 --file BOOK

A part is one length: a text is read, with facts planted in it. Each way of searching answers the same queries: those of
the last groups of the text, and those of the questions about planted facts, word by word. `shipped` searches as the
recipe says, which depends on the length; `rough` scores every region by coarse means (a group) or, on a CPU, int8 codes
(one query); a number behind `similar` is the beam. Told are

- recall: of the attention that falls on what the exact choice attends to, the text's beginning and what is near
  included, the share on regions that were found as well;
- mass: attention that falls on the regions chosen by score alone, as a share of what falls on the exactly chosen ones;
  it can exceed 1, as regions that score best are not those that receive most;
- overlap: the share of the exactly chosen regions that were chosen;
- needles: of all choices (layer, KV head, word of the answer) that exactly include a fact's region, the share that do;
- ms: processor time of one choice, a layer, for a group of queries and for a single one.
"""

import argparse
import math
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor
from transformers import AttentionInterface

from app.errors import ConfigError
from app.eval import texts
from app.kernels.rope import rotate
from app.memory.config import AttentionConfig
from app.memory.index import RegionIndex
from app.memory.memory import RegionMemory
from app.runtime import attention, selection, single
from app.runtime.cache import RegionCache
from app.tasks import needles
from benchmarks import harness, machine
from benchmarks.harness import Benchmark, Part, Values

if TYPE_CHECKING:
    from app.runtime.engine import Engine

BOOK = machine.ROOT / "tests" / "data" / "book.txt"
EVERY_REGION = 1 << 40
WAYS: dict[str, dict[str, Any]] = {
    "exact": {"tree": "none", "candidates": EVERY_REGION},
    "shipped": {},
    "rough": {"tree": "none"},
    "adjacent": {"tree": "adjacent", "tree_from_tokens": 1, "decode_tree_from_tokens": 1},
    "similar": {"tree": "similar", "tree_from_tokens": 1, "decode_tree_from_tokens": 1},
}
FIGURES = ("recall", "mass", "overlap", "needles", "ms")
PIECE_TOKENS = 8192
CHOICE_S, CHOICES = 0.02, 60  # of one word under one way in all layers and heads, and words
MOST_LOST = 0.01


@dataclass
class Asked:
    """Raw queries [Hq, T, D] of one layer whose last stands at token `end` - 1; `needle`: the regions of the fact."""

    layer: int
    queries: Tensor
    end: int
    needle: frozenset[int] = frozenset()


def main(argv: list[str] | None = None) -> int:
    """Measure; nothing is measured when the engine does not predict as transformers does."""
    args = _arguments(argv)
    names = ("file", "lengths", "beams", "groups", "needles", "seed", "device")
    benchmark = Benchmark(
        "tree",
        {name: getattr(args, name) for name in names},
        [Part(str(tokens), _seconds(args, tokens), partial(_measure, args, tokens)) for tokens in args.lengths],
        _table,
        _finish,
        check=partial(harness.same_as_transformers, args),
    )
    return harness.main(benchmark, args)


def ways(args: argparse.Namespace) -> dict[str, Values]:
    """Changes to the recipe, by the name of a way."""
    return WAYS | {f"similar-{beam}": WAYS["similar"] | {"tree_beam": beam} for beam in args.beams}


def _seconds(args: argparse.Namespace, tokens: int) -> float:
    words = args.needles * CHOICES // 4 * (CHOICE_S * (1 + tokens / 65_536) + harness.STEP_S)
    return harness.reading_s(2 * tokens) + words * len(ways(args))


def _measure(args: argparse.Namespace, tokens: int) -> Values:
    """One length."""
    engine = harness.engine(args)
    group = engine.spec.attention.group_tokens
    if tokens % group or tokens <= engine.budget_tokens:
        raise ConfigError(f"--lengths {tokens}: must be multiples of {group} above {engine.budget_tokens}")
    recorder = _Recorder(engine)
    facts = needles.pairs(random.Random(args.seed), args.needles, "word")
    ids, places = _text(engine, args.file or [BOOK], tokens, facts)
    started = time.process_time()
    memory, groups = _read(engine, recorder, ids, args.groups)
    read_s = time.process_time() - started
    told = harness.progress(f"{tokens:,} tokens")
    indexes = {"similar": memory.index, "adjacent": _reindexed(engine, memory, "adjacent")}
    words = []
    for done, (fact, place) in enumerate(zip(facts, places, strict=True)):
        words += _questions(engine, recorder, memory, fact, place) if place[1] < tokens else []
        told(done + 1, len(facts))
    recipe, rows = engine.spec.attention, []
    for kind, asked in (("group", groups), ("word", words)):
        for way, measured in _compare(engine, recipe, ways(args), memory, indexes, asked).items():
            rows.append({"tokens": tokens, "queries": kind, "way": way, **measured})
    sizes = {name: round(index.size_bytes / memory.capacity, 1) for name, index in indexes.items()}
    return {"reading_process_s": round(read_s, 1), "index_bytes_per_token": sizes, "rows": rows}


def _rows(parts: Mapping[str, Values]) -> list[Values]:
    return [row for values in parts.values() for row in values["rows"]]


def _table(parts: Mapping[str, Values]) -> tuple[list[str], list[list[Any]]]:
    rows = [[row[name] for name in ("tokens", "queries", "way", *FIGURES)] for row in _rows(parts)]
    return ["tokens", "queries", "way", *FIGURES], rows


def _finish(parts: Mapping[str, Values]) -> Values:
    """The least recall of each way over all lengths, and whether that of the shipped one is near enough to all."""
    least: dict[str, dict[str, float]] = {}
    for row in _rows(parts):
        if row["recall"] is not None:
            kinds = least.setdefault(row["way"], {})
            kinds[row["queries"]] = min(row["recall"], kinds.get(row["queries"], math.inf))
    return {"least_recall": least, "met": all(recall >= 1 - MOST_LOST for recall in least["shipped"].values())}


class _Recorder:
    """Keeps the queries that reach the attention function, while `wanted` says which."""

    def __init__(self, engine: "Engine") -> None:
        self.engine, self.kept, self.wanted = engine, [], None
        AttentionInterface.register("lectern_recorded", self._attend)
        engine.model.set_attn_implementation("lectern_recorded")

    def _attend(self, module, query, key, *args, **kwargs):
        end = key.cache.base_tokens + key.cache.tail.filled[key.number]
        if self.wanted is not None:
            self.kept += self.wanted(key.number, query[0], end)
        return attention.lectern_attention(module, query, key, *args, **kwargs)

    def during(self, wanted: Any, run: Any) -> list[Asked]:
        self.kept, self.wanted = [], wanted
        run()
        self.wanted = None
        return self.kept


def _text(
    engine: "Engine", files: Sequence[Path], length: int, facts: Sequence[needles.Needle]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of the files, again and again, with the facts planted between paragraphs, and their places.

    Facts lie evenly in the logarithm of the place, so that every length holds some.
    """
    rng = random.Random(1)
    paragraphs = [p for path in files for p in "\n".join(texts.lines_of(path)).split("\n\n") if p.strip()]
    encode = engine.text_tokenizer.encode
    depths = [int(512 * (0.9 * length / 512) ** rng.random()) for _ in facts]
    waiting = sorted(zip(depths, range(len(facts)), strict=True))
    ids, places = [engine.bos_id], [(length, length)] * len(facts)
    while len(ids) < length:
        for paragraph in paragraphs:
            while waiting and len(ids) >= waiting[0][0]:
                number = waiting.pop(0)[1]
                fact = encode(facts[number].sentences[0] + "\n\n", add_special_tokens=False).ids
                places[number] = (len(ids), len(ids) + len(fact))
                ids += fact
            ids += encode(paragraph + "\n\n", add_special_tokens=False).ids
            if len(ids) >= length:
                break
    return ids[:length], places


def _read(engine: "Engine", recorder: _Recorder, ids: list[int], groups: int) -> tuple[RegionMemory, list[Asked]]:
    """Read, and keep the queries of the last groups."""
    size = engine.spec.attention.group_tokens
    starts = [len(ids) - size * (i + 1) for i in range(groups)]

    def wanted(layer: int, query: Tensor, end: int) -> Iterator[Asked]:
        first = end - query.shape[1]
        for start in starts:
            if first <= start and start + size <= end:
                yield Asked(layer, query[:, start - first : start - first + size].clone(), start + size)

    found: list[RegionMemory] = []
    kept = recorder.during(wanted, lambda: found.append(engine.read(ids)))
    return found[0], kept


def _reindexed(engine: "Engine", memory: RegionMemory, kind: str) -> RegionIndex:
    shape = replace(engine.shape, attention=replace(engine.shape.attention, tree=kind))
    index = RegionIndex(shape)
    index.reserve(memory.capacity)
    for layer in range(shape.layers):
        for start in range(0, memory.tokens, PIECE_TOKENS):
            keys, _ = memory.pages.rows(layer, start, min(start + PIECE_TOKENS, memory.tokens))
            index.update(layer, start, keys)
    return index


def _questions(
    engine: "Engine", recorder: _Recorder, memory: RegionMemory, fact: needles.Needle, place: tuple[int, int]
) -> list[Asked]:
    """The queries of the right answer's words, asked with every region scored."""
    size, recipe = engine.spec.attention.region_tokens, engine.spec.attention
    regions = frozenset(range(place[0] // size, (place[1] - 1) // size + 1))
    _use(engine, replace(recipe, **WAYS["exact"]))
    cache = RegionCache(engine.shape, [memory])
    engine.forward(cache, engine.encode_turn([{"role": "user", "content": fact.question}]))
    answer = engine.text_tokenizer.encode(fact.answer, add_special_tokens=False).ids

    def wanted(layer: int, query: Tensor, end: int) -> list[Asked]:
        return [Asked(layer, query.clone(), cache.base_tokens, regions)]

    asked = recorder.during(wanted, lambda: [engine.forward(cache, [token]) for token in answer])
    _use(engine, recipe)
    return asked


def _use(engine: "Engine", recipe: AttentionConfig) -> None:
    """Let the engine search as this recipe says."""
    engine.spec.attention = recipe
    engine.shape = replace(engine.shape, attention=recipe)


def _compare(
    engine: "Engine",
    recipe: AttentionConfig,
    ways: Mapping[str, Values],
    memory: RegionMemory,
    indexes: dict[str, RegionIndex],
    asked: list[Asked],
) -> dict[str, dict[str, float | None]]:
    exact: list[Tensor] = []
    results = {}
    for way, changes in ways.items():
        memory.index = indexes.get(way, indexes["similar"])
        _use(engine, replace(recipe, **changes))
        cache = RegionCache(engine.shape, tail=memory)
        started = time.process_time()
        chosen = [_choose(engine, cache, a) for a in asked]
        spent = time.process_time() - started
        exact = exact or chosen
        results[way] = {
            **_recall(engine, cache, asked, exact, chosen),
            "ms": round(1e3 * spent / max(1, len(asked)), 2),
        }
    memory.index = indexes["similar"]
    _use(engine, recipe)
    return results


def _choose(engine: "Engine", cache: RegionCache, asked: Asked) -> Tensor:
    """[Hkv, K] regions."""
    a, kv_heads = engine.spec.attention, engine.shape.kv_heads
    rows = asked.queries.shape[1]
    own = -(-rows // a.region_tokens)
    first = torch.tensor([-(-asked.end // a.region_tokens) - own], device=asked.queries.device)
    q = asked.queries.view(1, kv_heads, -1, rows, asked.queries.shape[-1])
    if rows == 1:
        return single.select_one(engine.spec, cache, asked.layer, q, int(first), cache.table(asked.end)[1])[0]
    return selection.select(engine.spec, cache, asked.layer, q, first, own, cache.table(asked.end)[1])[0]


def _recall(
    engine: "Engine", cache: RegionCache, asked: list[Asked], exact: list[Tensor], chosen: list[Tensor]
) -> dict[str, float | None]:
    recall, mass, overlap, needle = [0.0, 0.0], [0.0, 0.0], [0, 0], [0, 0]
    a = engine.spec.attention
    for item, right, found in zip(asked, exact, chosen, strict=True):
        forced = {
            0,
            *range(right[0, -1].item() - -(-item.queries.shape[1] // a.region_tokens), right[0, -1].item() + 1),
        }
        for head in range(engine.shape.kv_heads):
            one, two = ({*x[head].tolist()} - forced for x in (right, found))
            overlap = [overlap[0] + len(one), overlap[1] + len(one & two)]
            needle = [needle[0] + bool(one & item.needle), needle[1] + bool(one & two & item.needle)]
            shares = _mass(engine, cache, item, head, sorted(one | two | forced))
            mass = [mass[i] + sum(shares[r] for r in x) for i, x in enumerate((one, two))]
            recall = [recall[i] + sum(shares[r] for r in x | forced) for i, x in enumerate((one, one & two))]
    return {
        "recall": round(recall[1] / recall[0], 4) if recall[0] else None,
        "mass": round(mass[1] / mass[0], 4) if mass[0] else None,
        "overlap": round(overlap[1] / overlap[0], 4) if overlap[0] else None,
        "needles": round(needle[1] / needle[0], 4) if needle[0] else None,
    }


def _mass(engine: "Engine", cache: RegionCache, asked: Asked, head: int, regions: list[int]) -> dict[int, float]:
    """Attention of one KV head's queries on each of these regions, at compact positions; a mean over the queries."""
    size, heads = engine.spec.attention.region_tokens, len(asked.queries) // engine.shape.kv_heads
    index = torch.tensor(regions, device=asked.queries.device)
    keys = cache.tail.pages.take(asked.layer, torch.full_like(index, head), index)[0].flatten(0, 1).float()
    places = (index[:, None] * size + torch.arange(size, device=index.device)).flatten()
    queries = asked.queries[head * heads : (head + 1) * heads].float()
    rows = asked.end - queries.shape[1] + torch.arange(queries.shape[1], device=index.device)
    cos, sin = engine.spec.rope(len(places), keys)
    own = torch.searchsorted(places, rows)
    logits = rotate(queries, cos[own], sin[own]) @ rotate(keys, cos[: len(places)], sin[: len(places)]).T
    logits = (logits * keys.shape[-1] ** -0.5).masked_fill(places > rows[:, None], float("-inf"))
    shares = logits.softmax(-1).mean((0, 1)).view(-1, size).sum(-1)
    return dict(zip(regions, shares.tolist(), strict=True))


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.flags(__doc__, "tree")
    parser.add_argument("--lengths", type=int, nargs="+", default=[16_384, 65_536], help="tokens, multiples of 128")
    parser.add_argument("--beams", type=harness.numbers, default=(128, 256), help="beams beside the recipe's (128,256)")
    parser.add_argument("--file", type=Path, action="append", help="a book; several are joined (default: a test book)")
    parser.add_argument("--groups", type=int, default=4, help="query groups looked at before each length")
    parser.add_argument("--needles", type=int, default=20, help="facts planted")
    args = parser.parse_args(argv)
    if args.quick:
        args.lengths, args.beams, args.needles, args.groups = [1024, 4096], (128,), 2, 1
    return args


if __name__ == "__main__":
    sys.exit(main())
