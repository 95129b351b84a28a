"""The two meanings of "64 times less": lengths that a model was never trained on, and the cost of one training step.

    python benchmarks/sixtyfour.py

(a) A model trained at L serves 64 L: taken from the results of passkey.py and perplexity.py, which measure it.
(b) One training step at L with MS-Attn against one at 64 L with full attention, in floating-point operations, bytes
and seconds. Full attention is measured at four sizes and fitted as aN + bN^2, bytes by the line through the two largest
(fused attention keeps nothing that grows with N^2); MS-Attn is measured up to 64 L, so that the two are also told at
the same length. What the same would be at the shapes of Llama-2-7B is computed, not measured.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import harness
from benchmarks.harness import Benchmark, Part, Values

TIMES = 64
RISE_PERCENT, VARY_PERCENT = 1.0, 3.0  # perplexity may rise and vary so much
COSTS = ("flops", "peak_bytes", "cpu_seconds")
SEVEN_B = {"layers": 32, "hidden": 4096, "linear_flops": 13.5e9}  # of one token's forward pass, weights alone


def main(argv: list[str] | None = None) -> int:
    """Measure; nothing is measured when the engine does not predict as transformers does."""
    args = _arguments(argv)
    names = ("length", "full", "ms", "budget", "targets", "seed")
    benchmark = Benchmark(
        "sixtyfour",
        {name: getattr(args, name) for name in names},
        _parts(args),
        _table,
        partial(_finish, args),
        check=partial(harness.same_as_transformers, args),
    )
    return harness.main(benchmark, args)


def _parts(args: argparse.Namespace) -> list[Part]:
    parts = []
    for kind, lengths in (("full", args.full), ("ms", args.ms)):
        for tokens in lengths:
            seconds = 8 * harness.reading_s(tokens) * (1 + (tokens / 20_000 if kind == "full" else 0.2))
            parts.append(Part(f"{kind}-{tokens}", seconds, partial(_cost, args, kind, tokens)))
    return parts


def _cost(args: argparse.Namespace, kind: str, tokens: int) -> Values:
    """What one step costs at one length."""
    import torch
    from transformers import AutoModelForCausalLM

    from app.models.checkpoint import pick_dtype
    from benchmarks import steps

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=pick_dtype(torch.device("cpu")))
    config = steps.StepConfig(kind, tokens, targets=args.targets, budget_tokens=args.budget)
    stepper = steps.Stepper(model, config)
    ids = torch.randint(model.config.vocab_size, (1, tokens))
    run = partial(stepper.step, ids)
    run()
    return {"tokens": tokens, **steps.timed(run, args.repeats if tokens <= 4096 else 1), **steps.counted(run)}


def fitted(costs: Mapping[int, float], tokens: int) -> Values:
    """a N + b N^2 through measured costs, by least squares of relative errors, and its value at `tokens`."""
    rows = [(n / cost, n * n / cost) for n, cost in costs.items()]
    xx, xy, yy = (sum(row[i] * row[j] for row in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    x, y = sum(row[0] for row in rows), sum(row[1] for row in rows)
    det = xx * yy - xy * xy
    a, b = (x * yy - y * xy) / det, (y * xx - x * xy) / det
    worst = max(abs((a * n + b * n * n) / cost - 1) for n, cost in costs.items())
    return {"a": a, "b": b, "worst_percent": round(100 * worst, 1), "value": a * tokens + b * tokens**2}


def lined(costs: Mapping[int, float], tokens: int) -> Values:
    """The line through the costs of the two largest sizes, and its value at `tokens`."""
    (n, low), (m, high) = sorted(costs.items())[-2:]
    slope = (high - low) / (m - n)
    return {"per_token": slope, "measured_at": [n, m], "value": high + slope * (tokens - m)}


def seven_b(tokens: int, budget: int) -> Values:
    """Forward operations of one text at Llama-2-7B's shapes: full and MS-Attn. Arithmetic, not a measurement."""
    linear = SEVEN_B["linear_flops"] * tokens
    per_key = 4 * SEVEN_B["layers"] * SEVEN_B["hidden"]
    full, ms = per_key * tokens * tokens / 2, per_key * tokens * budget
    return {
        "tokens": tokens,
        "budget_tokens": budget,
        "attention_pflop": {"full": round(full / 1e15, 2), "ms": round(ms / 1e15, 2)},
        "attention_ratio": round(full / ms, 1),
        "whole_model_ratio": round((full + linear) / (ms + linear), 1),
    }


