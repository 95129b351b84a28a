"""Which training makes cheap region summaries find things: dense, MS-Attn, or dense with the loss on region scores.

    python benchmarks/summaries.py --start FOLDER --data DATA --file BOOK

Each arm goes on from the same checkpoint over the same samples; then keys of one form are asked of a long text whose
regions are scored by fine means, by coarse ones and by the paper's plain averages. FOLDER is a checkpoint that was
never trained for region scores, such as version 1 of models/lectern-small; DATA is what `train` takes.
"""

import argparse
import random
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.eval import needles
from app.settings import SHIPPED_MODEL
from benchmarks import harness
from benchmarks.harness import Benchmark, Part, Values
from benchmarks.regions import keys

BATCH = 2
SHARES = {"text": 0.3, "passkey": 0.45, "pairs": 0.25}
LEARNING_RATE = 5e-4
ARMS: dict[str, Values] = {
    "start": {},
    "dense": {},
    "region-loss": {"region_loss": 0.3},
    "ms": {"attention": "ms"},
}
SCORES: dict[str, Values] = {
    "max over means of 4": {},
    "max over means of 16": {"query_sub": 16, "key_sub": 16},
    "plain means": {"query_sub": 64, "key_sub": 64, "coarse_sub": 64},
}
STEP_S = 2.5  # of training, on one core


def main(argv: list[str] | None = None) -> int:
    """Measure; nothing is measured when the engine does not predict as transformers does."""
    args = _arguments(argv)
    asking = len(SCORES) * (harness.reading_s(args.tokens) + args.questions * harness.ANSWER_S)
    benchmark = Benchmark(
        "summaries",
        {name: getattr(args, name) for name in ("file", "tokens", "questions", "trained", "steps", "budget", "seed")},
        [Part(arm, asking + (arm != "start") * args.steps * STEP_S, partial(_measure, args, arm)) for arm in ARMS],
        _table,
        check=partial(harness.same_as_transformers, args),
    )
    return harness.main(benchmark, args)


def _measure(args: argparse.Namespace, arm: str) -> Values:
    folder = Path(args.model) if arm == "start" else _train(args, arm)
    found = {}
    for name, settings in SCORES.items():
        engine = harness.engine(
            argparse.Namespace(**{**vars(args), "model": str(folder)}), budget_tokens=args.budget, **settings
        )
        asked = needles.summary(list(needles.run(engine, keys(args))))
        found[name] = {key: asked[key] for key in ("right", "trials", "lower_bound_95")}
    return {"arm": arm, "scores": found}


def _train(args: argparse.Namespace, arm: str) -> Path:
    """Go on from the start by one arm; a folder with a plain checkpoint."""
    from transformers import AutoTokenizer

    from app.memory.config import AttentionConfig, DecodeConfig
    from app.train.cli import export, sample_maker
    from app.train.pretrain.trainer import PretrainConfig, Stage, pretrain

    changes = dict(ARMS[arm])
    stage = Stage(args.trained, BATCH, args.steps, SHARES, region_loss=changes.pop("region_loss", 0.0))
    config = PretrainConfig(
        start=str(args.model),
        learning_rate=LEARNING_RATE,
        warmup_steps=min(20, args.steps),
        seed=args.seed,
        stages=(stage,),
        budget_tokens=args.budget,
        **changes,
    )
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    folder = args.work / "summaries" / f"{arm}-{random.Random(str(config)).randrange(10**9)}"
    model = pretrain(
        config, sample_maker(args.data, "train", tokenizer, args.work / "cache"), tokenizer, folder / "run"
    )
    export(model, tokenizer, config, AttentionConfig(budget_tokens=args.budget), DecodeConfig(), folder, config.steps)
    tokenizer.save_pretrained(folder)
    return folder


def _table(parts: Mapping[str, Values]) -> tuple[list[str], list[list[Any]]]:
    rows = [
        [arm, *(f"{found['right']} of {found['trials']}" for found in values["scores"].values())]
        for arm, values in parts.items()
    ]
    return ["training", *SCORES], rows


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.flags(__doc__, "summaries")
    parser.add_argument("--start", dest="model", help="a checkpoint of ours that the arms go on from")
    parser.add_argument("--data", type=Path, required=True, help="folder with books/, qa/ and code/")
    parser.add_argument("--file", type=Path, action="append", help="a book not trained on; repeat for several")
    parser.add_argument("--tokens", type=int, default=16_384, help="tokens of the text that is asked (16384)")
    parser.add_argument("--questions", type=int, default=20, help="keys in the text, each asked (20)")
    parser.add_argument("--trained", type=int, default=2048, help="tokens of each training sequence (2048)")
    parser.add_argument("--steps", type=int, default=80, help="training steps of each arm (80)")
    parser.add_argument("--budget", type=int, default=1024, help="tokens to a query (1024)")
    args = parser.parse_args(argv)
    args.model = args.model or str(SHIPPED_MODEL)
    if args.quick:
        args.tokens, args.questions, args.trained, args.steps, args.budget = 600, 1, 512, 1, 384
    return args


if __name__ == "__main__":
    sys.exit(main())
