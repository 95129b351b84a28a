"""How well long texts are searched: exact, coarse, by adjacent and by similar clusters; recall and cost by length.

    python benchmarks/tree.py --lengths 16384 65536 --file book.txt

One text is read once, with facts planted in it; shorter lengths are its beginnings, since what a token attends to
depends on its place alone. Each way of searching answers the same queries: those of the last groups before each length,
and those of the questions about planted facts, word by word. Told are

- mass: attention that falls on the regions chosen by score, as a share of what falls on the exactly chosen ones;
- overlap: the share of the exactly chosen regions that were chosen;
- needles: of all choices (layer, KV head, word of the answer) that exactly include a fact's region, the share that do;
- ms: processor time of one choice, a layer, for a group of queries and for a single one.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor
from transformers import AttentionInterface

from app import needles, privacy
from app.errors import ConfigError
from app.eval import report
from app.kernels.rope import rotate
from app.runtime import attention, selection, single
from app.runtime.cache import RegionCache
from app.runtime.config import AttentionConfig
from app.runtime.engine import Engine
from app.runtime.opening import load_engine
from app.runtime.index import RegionIndex
from app.runtime.memory import RegionMemory
from app.settings import Settings, fill
from benchmarks import machine

BOOK = machine.ROOT / "tests" / "data" / "book.txt"
EVERY_REGION = 1 << 40
WAYS: dict[str, dict[str, Any]] = {
    "exact": {"tree": "none", "candidates": EVERY_REGION},
    "coarse": {"tree": "none"},
    "adjacent": {"tree": "adjacent", "tree_from_tokens": 1, "decode_tree_from_tokens": 1},
    "similar": {"tree": "similar", "tree_from_tokens": 1, "decode_tree_from_tokens": 1},
}
PIECE_TOKENS = 8192


@dataclass
class Asked:
    """Raw queries [Hq, T, D] of one layer whose last stands at token `end` - 1; `needle`: the regions of the fact."""

    layer: int
    queries: Tensor
    end: int
    needle: frozenset[int] = frozenset()


def main() -> int:
    args = _arguments()
    privacy.apply()
    settings = fill(Settings, flags={"model": args.model, "device": args.device, "threads": args.threads})
    engine = load_engine(settings)
    group = engine.spec.attention.group_tokens
    if any(length % group or length <= engine.budget_tokens for length in args.lengths):
        raise ConfigError(
            f"--lengths {' '.join(map(str, args.lengths))}: must be multiples of {group} above {engine.budget_tokens}"
        )
    recorder = _Recorder(engine)
    facts = needles.pairs(random.Random(0), args.needles, "word")
    ids, places = _text(engine, args.file or [BOOK], max(args.lengths), facts)
    started = time.process_time()
    memory, groups = _read(engine, recorder, ids, args)
    read_s = time.process_time() - started
    indexes = {"similar": memory.index, "adjacent": _reindexed(engine, memory, "adjacent")}
    rows, figures = [], []
    for length in sorted(args.lengths, reverse=True):
        memory.truncate(length)
        here = [(fact, place) for fact, place in zip(facts, places, strict=True) if place[1] < length]
        words = [asked for fact, place in here for asked in _questions(engine, recorder, memory, fact, place)]
        kinds = [("group", groups[length]), ("word", words)]
        for kind, asked in kinds:
            for way, measured in _compare(engine, memory, indexes, asked).items():
                rows.append([length, kind, way, *measured.values()])
                figures.append({"tokens": length, "queries": kind, "way": way, **measured})
    print(report.table(["tokens", "queries", "way", "mass", "overlap", "needles", "ms"], rows))
    result = {
        "benchmark": "tree",
        "model": Path(settings.model).name,
        "text": {"files": [path.name for path in args.file or [BOOK]], "needles": args.needles},
        "settings": {"budget_tokens": engine.budget_tokens, "tree_beam": engine.spec.attention.tree_beam},
        "reading_process_s": round(read_s, 1),
        "index_bytes_per_token": {
            name: round(index.size_bytes / memory.capacity, 1) for name, index in indexes.items()
        },
        "ways": figures,
        **machine.describe(),
    }
    print(json.dumps(result))
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


class _Recorder:
    """Keeps the queries that reach the attention function, while `wanted` says which."""

    def __init__(self, engine: Engine) -> None:
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
    engine: Engine, files: Sequence[Path], length: int, facts: Sequence[needles.Needle]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of the files, again and again, with the facts planted between paragraphs, and their places.

    Facts lie evenly in the logarithm of the place, so that every length holds some.
    """
    rng = random.Random(1)
    paragraphs = [p for path in files for p in path.read_text(encoding="utf-8").split("\n\n") if p.strip()]
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