def length_ratio(results: Path, times: int = TIMES) -> Values:
    """(a) from the kept results: were keys found and did perplexity hold at `times` the trained length?"""
    told: Values = {"times": times}
    passkeys = _kept(results / "passkey.json")
    if passkeys:
        ending = f"-{times}"
        rows = {name: part for name, part in passkeys["parts"].items() if name.endswith(ending) and "right" in part}
        told["keys"] = {name: [part["right"], part["trials"]] for name, part in rows.items()}
        told["all_found"] = bool(rows) and all(part["right"] == part["trials"] for part in rows.values())
    perplexity = _kept(results / "perplexity.json")
    if perplexity:
        told |= {name: perplexity[name] for name in ("rises_percent", "varies_percent")}
        told["stable"] = told["rises_percent"] <= RISE_PERCENT and told["varies_percent"] <= VARY_PERCENT
    told["met"] = bool(told.get("all_found") and told.get("stable"))
    return told


def _kept(path: Path) -> Values | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None


def _finish(args: argparse.Namespace, parts: Mapping[str, Values]) -> Values:
    far = TIMES * args.length if not args.quick else max(args.ms)
    full = {values["tokens"]: values for name, values in parts.items() if name.startswith("full-")}
    ms = {values["tokens"]: values for name, values in parts.items() if name.startswith("ms-")}
    fits = {}
    for cost in COSTS:
        fit = lined if cost == "peak_bytes" else fitted
        fits[cost] = fit({n: float(values[cost]) for n, values in full.items()}, far)
    short = min(ms)
    ratio = {cost: round(fits[cost]["value"] / ms[short][cost], 1) for cost in COSTS}
    same = {cost: round(fits[cost]["value"] / ms[far][cost], 2) for cost in COSTS}
    return {
        "length_ratio": length_ratio(harness.RESULTS),
        "full_fitted": {"tokens": far, "measured_at": sorted(full), **fits},
        "step_ratio": {"ms_tokens": short, "full_tokens": far, **ratio},
        "step_ratio_at_equal_length": {"tokens": far, **same},
        "llama_2_7b_computed": [seven_b(2**20, 4096), seven_b(2**20, 16_384)],
    }


def _table(parts: Mapping[str, Values]) -> tuple[Sequence[str], list[list[Any]]]:
    rows = [
        [name, f"{v['flops'] / 1e9:,.1f}", f"{v['peak_bytes'] / 2**20:,.0f}", v["seconds"], v["cpu_seconds"]]
        for name, v in parts.items()
    ]
    return ["step", "GFLOP", "peak MiB", "seconds", "of the processor"], rows


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.flags(__doc__, "sixtyfour")
    parser.add_argument("--length", type=int, default=1024, help="L, at which MS-Attn trains (1024)")
    parser.add_argument(
        "--full", type=harness.numbers, default=(1024, 2048, 4096, 8192), help="sizes of full attention"
    )
    parser.add_argument("--ms", type=harness.numbers, default=(1024, 4096, 16_384, 65_536), help="sizes of MS-Attn")
    parser.add_argument("--budget", type=int, default=512, help="tokens that one query attends to (512)")
    parser.add_argument("--targets", default="ko", help="LoRA targets (ko)")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of the shorter sizes (3)")
    args = parser.parse_args(argv)
    if args.quick:
        args.length, args.full, args.ms = 64, (64, 128, 192, 256), (64, 1024)
        args.budget, args.repeats = 384, 1
    return args


if __name__ == "__main__":
    sys.exit(main())
