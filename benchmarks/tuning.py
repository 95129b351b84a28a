"""How much of full attention's gain each training attention brings: SinkLoRA's "92% against 39%", on a toy world.

    python benchmarks/tuning.py

A base model of short documents (benchmarks/toy.py) is tuned at four times its length, positions interpolated, once with
each attention and seed on the same documents, and scored with FULL attention on documents it never saw.
R = (block - arm) / (block - full), in perplexity and in nats, with intervals over seeds and documents. Nothing is told
unless full attention beats isolated blocks clearly, or there would be nothing to share out.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor

from app.kernels.rope import rope_table, rotate
from app.kernels.sf_attn import PATTERNS, GroupPattern, allowed
from app.memory.config import AttentionConfig
from app.train.attention import TrainingAttention, install, uninstall
from benchmarks import harness, toy
from benchmarks.harness import Benchmark, Part, Values

INTERPOLATED = 4
STEP_S = 0.25  # one step of 4,096 tokens
DRAWS = 4000
EVALUATION_SEED = 1_000_003
# As many tokens as a group holds, in regions of about a phrase.
SELECTION = AttentionConfig(budget_tokens=256, region_tokens=16)


@dataclass(frozen=True)
class Arm:
    """What tuning attends with.

    Attributes:
        pattern: changes to the pattern of the kind.
        alternate: all heads are moved in every second layer, and none in the others.
        spread: first tokens of each group that every later query sees, sinks beside the first ones.
    """

    kind: str
    pattern: Mapping[str, Any] = field(default_factory=dict)
    alternate: bool = False
    spread: int = 0

    def attention(self) -> TrainingAttention:
        if self.kind not in PATTERNS:
            return TrainingAttention(self.kind, selection=SELECTION)
        pattern = replace(PATTERNS[self.kind], **self.pattern)
        if self.alternate:
            return Alternating(pattern)
        if self.spread:
            return Spread(pattern, self.spread)
        return TrainingAttention(self.kind, pattern=pattern)


class Alternating(TrainingAttention):
    """Moves all heads in every second layer instead of half of them in all."""

    def __init__(self, pattern: GroupPattern) -> None:
        super().__init__("sf", pattern=pattern)
        self.patterns = [replace(pattern, shift_fraction=share) for share in (0.0, 1.0)]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        self.pattern = self.patterns[layer % 2]
        return super().attend(layer, query, key, value, scale)


class Spread(TrainingAttention):
    """Sinks in every group; with a mask, since the texts are short."""

    def __init__(self, pattern: GroupPattern, spread: int) -> None:
        super().__init__("sf", pattern=pattern)
        self.spread, self.masks = spread, {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        heads, tokens = query.shape[1:3]
        if tokens not in self.masks:
            seen = torch.stack([allowed(self.pattern, tokens, head, heads) for head in range(heads)])
            places = torch.arange(tokens)
            sinks = places % self.pattern.group_for(tokens) < self.spread
            self.masks[tokens] = seen | (sinks & (places <= places[:, None]))
        cos, sin = (x[:tokens] for x in self.table)
        q, k = rotate(query, cos, sin), rotate(key, cos, sin)
        return F.scaled_dot_product_attention(q, k, value, attn_mask=self.masks[tokens], scale=scale)


ARMS = {name: Arm(name) for name in ("full", "block", "sf", "s2_published", "s2_wrap_sink", "s2", "sf_fixed", "ms")}
TRIED = {
    "sf_returned_half": Arm("sf", {"return_ratio": 0.5}),
    "sf_sinks_32": Arm("sf", {"sinks": 32}),
    "sf_groups_of_half": Arm("sf", {"groups": 2}),
    "sf_all_moved": Arm("sf", {"shift_fraction": 1.0}),
    "sf_alternating": Arm("sf", alternate=True),
    "sf_spread_4": Arm("sf", spread=4),
    "sf_spread_16": Arm("sf", spread=16),
}
# What one step from the first to the second arm changes.
EFFECTS = {
    "leak (s2 to s2_published)": ("s2", "s2_published"),
    "leak with sinks (sf to s2_wrap_sink)": ("sf", "s2_wrap_sink"),
    "sinks on block": ("block", "sf_fixed"),
    "sinks on s2": ("s2", "sf"),
    "sinks on s2_published": ("s2_published", "s2_wrap_sink"),
    "moved heads without sinks": ("block", "s2"),
    "moved heads with sinks": ("sf_fixed", "sf"),
}


def tune(args: argparse.Namespace, arm: Arm, seed: int) -> Values:
    """Tune the base with one arm, then score it with full attention and with the arm's own.

    Returns:
        Nats per token of every document under full attention, their mean under the arm's own, the last losses.
    """
    torch.set_num_threads(args.threads)
    model, attention = toy.base_model(Path(args.model) / toy.BASE.name).train(), arm.attention()
    table = interpolated(model, args.tokens)
    install(model, attention)
    attention.table = table
    adam, schedule = toy.optimizer(model, args.learning_rate, 0.0, args.warmup, args.steps, least=0.1)
    generator = torch.Generator().manual_seed(args.seed + seed)
    told, last = harness.progress(f"{arm.kind} {seed}"), []
    for step in range(args.steps):
        loss = toy.losses(model, toy.documents(args.batch, args.tokens, generator)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        schedule.step()
        adam.zero_grad()
        last.append(loss.item())
        told(step + 1, args.steps)
    own = nats(model.eval(), attention, args)
    full = TrainingAttention("full")
    install(model, full)
    full.table = table
    scored = nats(model, full, args)
    uninstall(model)
    return {
        "arm": asdict(arm),
        "nats": [round(x, 5) for x in scored.tolist()],
        "own": round(float(own.mean()), 5),
        "trained_to": round(math.fsum(last[-20:]) / len(last[-20:]), 4),
    }


def untuned(args: argparse.Namespace) -> Values:
    """The base at the length it is tuned for, and at its own."""
    model, full = toy.base_model(Path(args.model) / toy.BASE.name).eval(), TrainingAttention("full")
    table = interpolated(model, args.tokens)
    install(model, full)
    full.table = table
    scored = nats(model, full, args)
    uninstall(model)
    short = toy.documents(args.documents, toy.BASE_TOKENS, torch.Generator().manual_seed(EVALUATION_SEED))
    with torch.no_grad():
        at_base = toy.losses(model, short).mean().item()
    return {"nats": [round(x, 5) for x in scored.tolist()], "at_its_own_length": round(at_base, 5)}


def interpolated(model, tokens: int) -> tuple[Tensor, Tensor]:
    """Rotary table of so many positions, each a quarter of its own."""
    return rope_table(model.model.rotary_emb.inv_freq / INTERPOLATED, tokens, 1.0, torch.float32)


@torch.no_grad()
def nats(model, attention: TrainingAttention, args: argparse.Namespace) -> Tensor:
    """[documents] mean nats per token; the same documents for every arm."""
    ids = toy.documents(args.documents, args.tokens, torch.Generator().manual_seed(EVALUATION_SEED))
    return torch.cat([toy.losses(model, part).mean(1) for part in ids.split(8)])


def check(args: argparse.Namespace) -> str | None:
    """The seam must give transformers' own losses, with the positions that transformers interpolates itself."""
    ids = toy.documents(2, args.tokens, torch.Generator().manual_seed(1))
    model, full = toy.base_model(Path(args.model) / toy.BASE.name).eval(), TrainingAttention("full")
    rotary, table = model.model.rotary_emb, interpolated(model, args.tokens)
    own = rotary.inv_freq
    with torch.no_grad():
        rotary.inv_freq = own / INTERPOLATED
        stock = toy.losses(model, ids)
        rotary.inv_freq = own
        install(model, full)
        full.table = table
        off = float((toy.losses(model, ids) - stock).abs().max())
    return None if off < 1e-3 else f"losses are {off:.4f} nats off transformers"


