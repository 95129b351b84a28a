"""Which projections LoRA should have: {q,k,v,o}, pairs and k alone, with and without embeddings and norms.

    python benchmarks/targets.py

The base of the toy world (benchmarks/toy.py), of documents of 256 symbols, is tuned by `tuner.tune` at four
times its length, positions interpolated, every arm and seed on the same documents, with full attention and with
MS-Attn, and scored with the same attention on documents it never saw. Arms are compared at equal steps, then at equal
numbers of weights (rank doubled for pairs, four times for k alone). MS-Attn's paper says that reduced LoRA, {k,o} in
its derivation and {q,k} in its experiments, comes close to all four; the aim is 1% of perplexity.
"""

import argparse
import logging
import math
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from app.kernels.rope import rope_table
from app.memory.config import AttentionConfig
from app.models.rope import PositionConfig
from app.train.attention import TrainingAttention, install, uninstall
from app.train.tune.lora import causal_model, trained_parameters
from app.train.tune.recipe import LoraRecipe, Recipe, TuneConfig
from app.train.tune.tuner import tune
from benchmarks import harness, toy
from benchmarks.harness import Benchmark, Part, Values

INTERPOLATED = 4
STEP_S = 0.08  # of 1,024 tokens
DRAWS = 4000
EVALUATION_SEED = 1_000_003
CLOSE = 0.01  # of the perplexity of {q,k,v,o}
SELECTION = AttentionConfig(budget_tokens=256, region_tokens=16)


def _alone(targets: str) -> LoraRecipe:
    return LoraRecipe(targets, embeddings=False, norms=False)


ARMS: dict[str, LoraRecipe] = {
    **{targets: LoraRecipe(targets) for targets in ("qkvo", "ko", "qk", "qv", "k", "none")},
    **{f"{targets}_alone": _alone(targets) for targets in ("qkvo", "ko")},
    **{f"{targets}_rank_16": LoraRecipe(targets, rank=16, alpha=32.0) for targets in ("ko", "qk", "qv")},
    "k_rank_32": LoraRecipe("k", rank=32, alpha=64.0),
}
MS_ARMS = ("qkvo", "ko", "qk", "qkvo_alone")


def arms_of(attention: str, wanted: tuple[str, ...]) -> list[str]:
    """MS-Attn is slower here and has fewer."""
    return [arm for arm in (ARMS if attention == "full" else MS_ARMS) if not wanted or arm in wanted]


