"""Heavy hitters: teacher-forced decode of text with a share of the prompt's keys kept, by several rules.

    python benchmarks/h2o.py --file BOOK --file BOOK

Two kinds of documents: `plain` is book text, much of which can be told from what is near; in `recurring`, lines of the
book alternate with passages of a dictionary of the document's own, facts and quotations that come again and again, at
random: who keeps what was of use before can tell how they go on.

All rules and budgets decode the same text side by side, as rows of one batch, each with keys of its own: after the
prompt and after every token, each key/value head of each layer drops what is over its budget. Keys stay at their
original positions. Told per rule and budget: perplexity, in all and of passages that had been there before, KL
divergence from the rows that drop nothing, agreement of the likeliest token, and how many facts of the prompt are still
answered afterwards.
"""

import argparse
import math
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor
from transformers import AttentionInterface

from app.eval import report, texts
from app.kernels.h2o import DECAY, PRESETS, H2OOptions, evict, heaviest, peaks
from benchmarks import harness
from benchmarks.h2o_texts import document, recurring, turn_of
from benchmarks.harness import Benchmark, Part, Values

if TYPE_CHECKING:
    pass

NAME = "lectern_h2o_table"
KINDS = ("plain", "recurring")
FIGURES = ("nats", "again", "kl", "top_1", "recall")
SHARES = (1.0, 0.5, 0.2, 0.1, 0.05)
GROUP_TOKENS, H2O_ROWS = 128, 8  # of each group in a reading, the last queries whose attention counts
LEAST = 24  # tokens of a budget
STEP_ROWS_S = 0.07  # one token through all rows
MOST_RISE = 5.0  # percent of perplexity at 20%