@dataclass(frozen=True)
class Losses:
    """Nats of every arm, [seeds, documents] each, paired in both."""

    by_arm: Mapping[str, Tensor]

    @classmethod
    def of(cls, parts: Mapping[str, Values]) -> "Losses":
        """Of the arms that have every seed that `full` has."""
        rows: dict[str, list[Tensor]] = {}
        for name, values in parts.items():
            if "arm" in values:
                rows.setdefault(name.rpartition("-")[0], []).append(torch.tensor(values["nats"], dtype=torch.float64))
        seeds = len(rows.get("full", ()))
        return cls({name: torch.stack(found) for name, found in rows.items() if len(found) == seeds})

    def drawn(self, draws: int = DRAWS) -> dict[str, Tensor]:
        """Mean nats of each arm over seeds and documents that are drawn again, the same ones for all arms: [draws]."""
        some = next(iter(self.by_arm.values()))
        generator = torch.Generator().manual_seed(0)
        seeds = torch.randint(some.shape[0], (draws, some.shape[0], 1), generator=generator)
        documents = torch.randint(some.shape[1], (draws, 1, some.shape[1]), generator=generator)
        return {name: values[seeds, documents].mean((1, 2)) for name, values in self.by_arm.items()}

    def mean(self, name: str) -> float:
        return float(self.by_arm[name].mean())