def measure(args: argparse.Namespace, attention: str, arm: str, seed: int) -> Values:
    """Tune with one arm and score it.

    Returns:
        Nats per token of every document, how many weights learnt, the last losses.
    """
    torch.set_num_threads(args.threads)
    values = {"tokens": args.tokens, "steps": args.steps, "batch": args.batch, "learning_rate": args.learning_rate}
    values |= {"warmup_steps": args.warmup, "schedule": "linear", "dtype": "float32", "checkpointing": False}
    recipe = Recipe(
        TuneConfig("toy", attention=attention, seed=seed, save_steps=args.steps, **values),
        ARMS[arm],
        selection=SELECTION if attention == "ms" else None,
        positions=PositionConfig("linear", (INTERPOLATED,), toy.BASE_TOKENS),
    )

    def batches(step: int, rows: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed((args.seed + seed) * 1_000_000 + step)
        return {"input_ids": toy.documents(rows, args.tokens, generator), "weights": torch.ones(rows, args.tokens)}

    with tempfile.TemporaryDirectory() as run:
        tuned = tune(recipe, batches, Path(run), model=toy.base_model(Path(args.model) / toy.BASE.name), device="cpu")
    return {
        "nats": nats(tuned.model, attention, args),
        "learning": sum(p.numel() for p in trained_parameters(tuned.model).values()),
        "trained_to": round(math.fsum(tuned.losses[-10:]) / len(tuned.losses[-10:]), 4),
    }


@torch.no_grad()
def nats(model: Any, attention: str, args: argparse.Namespace) -> list[float]:
    """Mean nats per token of each document; the same documents for every arm."""
    causal, seam = causal_model(model), TrainingAttention(attention, selection=SELECTION)
    seam.table = rope_table(causal.model.rotary_emb.inv_freq / INTERPOLATED, args.tokens, 1.0, torch.float32)
    ids = toy.documents(args.documents, args.tokens, torch.Generator().manual_seed(EVALUATION_SEED))
    install(causal, seam)
    scored = torch.cat([toy.losses(causal, part).mean(1) for part in ids.split(8)])
    uninstall(causal)
    return [round(x, 5) for x in scored.tolist()]


def untuned(args: argparse.Namespace) -> Values:
    """The base at the length it is tuned for."""
    model = toy.base_model(Path(args.model) / toy.BASE.name).eval()
    return {attention: nats(model, attention, args) for attention in args.attention}


@dataclass(frozen=True)
class Losses:
    """Nats of the arms of one attention, [seeds, documents] each, paired in both."""

    by_arm: Mapping[str, Tensor]

    @classmethod
    def of(cls, parts: Mapping[str, Values], attention: str) -> "Losses":
        """Of the arms that have every seed that qkvo has."""
        rows: dict[str, list[Tensor]] = {}
        for name, values in parts.items():
            kind, _, rest = name.partition("-")
            if kind == attention:
                found = torch.tensor(values["nats"], dtype=torch.float64)
                rows.setdefault(rest.rpartition("-")[0], []).append(found)
        seeds = len(rows.get("qkvo", ()))
        return cls({name: torch.stack(found) for name, found in rows.items() if len(found) == seeds})

    def over(self, arm: str, other: str) -> tuple[float, list[float]]:
        """Perplexity of an arm over another's, less 1, and the middle 95% over seeds and documents drawn again."""
        a, b = self.by_arm[arm], self.by_arm[other]
        generator = torch.Generator().manual_seed(0)
        seeds = torch.randint(a.shape[0], (DRAWS, a.shape[0], 1), generator=generator)
        documents = torch.randint(a.shape[1], (DRAWS, 1, a.shape[1]), generator=generator)
        drawn = (a - b)[seeds, documents].mean((1, 2)).exp() - 1
        ends = [round(float(drawn.quantile(q)), 5) for q in (0.025, 0.975)]
        return round(math.exp(float((a - b).mean())) - 1, 5), ends


def _rows(parts: Mapping[str, Values], attention: str) -> dict[str, Values]:
    """What is told of each arm of one attention."""
    losses = Losses.of(parts, attention)
    rows = {}
    for arm, values in losses.by_arm.items():
        share, ends = losses.over(arm, "qkvo")
        rows[arm] = {
            "learning": parts[f"{attention}-{arm}-0"]["learning"],
            "nats": round(float(values.mean()), 5),
            "perplexity": round(math.exp(float(values.mean())), 4),
            "over_qkvo": share,
            "over_qkvo_95": ends,
            "by_seed": [round(float(x), 5) for x in values.mean(1)],
        }
    return rows


def finish(attentions: tuple[str, ...], parts: Mapping[str, Values]) -> Values:
    """The arms, whether reduced LoRA is close, and what costs more: embeddings and norms, or half the targets."""
    told: Values = {}
    for attention in attentions:
        rows, losses = _rows(parts, attention), Losses.of(parts, attention)
        told[attention] = {
            "arms": rows,
            "within_1_percent": {pair: rows[pair]["over_qkvo_95"][1] <= CLOSE for pair in ("ko", "qk") if pair in rows},
        }
        if {"qkvo_alone", "ko"} <= set(rows):
            share, ends = losses.over("qkvo_alone", "ko")
            told[attention]["frozen_embeddings_over_half_the_targets"] = {"share": share, "interval_95": ends}
    return {"attentions": told}


def table(attentions: tuple[str, ...], parts: Mapping[str, Values]) -> tuple[list[str], list[list[Any]]]:
    """The arms of each attention, best first."""
    headings = ["attention", "targets", "weights", "nats", "perplexity", "over qkvo", "95%"]
    rows = []
    for attention in attentions:
        for arm, row in sorted(_rows(parts, attention).items(), key=lambda item: item[1]["nats"]):
            low, high = row["over_qkvo_95"]
            rows.append(
                [attention, arm, row["learning"], row["nats"], row["perplexity"], f"{row['over_qkvo']:.2%}",
                 f"{low:.2%} to {high:.2%}"]
            )  # fmt: skip
    return headings, rows


def check(args: argparse.Namespace) -> str | None:
    """Arms of equal size must be of equal size, and all attentions the same where everything fits the budget."""
    sizes = {}
    for arm in ("qkvo_alone", "ko_alone"):
        short = argparse.Namespace(**{**vars(args), "steps": 1, "tokens": 64, "documents": 2})
        found = [measure(short, attention, arm, 0) for attention in ("full", "block")]
        if found[0]["nats"] == found[1]["nats"]:
            return f"{arm}: blocks score as full attention does"
        sizes[arm] = found[0]["learning"]
    return None if sizes["qkvo_alone"] == 2 * sizes["ko_alone"] else f"{sizes}: pairs are not half of four"


def main(argv: list[str] | None = None) -> int:
    args = _arguments(argv)
    logging.getLogger("app.train").setLevel(logging.WARNING)
    parts = [
        Part(
            f"{attention}-{arm}-{seed}",
            args.steps * args.batch * args.tokens / 1024 * STEP_S,
            partial(measure, args, attention, arm, seed),
        )
        for attention in args.attention
        for seed in range(args.seeds)
        for arm in arms_of(attention, args.arms)
    ]
    names = ("tokens", "steps", "batch", "learning_rate", "warmup", "documents", "seed")
    settings = {name: getattr(args, name) for name in names} | {"interpolated": INTERPOLATED}
    benchmark = Benchmark(
        "targets",
        settings,
        [Part("untuned", 3, partial(untuned, args)), *parts],
        partial(table, args.attention),
        partial(finish, args.attention),
        partial(check, args),
    )
    return harness.main(benchmark, args)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.flags(__doc__, "targets")
    parser.set_defaults(model=str(toy.BASE.parent))
    parser.add_argument("--tokens", type=int, default=1024, help="length of the documents tuned on (1024)")
    parser.add_argument("--steps", type=int, default=100, help="of each run (100)")
    parser.add_argument("--batch", type=int, default=2, help="documents in a step (2)")
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--warmup", type=int, default=10, help="steps until the rate is reached (10)")
    parser.add_argument("--documents", type=int, default=32, help="scored, the same for all (32)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of every arm (3)")
    parser.add_argument("--attention", type=lambda text: tuple(text.split(",")), default=("full", "ms"))
    parser.add_argument("--arms", type=lambda text: tuple(text.split(",")), default=(), help="some, qkvo among them")
    args = parser.parse_args(argv)
    if args.quick:
        args.tokens, args.steps, args.batch, args.documents, args.seeds = 288, 2, 1, 2, 2
    return args


if __name__ == "__main__":
    sys.exit(main())