def _read(
    engine: Engine, recorder: _Recorder, ids: list[int], args: argparse.Namespace
) -> tuple[RegionMemory, dict[int, list[Asked]]]:
    """Read, and keep the queries of the last groups before each length."""
    size = engine.spec.attention.group_tokens
    starts = {n - size * (i + 1): n for n in args.lengths for i in range(args.groups)}

    def wanted(layer: int, query: Tensor, end: int) -> Iterator[Asked]:
        first = end - query.shape[1]
        for start in starts:
            if first <= start and start + size <= end:
                yield Asked(layer, query[:, start - first : start - first + size].clone(), start + size)

    found: list[RegionMemory] = []
    kept = recorder.during(wanted, lambda: found.append(engine.read(ids)))
    groups: dict[int, list[Asked]] = {n: [] for n in args.lengths}
    for asked in kept:
        groups[starts[asked.end - size]].append(asked)
    return found[0], groups


def _reindexed(engine: Engine, memory: RegionMemory, kind: str) -> RegionIndex:
    shape = replace(engine.shape, attention=replace(engine.shape.attention, tree=kind))
    index = RegionIndex(shape)
    index.reserve(memory.capacity)
    for layer in range(shape.layers):
        for start in range(0, memory.tokens, PIECE_TOKENS):
            keys, _ = memory.pages.rows(layer, start, min(start + PIECE_TOKENS, memory.tokens))
            index.update(layer, start, keys)
    return index


def _questions(
    engine: Engine, recorder: _Recorder, memory: RegionMemory, fact: needles.Needle, place: tuple[int, int]
) -> list[Asked]:
    """The queries of the right answer's words, asked with every region scored."""
    size = engine.spec.attention.region_tokens
    regions = frozenset(range(place[0] // size, (place[1] - 1) // size + 1))
    _use(engine, "exact")
    cache = RegionCache(engine.shape, [memory])
    engine._forward(cache, engine.encode_turn([{"role": "user", "content": fact.question}]))
    answer = engine.text_tokenizer.encode(fact.answer, add_special_tokens=False).ids

    def wanted(layer: int, query: Tensor, end: int) -> list[Asked]:
        return [Asked(layer, query.clone(), cache.base_tokens, regions)]

    return recorder.during(wanted, lambda: [engine._forward(cache, [token]) for token in answer])


def _use(engine: Engine, way: str) -> None:
    """Let the engine search in one way; what WAYS does not name stays as it is."""
    chosen = replace(engine.spec.attention, **{"candidates": AttentionConfig.candidates, **WAYS[way]})
    engine.spec.attention = chosen
    engine.shape = replace(engine.shape, attention=chosen)


def _compare(
    engine: Engine, memory: RegionMemory, indexes: dict[str, RegionIndex], asked: list[Asked]
) -> dict[str, dict[str, float | None]]:
    exact: list[Tensor] = []
    results = {}
    for way in WAYS:
        memory.index = indexes.get(way, indexes["similar"])
        _use(engine, way)
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
    return results


def _choose(engine: Engine, cache: RegionCache, asked: Asked) -> Tensor:
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
    engine: Engine, cache: RegionCache, asked: list[Asked], exact: list[Tensor], chosen: list[Tensor]
) -> dict[str, float | None]:
    mass, overlap, needle = [0.0, 0.0], [0, 0], [0, 0]
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
    return {
        "mass": round(mass[1] / mass[0], 4) if mass[0] else None,
        "overlap": round(overlap[1] / overlap[0], 4) if overlap[0] else None,
        "needles": round(needle[1] / needle[0], 4) if needle[0] else None,
    }


def _mass(engine: Engine, cache: RegionCache, asked: Asked, head: int, regions: list[int]) -> dict[int, float]:
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


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[16_384, 65_536], help="tokens, multiples of 128")
    parser.add_argument("--file", type=Path, action="append", help="a book; several are joined (default: a test book)")
    parser.add_argument("--groups", type=int, default=4, help="query groups looked at before each length")
    parser.add_argument("--needles", type=int, default=20, help="facts planted")
    parser.add_argument("--model", help="checkpoint folder; the small model that ships when not given")
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "tree.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