def share(block: Any, arm: Any, full: Any) -> Any:
    """R: how far an arm gets from block to full."""
    return (block - arm) / (block - full)


def interval(draws: Tensor) -> list[float]:
    """The middle 95%."""
    return [round(float(draws.quantile(q)), 4) for q in (0.025, 0.975)]


def finish(parts: Mapping[str, Values]) -> Values:
    """R of all arms, the gate, and what leak, sinks and moved heads do by themselves."""
    losses = Losses.of(parts)
    drawn = losses.drawn()
    arms = _arms(parts, losses, drawn)
    ours, theirs = (share(*(drawn[arm].exp() for arm in ("block", name, "full"))) for name in ("sf", "s2_published"))
    return {
        "arms": arms,
        "gate": {
            "r_sf_over_s2_published": round(arms["sf"]["r_perplexity"] - arms["s2_published"]["r_perplexity"], 4),
            "interval_95": interval(ours - theirs),
            "met": interval(ours - theirs)[0] > 0,
            "r_sf_at_least_0.8": arms["sf"]["r_perplexity"] >= 0.8,
        },
        "effects": _effects(losses, drawn),
        "ms_read_with_ms": _read_with_own(losses, arms, "ms"),
    }


def _read_with_own(losses: Losses, arms: Mapping[str, Values], name: str) -> Values | None:
    """R of an arm that is also read with its own attention, as the app reads with MS-Attn."""
    if name not in arms:
        return None
    nats = arms[name]["own"]
    ends = {arm: losses.mean(arm) for arm in ("block", "full")}
    return {
        "nats": nats,
        "r_perplexity": round(share(math.exp(ends["block"]), math.exp(nats), math.exp(ends["full"])), 4),
        "r_nats": round(share(ends["block"], nats, ends["full"]), 4),
    }


def _arms(parts: Mapping[str, Values], losses: Losses, drawn: Mapping[str, Tensor]) -> dict[str, Values]:
    points = {name: torch.tensor(losses.mean(name), dtype=torch.float64) for name in losses.by_arm}
    arms = {}
    for name in losses.by_arm:
        (r, r_drawn), (r_nats, n_drawn) = (
            [share(*(scale(x[arm]) for arm in ("block", name, "full"))) for x in (points, drawn)]
            for scale in (torch.exp, lambda x: x)
        )
        arms[name] = {
            "nats": round(losses.mean(name), 5),
            "perplexity": round(math.exp(losses.mean(name)), 4),
            "over_full": round(losses.mean(name) - losses.mean("full"), 5),
            "by_seed": [round(float(x), 5) for x in losses.by_arm[name].mean(1)],
            "own": round(_own(parts, name), 5),
            "r_perplexity": round(float(r), 4),
            "r_perplexity_95": interval(r_drawn),
            "r_nats": round(float(r_nats), 4),
            "r_nats_95": interval(n_drawn),
        }
    return arms


def _own(parts: Mapping[str, Values], arm: str) -> float:
    found = [values["own"] for name, values in parts.items() if name.rpartition("-")[0] == arm]
    return math.fsum(found) / len(found)