@dataclass(frozen=True)
class Rule:
    """What is kept within a budget.

    Attributes:
        options: of the product's heavy hitters.
        worth: `mass`, what the options make of the attention received; `place`, the newest; `luck`, at random.
        window: last queries of the prompt whose attention counts; None for those that the options name.
    """

    options: H2OOptions = PRESETS["mean"]
    worth: str = "mass"
    window: int | None = None

    def limits(self, budget: int) -> H2OOptions:
        """The options with no more newest keys than half of a small budget."""
        return replace(self.options, recent=min(self.options.recent, budget // 2))


RULES = {
    "recent": Rule(worth="place"),
    "random": Rule(worth="luck"),
    "published": Rule(PRESETS["published"]),
    "ours": Rule(PRESETS["peak"]),
    "ours-mean": Rule(PRESETS["mean"]),
    "ours-exact": Rule(PRESETS["exact"]),
    "ours-decay": Rule(PRESETS["decay"]),
    "last-w": Rule(H2OOptions(score="sum"), window=32),
}
OURS = ("ours", "ours-mean", "ours-exact", "ours-decay")


@dataclass(frozen=True)
class Row:
    """A rule at a budget; without a rule nothing is dropped."""

    name: str
    share: float

    @property
    def rule(self) -> Rule | None:
        return RULES.get(self.name)


class Keys:
    """Keys and values of all rows and layers, of which some are dropped for good.

    Attributes:
        alive: per layer [B, Hkv, N] bool: keys that may still be seen.
    """

    def __init__(self, rows: Sequence[Row], layers: int, capacity: int, generator: torch.Generator) -> None:
        self.rows, self.capacity, self.generator = rows, capacity, generator
        self.k: list[Tensor] = [torch.empty(0)] * layers
        self.v: list[Tensor] = [torch.empty(0)] * layers
        self.mass: list[Tensor] = [torch.empty(0)] * layers
        self.luck: list[Tensor] = [torch.empty(0)] * layers
        self.alive: list[Tensor] = [torch.empty(0)] * layers
        self.filled = [0] * layers
        scores = ["" if row.rule is None else row.rule.options.score for row in rows]
        self.decay = torch.tensor([DECAY if score == "decay" else 1.0 for score in scores])[:, None, None]
        self.peak = torch.tensor([score == "peak" for score in scores])[:, None, None]
        self.exposure = torch.zeros(len(rows), 1, capacity)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attention [B, Hq, T, D] -> [B, T, Hq, D]: of the prompt (B = 1), then of one token in every row."""
        return self._prompt(layer, q, k, v, scale) if not self.filled[layer] else self._step(layer, q, k, v, scale)

    def _prompt(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        heads, kv_heads, tokens = q.shape[1], k.shape[1], q.shape[2]
        queries = q[0].unflatten(0, (kv_heads, -1))  # [Hkv, heads, T, D]
        logits = (queries @ k[0][:, None].transpose(-1, -2)).float() * scale
        seen = torch.ones(tokens, tokens, dtype=torch.bool).tril()
        weights = logits.masked_fill(~seen, float("-inf")).softmax(-1)
        out = (weights.to(v.dtype) @ v[0][:, None]).reshape(1, heads, tokens, -1)
        room = (len(self.rows), kv_heads, self.capacity)
        self.k[layer], self.v[layer] = (torch.zeros(*room, x.shape[-1], dtype=x.dtype) for x in (k, v))
        self.k[layer][:, :, :tokens], self.v[layer][:, :, :tokens] = k, v
        counted = torch.stack([_query_weights(row.rule or Rule(), tokens) for row in self.rows])  # [B, T]
        self.mass[layer] = torch.zeros(room)
        given = torch.einsum("bi,hij->bhj", counted, weights.sum(1))
        self.mass[layer][:, :, :tokens] = torch.where(self.peak, _prompt_peaks(weights.sum(1)), given)
        self.exposure[:, 0, :tokens] = counted.flip(-1).cumsum(-1).flip(-1)
        self.luck[layer] = torch.rand(room, generator=self.generator)
        self.alive[layer] = (torch.arange(self.capacity) < tokens).expand(room).clone()
        self.filled[layer] = tokens
        if layer == len(self.k) - 1:
            self.prompt_tokens = tokens
            for each in range(len(self.k)):
                self._drop(each)
        return out.transpose(1, 2)

    def _step(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        place, kv_heads = self.filled[layer], k.shape[1]
        self.k[layer][:, :, place], self.v[layer][:, :, place] = k[:, :, 0], v[:, :, 0]
        self.alive[layer][:, :, place] = True
        end = place + 1
        queries = q[:, :, 0].unflatten(1, (kv_heads, -1))  # [B, Hkv, heads, D]
        logits = (queries @ self.k[layer][:, :, :end].transpose(-1, -2)).float() * scale
        weights = logits.masked_fill(~self.alive[layer][:, :, None, :end], float("-inf")).softmax(-1)
        out = (weights.to(v.dtype) @ self.v[layer][:, :, :end]).flatten(1, 2)[:, None]  # [B, 1, Hq, D]
        if layer == 0:
            self.exposure *= self.decay
            self.exposure[:, :, :end] += 1
        old, given = self.mass[layer][:, :, :end] * self.decay, weights.sum(2)
        self.mass[layer][:, :, :end] = torch.where(self.peak, torch.maximum(old, peaks(given, end)), old + given)
        self.filled[layer] = end
        self._drop(layer)
        return out

    def _drop(self, layer: int) -> None:
        """Make room in every head for one key more within its budget."""
        end = self.filled[layer]
        for i, row in enumerate(self.rows):
            rule, alive = row.rule, self.alive[layer][i, :, :end]
            if rule is None:
                continue
            budget, held = max(LEAST, int(row.share * self.prompt_tokens)), int(alive[0].sum())
            if held + 1 <= budget:  # all heads keep equally many
                continue
            places = alive.nonzero()[:, 1].view(-1, held)  # [Hkv, S]
            kept = places.gather(-1, self._kept(layer, i, places, rule, budget))
            self.alive[layer][i, :, :end] = torch.zeros_like(alive).scatter(-1, kept, True)

    def _kept(self, layer: int, row: int, places: Tensor, rule: Rule, budget: int) -> Tensor:
        """Which of the keys at `places` [Hkv, S] stay: indices [Hkv, K]."""
        limits = rule.limits(budget)
        mass, exposure = self.mass[layer][row].gather(-1, places), self.exposure[row].expand(len(places), -1)
        if rule.worth == "mass":
            values = self.v[layer][row].norm(dim=-1).gather(-1, places)
            return evict(mass, exposure.gather(-1, places), budget, 1, limits, values)
        worth = places.float() if rule.worth == "place" else self.luck[layer][row].gather(-1, places)
        excess = -(-(places.shape[-1] + 1 - budget) // limits.block) * limits.block
        count = max(places.shape[-1] - excess, limits.sinks + limits.recent)
        return heaviest(worth, count, sinks=limits.sinks, recent=limits.recent)


def _query_weights(rule: Rule, tokens: int) -> Tensor:
    """[T]: how much the attention of each query of the prompt counts."""
    places = torch.arange(tokens)
    ages = tokens - 1 - places
    if rule.window is not None:
        return (ages < rule.window).float()
    if rule.options.score == "decay":
        return DECAY ** ages.float()
    if rule.options.rows == "all":
        return torch.ones(tokens)
    return (places % GROUP_TOKENS >= GROUP_TOKENS - H2O_ROWS).float()


def _prompt_peaks(weights: Tensor) -> Tensor:
    """[Hkv, T]: the most that the sampled queries of one group of the prompt gave, weights [Hkv, T, T], on average."""
    groups = range(GROUP_TOKENS, weights.shape[1] + 1, GROUP_TOKENS)
    found = [peaks(weights[:, end - H2O_ROWS : end].mean(1), end) for end in groups]
    return torch.stack(found).amax(0) if found else torch.zeros_like(weights[:, 0])


def table_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """The registered attention function; keys and values are kept by `module.keys`."""
    return module.keys.attend(module.layer_idx, query, key, value, scaling), None


def decode(model, prompt: Sequence[int], rest: Sequence[int], rows: Sequence[Row], seed: int) -> tuple[Tensor, Keys]:
    """Run the prompt at once and the rest token by token in every row.

    Returns:
        (log-probabilities [len(rest), B, V] of each token of `rest` and its rivals, the keys at the end).
    """
    keys = Keys(rows, model.config.num_hidden_layers, len(prompt) + len(rest), torch.Generator().manual_seed(seed))
    for layer in model.model.layers:
        layer.self_attn.keys = keys
    found = []
    with torch.no_grad():
        first = model(input_ids=torch.tensor([list(prompt)]), use_cache=False).logits[0, -1]
        found.append(first.float().log_softmax(-1).expand(len(rows), -1))
        for number, token in enumerate(rest[:-1]):
            ids = torch.full((len(rows), 1), token)
            places = torch.full((len(rows), 1), len(prompt) + number)
            logits = model(input_ids=ids, position_ids=places, use_cache=False).logits[:, -1]
            found.append(logits.float().log_softmax(-1))
    return torch.stack(found), keys


def load(args: argparse.Namespace):
    """The stock model on the CPU with the table's attention."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(args.threads)
    AttentionInterface.register(NAME, table_attention)
    return AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation=NAME).eval()


def rows_of(shares: Sequence[float]) -> list[Row]:
    """The row that drops nothing, then every rule at every budget."""
    return [Row("full", 1.0), *(Row(name, share) for name in RULES for share in shares)]


def main(argv: list[str] | None = None) -> int:
    """Measure; nothing is measured when the rows that drop nothing do not predict as transformers does."""
    args = _arguments(argv)
    seconds = (args.text + 60 * args.facts) * STEP_ROWS_S
    benchmark = Benchmark(
        "h2o",
        {name: getattr(args, name) for name in ("file", "prompt", "text", "facts", "documents", "seed")},
        [
            Part(f"{kind}-{i}", seconds, partial(_measure, args, kind, i))
            for kind in KINDS
            for i in range(args.documents)
        ],
        _table,
        _finish,
        check=partial(_check, args),
    )
    return harness.main(benchmark, args)


def _check(args: argparse.Namespace) -> str | None:
    from transformers import AutoModelForCausalLM

    model = load(args)
    ids = torch.randint(model.config.vocab_size, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    ours, _ = decode(model, ids[:24], ids[24:], [Row("full", 1.0), Row("ours", 4.0)], 0)
    with torch.no_grad():
        stock = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)(torch.tensor([ids])).logits[0]
    off = float((ours - stock[23:-1].log_softmax(-1)[:, None]).abs().max())
    return None if off < 1e-3 else f"rows that drop nothing are {off:.4f} nats off transformers"


def _measure(args: argparse.Namespace, kind: str, number: int) -> Values:
    """One document: its prompt, text that goes on, then questions about facts of the prompt with their answers."""
    engine, model, rows = harness.engine(args), load(args), rows_of(SHARES)
    rng = random.Random(f"{args.seed}-{number}")
    lines = texts.lines_of(harness.prose(args, args.file))
    ids, known, asked = (document if kind == "plain" else recurring)(engine, lines, args, rng)
    turns = [turn_of(engine, needle) for needle in asked]
    rest = ids[args.prompt :] + [token for turn, answer in turns for token in [*turn, *answer]]
    found, _ = decode(model, ids[: args.prompt], rest, rows, args.seed)
    wanted = torch.tensor(rest)
    scored = len(ids) - args.prompt
    each = -found[:scored].gather(-1, wanted[:scored, None, None].expand(-1, len(rows), 1))[..., 0]
    again = each[torch.tensor(known[args.prompt :])].mean(0)  # NaN where there is none
    full = found[:scored, :1]
    divergence = (full.exp() * (full - found[:scored])).sum(-1).mean(0)
    agreed = (found[:scored].argmax(-1) == full.argmax(-1)).float().mean(0)
    recalled, place = torch.zeros(len(rows)), scored
    for turn, answer in turns:
        place += len(turn)
        span = slice(place, place + len(answer))
        recalled += (found[span].argmax(-1) == wanted[span, None]).all(0)
        place += len(answer)
    columns = [each.mean(0), again, divergence, agreed, recalled / len(turns)]
    figures = [
        {name: None if x.isnan() else float(x) for name, x in zip(FIGURES, row, strict=True)}
        for row in zip(*columns, strict=True)
    ]
    return {"kind": kind, "rows": [{"rule": r.name, "share": r.share} | f for r, f in zip(rows, figures, strict=True)]}


def _of(parts: Mapping[str, Values], kind: str) -> dict[str, Values]:
    return {name: values for name, values in parts.items() if values["kind"] == kind}


def _mean(parts: Mapping[str, Values]) -> dict[tuple[str, float], dict[str, float | None]]:
    """Figures of each rule and budget over all documents; None where none of them has it."""
    found: dict[tuple[str, float], list[Values]] = {}
    for values in parts.values():
        for row in values["rows"]:
            found.setdefault((row["rule"], row["share"]), []).append(row)
    return {key: {name: _average([row[name] for row in rows]) for name in FIGURES} for key, rows in found.items()}


def _average(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return math.fsum(there) / len(there) if there else None


def _finish(parts: Mapping[str, Values]) -> Values:
    """The verdicts on each kind of documents; the aim counts for both."""
    kinds = {kind: _verdict(_of(parts, kind)) for kind in KINDS}
    aims = ("rises_little_at_20", "better_than_controls_at_20")
    return kinds | {"met": all(values[aim] for values in kinds.values() for aim in aims)}


def _verdict(parts: Mapping[str, Values]) -> Values:
    """Perplexity over that of everything kept, in percent, and the verdicts at a budget of 20%."""
    mean = _mean(parts)
    base = mean["full", 1.0]["nats"]
    rises = {key: round(100 * math.expm1(row["nats"] - base), 3) for key, row in mean.items()}
    best = min(OURS, key=lambda name: rises[name, 0.2])
    return {
        "rise_percent": [{"rule": rule, "share": share, "percent": rise} for (rule, share), rise in rises.items()],
        "mean": [{"rule": rule, "share": share, **row} for (rule, share), row in mean.items()],
        "best_of_ours_at_20": best,
        "rises_little_at_20": rises[best, 0.2] <= MOST_RISE,
        "better_than_controls_at_20": all(rises[best, 0.2] < rises[name, 0.2] for name in ("recent", "random")),
        "ours_over_controls": {
            name: _compared(parts, best, name) for name in ("recent", "random", "published", "last-w")
        },
    }


def _compared(parts: Mapping[str, Values], ours: str, theirs: str) -> Values:
    """Mean of theirs - ours in nats at 20%, paired over documents, and its standard error."""
    differences = []
    for values in parts.values():
        nats = {row["rule"]: row["nats"] for row in values["rows"] if row["share"] == 0.2}
        differences.append(nats[theirs] - nats[ours])
    mean = math.fsum(differences) / len(differences)
    return {"nats": round(mean, 6), "standard_error": report.standard_error(differences)}


def _table(parts: Mapping[str, Values]) -> tuple[list[str], list[list[Any]]]:
    rows = []
    for kind in KINDS:
        for (rule, share), row in _mean(_of(parts, kind)).items():
            again = None if row["again"] is None else math.exp(row["again"])
            rows.append([kind, rule, share, math.exp(row["nats"]), again, row["kl"], row["top_1"], row["recall"]])
    return ["kind", "rule", "share", "perplexity", "of what recurs", "KL", "top 1", "recall"], rows


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.flags(__doc__, "h2o")
    parser.add_argument("--file", type=Path, action="append", help="a book not trained on; several are joined")
    parser.add_argument("--prompt", type=int, default=1024, help="tokens read at once (1024)")
    parser.add_argument("--text", type=int, default=512, help="tokens of text decoded after it (512)")
    parser.add_argument("--facts", type=int, default=4, help="facts of the prompt asked afterwards (4)")
    parser.add_argument("--documents", type=int, default=6, help="texts of each kind (6)")
    args = parser.parse_args(argv)
    if args.quick:
        args.prompt, args.text, args.facts, args.documents = 300, 20, 1, 2
    return args


if __name__ == "__main__":
    sys.exit(main())