def _effects(losses: Losses, drawn: Mapping[str, Tensor]) -> Values:
    """Nats that each change takes away."""
    return {
        name: {
            "nats_less": round(losses.mean(before) - losses.mean(after), 5),
            "interval_95": interval(drawn[before] - drawn[after]),
            "by_seed": [round(float(x), 5) for x in (losses.by_arm[before] - losses.by_arm[after]).mean(1)],
        }
        for name, (before, after) in EFFECTS.items()
        if before in drawn and after in drawn
    }


def table(parts: Mapping[str, Values]) -> tuple[list[str], list[list[Any]]]:
    """The arms, best first, once block and full are known for every seed that is."""
    headings = ["arm", "nats", "over full", "R, perplexity", "95%", "R, nats", "95%", "own mask"]
    losses = Losses.of(parts)
    if not {"full", "block"} <= set(losses.by_arm):
        return headings, []
    arms = _arms(parts, losses, losses.drawn())
    rows = [
        [
            name, row["nats"], row["over_full"], row["r_perplexity"], _between(row["r_perplexity_95"]),
            row["r_nats"], _between(row["r_nats_95"]), row["own"],
        ]
        for name, row in sorted(arms.items(), key=lambda item: item[1]["nats"])
    ]  # fmt: skip
    return headings, rows


def _between(ends: Sequence[float]) -> str:
    return f"{ends[0]:.2f} to {ends[1]:.2f}"


def beats_block(args: argparse.Namespace) -> str | None:
    """What is wrong when full attention, tuned with the first seed, is not clearly better than blocks."""
    kept = [args.work / "tuning" / f"{arm}-0.json" for arm in ("full", "block")]
    full, block = (torch.tensor(json.loads(path.read_text(encoding="utf-8"))["values"]["nats"]) for path in kept)
    gap = float((block - full).mean())
    return None if gap > args.gap else f"full attention is {gap:.3f} nats better than blocks, {args.gap} are needed"


def main(argv: list[str] | None = None) -> int:
    """Measure; first full and block of one seed, and nothing else unless full attention is clearly better."""
    args = _arguments(argv)
    arms = ARMS | {name: TRIED[name] for name in args.tried}
    seconds = args.steps * STEP_S * args.batch * args.tokens / 4096
    parts = [
        Part(f"{name}-{seed}", seconds, partial(tune, args, arm, seed))
        for seed in range(args.seeds)
        for name, arm in arms.items()
    ]
    names = ("tokens", "steps", "batch", "learning_rate", "warmup", "documents", "seeds", "seed")
    settings = {name: getattr(args, name) for name in names} | {"interpolated": INTERPOLATED}
    benchmark = Benchmark(
        "tuning", settings, [Part("untuned", 5, partial(untuned, args)), *parts], table, finish, partial(check, args)
    )
    if args.estimate or args.only:
        return harness.main(benchmark, args)
    first = argparse.Namespace(**vars(args) | {"only": "full-0,block-0"})
    if code := harness.main(benchmark, first):
        return code
    if wrong := beats_block(args):
        print(f"{wrong}: nothing more is measured", file=sys.stderr)
        return 1
    return harness.main(benchmark, argparse.Namespace(**vars(args) | {"again": False}))


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.flags(__doc__, "tuning")
    parser.set_defaults(model=str(toy.BASE.parent))
    parser.add_argument("--tokens", type=int, default=1024, help="length of the documents tuned on (1024)")
    parser.add_argument("--steps", type=int, default=200, help="of each run (200)")
    parser.add_argument("--batch", type=int, default=4, help="documents in a step (4)")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--warmup", type=int, default=20, help="steps until the rate is reached (20)")
    parser.add_argument("--documents", type=int, default=48, help="scored, the same for all (48)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of every arm (3)")
    parser.add_argument("--gap", type=float, default=0.1, help="nats by which full must beat block (0.1)")
    parser.add_argument("--tried", type=_tried, default=(), help=f"further arms: all, or some of {', '.join(TRIED)}")
    args = parser.parse_args(argv)
    if args.quick:
        args.tokens, args.steps, args.batch, args.documents, args.seeds, args.gap = 64, 2, 1, 3, 2, -math.inf
    return args


def _tried(text: str) -> tuple[str, ...]:
    names = tuple(TRIED) if text == "all" else tuple(text.split(","))
    if unknown := [name for name in names if name not in TRIED]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not known; there are {', '.join(TRIED)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
