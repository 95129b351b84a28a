"""Tune to four times the pretrained length by several methods of stretching positions, and test far beyond it.

    python benchmarks/positions.py

The base (keyworld.py) knows 256 tokens. Each arm tunes all its weights at 1,024 tokens, with the same documents in the
same order: `none`, `linear`, `ntk`, and `crd` (CRD NTK, factors 4 and 8) with both seams, by full attention; `sf`, two
forms of S2-Attn, and `ms` with NTK; `-longer` arms take three times the steps. Told are nats of phrases near the end
and the share of keys found, at original positions (dense attention over everything, out to 64 times the tuned length)
and at compact ones (MS-Attn in the product's engine). A key counts when all its symbols are the first choice. Regions
are scored by single tokens, not by means of four, so that positions are tested and not the selection.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.eval import report
from app.models.rope import PositionConfig, stretched
from benchmarks import harness
from benchmarks.harness import Benchmark, Part, Values

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from app.runtime.engine import Engine
    from benchmarks.keyworld import Document

BASE_RANGE, STRETCH = 256, 4
NEAR = 512  # tokens before the asked keys whose nats are told
FEWEST_FOUND = 0.9  # of the base's keys at its own length, or nothing is measured
SELECTION = {"query_sub": 1, "key_sub": 1, "coarse_sub": 1, "candidates": 1 << 14, "tree": "none"}
VARIANTS = {"m = 1": {"merge": 1}, "m = 2, budget 768": {"budget_tokens": 768}}  # read by `ntk` and `ms` too
LONG = 16_384  # beyond it one document is read, and only by these arms
LONG_ARMS = {"original": ("none", "linear", "ntk", "crd"), "compact": ("ntk", "crd")}
DENSE_S, READ_S = 2e-8, 1.5e-4  # seconds of one core: of one pair of tokens in dense attention, of one token read


@dataclass(frozen=True)
class Arm:
    """One way to tune, for `times` the steps."""

    name: str
    attention: str
    positions: PositionConfig
    times: int = 1


def _stretched(method: str, *factors: float, **more: Any) -> PositionConfig:
    return PositionConfig(method, factors, pretrained_tokens=BASE_RANGE, **more)


ARMS = (
    Arm("ntk", "full", _stretched("ntk", STRETCH)),
    Arm("crd", "full", _stretched("crd", STRETCH, 2 * STRETCH)),
    Arm("linear", "full", _stretched("linear", STRETCH)),
    Arm("none", "full", PositionConfig(pretrained_tokens=BASE_RANGE)),
    Arm("ms", "ms", _stretched("ntk", STRETCH)),
    Arm("sf", "sf", _stretched("ntk", STRETCH)),
    Arm("s2-published", "s2_published", _stretched("ntk", STRETCH)),
    Arm("s2", "s2", _stretched("ntk", STRETCH)),
    Arm("ntk-8", "full", _stretched("ntk", 2 * STRETCH)),
    Arm("crd-mask", "full", _stretched("crd", STRETCH, 2 * STRETCH, seam="mask")),
    Arm("ntk-longer", "full", _stretched("ntk", STRETCH), 3),
    Arm("sf-longer", "sf", _stretched("ntk", STRETCH), 3),
    Arm("s2-published-longer", "s2_published", _stretched("ntk", STRETCH), 3),
    Arm("s2-longer", "s2", _stretched("ntk", STRETCH), 3),
    Arm("linear-longer", "full", _stretched("linear", STRETCH), 3),
)


def main(argv: list[str] | None = None) -> int:
    """Measure; nothing is measured when the base does not find keys at its own length."""
    args = _arguments(argv)
    names = (
        "tokens",
        "steps",
        "batch",
        "rate",
        "budget",
        "original",
        "compact",
        "documents",
        "keys",
        "seed",
    )
    benchmark = Benchmark(
        "positions",
        {name: getattr(args, name) for name in names},
        [Part(arm.name, _seconds(args, arm), partial(_run, args, arm)) for arm in ARMS if arm.name in args.arms],
        _table,
        partial(_finish, args),
        check=partial(_check, args),
    )
    return harness.main(benchmark, args)


def _lengths(args: argparse.Namespace, arm: Arm) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Lengths read at original and at compact positions."""
    original, compact = (
        tuple(n for n in getattr(args, kind) if n <= LONG or arm.name in LONG_ARMS[kind])
        for kind in ("original", "compact")
    )
    if arm.times > 1:
        original = tuple(n for n in original if n < LONG)
    grouped = arm.times > 1 or arm.attention not in ("full", "ms")
    return (original[:1] if arm.attention == "ms" else original), (compact[:1] if grouped else compact)


def _count(args: argparse.Namespace, tokens: int) -> int:
    """Documents read at a length: the longer, the fewer."""
    return max(1 if tokens > LONG else 2, args.documents * args.tokens // tokens)


def _seconds(args: argparse.Namespace, arm: Arm) -> float:
    original, compact = _lengths(args, arm)
    training = 1.6e-4 * args.steps * arm.times * args.batch * args.tokens
    reading = sum(_count(args, n) * n * (n * DENSE_S + READ_S) for n in (*original, *compact))
    return training + reading


def _check(args: argparse.Namespace) -> str | None:
    from benchmarks import keyworld

    found = dense(keyworld.base_model(), _documents(BASE_RANGE, 8, 6, args.seed))
    share = found["right"] / found["trials"]
    return None if share >= FEWEST_FOUND else f"the base finds {share:.0%} of its keys at {BASE_RANGE} tokens"


def _run(args: argparse.Namespace, arm: Arm) -> Values:
    """Tune one arm and test it."""
    import torch

    from benchmarks import keyworld

    torch.set_num_threads(args.threads)
    model = keyworld.base_model()
    base = dict(model.config.rope_parameters)
    losses = tune(args, arm, model)
    values: Values = {"loss": round(sum(losses[-20:]) / len(losses[-20:]), 4), "original": {}}
    read_with(model, arm.positions, base)
    original, lengths = _lengths(args, arm)
    for tokens in original:
        values["original"][str(tokens)] = dense(model, _documents(tokens, _count(args, tokens), args.keys, args.seed))
        print(f"{arm.name}, {tokens} original: {values['original'][str(tokens)]}", file=sys.stderr, flush=True)
    values["dense_nats"] = _whole(args, partial(_dense_nats, model))
    engine = engine_of(model, args.budget)
    values["compact"] = _compact(args, arm, engine, lengths)
    values["ms_nats"] = _whole(args, partial(_ms_nats, engine))
    for name, changes in VARIANTS.items() if arm.name in ("ntk", "ms") else ():
        read_with(model, arm.positions, base)
        nats = partial(_ms_nats, engine_of(model, args.budget, **changes))
        values.setdefault("ms_nats_variants", {})[name] = _whole(args, nats)
    if len(arm.positions.factors) > 1:
        read_with(model, arm.positions, base, arm.positions.factors[0])
        values["compact_at_first_factor"] = _compact(args, arm, engine_of(model, args.budget), lengths[:2])
    return values


def _compact(args: argparse.Namespace, arm: Arm, engine: "Engine", lengths: Sequence[int]) -> dict[str, Values]:
    found = {}
    for tokens in lengths:
        found[str(tokens)] = compact(engine, _documents(tokens, _count(args, tokens), args.keys, args.seed))
        print(f"{arm.name}, {tokens} compact: {found[str(tokens)]}", file=sys.stderr, flush=True)
    return found


def tune(args: argparse.Namespace, arm: Arm, model: "LlamaForCausalLM") -> list[float]:
    """Train all weights; the model has its stock attention afterwards. Returns the losses."""
    from app.memory.config import AttentionConfig
    from app.train.attention import TrainingAttention, install, uninstall
    from app.train.tune.positions import PositionSampler, part_at
    from benchmarks import keyworld

    sampler = PositionSampler.of(arm.positions, model)
    chosen = AttentionConfig(budget_tokens=args.budget, **SELECTION) if arm.attention == "ms" else None
    attention = TrainingAttention(arm.attention, selection=chosen)
    install(model.train(), attention)

    steps = args.steps * arm.times

    def loss_at(step: int):
        draw = sampler.draw(step, steps, args.tokens, args.seed)
        ids = keyworld.batch(args.batch, args.tokens, keyworld.drawn(args.seed, step), args.keys)[:, : draw.tokens]
        attention.table = (draw.cos, draw.sin)
        attention.documents = part_at(draw.seam, None, len(ids), draw.tokens)
        nats = keyworld.next_nats(model, ids)
        if draw.seam is not None:
            nats[:, draw.seam - 1] = 0  # nobody can tell how a text begins
        return nats.mean()

    losses = keyworld.fit(model, loss_at, steps, args.rate, warmup=10)
    uninstall(model)
    model.eval()
    return losses


def read_with(
    model: "LlamaForCausalLM", positions: PositionConfig, base: Mapping[str, Any], factor: float | None = None
) -> None:
    """Give a model with stock attention the positions of inference, of another `factor` where one is given."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    head_dim = model.config.hidden_size // model.config.num_attention_heads
    model.config.rope_parameters = stretched(positions, base, head_dim, factor or positions.inference_factor)
    model.model.rotary_emb = LlamaRotaryEmbedding(model.config)


def engine_of(model: "LlamaForCausalLM", budget: int, **changes: Any) -> "Engine":
    """The product's engine over a model whose token ids are symbols; `changes` to the selection."""
    import torch

    from app.memory.config import AttentionConfig
    from app.models.checkpoint import Recipe
    from app.runtime.engine import Engine
    from benchmarks import keyworld

    attention = AttentionConfig(**{"budget_tokens": budget, **SELECTION, **changes})
    recipe = Recipe(attention=attention, trained_tokens=STRETCH * BASE_RANGE)
    return Engine(model, keyworld.tokenizer(), recipe, name="keyworld", kv_dtype=torch.float32)


def _documents(tokens: int, count: int, keys: int, seed: int) -> list["Document"]:
    from benchmarks import keyworld

    generators = (keyworld.drawn(seed + 1000, 100_000 * tokens + i) for i in range(count))
    return [keyworld.document(tokens, keys, generator, at_end=True) for generator in generators]


def dense(model: "LlamaForCausalLM", documents: Sequence["Document"]) -> Values:
    """Near nats and keys found, every token attending to all before it at original positions."""
    import torch

    rows = []
    with torch.inference_mode():
        for document in documents:
            hidden = model.model(input_ids=document.ids[None], use_cache=False).last_hidden_state[0]
            first = max(1, int(document.asked.min()) - NEAR)
            logs = torch.log_softmax(model.lm_head(hidden[first - 1 : -1]).float(), -1)
            rows.append(_scored(document, logs, first))
    return _summary(rows)


def compact(engine: "Engine", documents: Sequence["Document"]) -> Values:
    """The same as the product reads: in merged groups, and what is asked token by token."""
    import torch

    rows = []
    for document in documents:
        end = int(document.asked.min())
        ids, first = document.ids.tolist(), max(1, end - NEAR)
        near = -engine.log_probs(ids[:end], counted_from=first)
        start = (end - 1) // engine.shape.attention.group_tokens * engine.shape.attention.group_tokens
        cache, steps = engine.open_chat(tail=engine.read(ids[:start])), []
        with torch.no_grad():
            for place in range(start, len(ids) - 1):
                out = engine.model(input_ids=torch.tensor([[ids[place]]]), past_key_values=cache, use_cache=True)
                steps.append(torch.log_softmax(out.logits[0, -1].float(), -1))
        rows.append({**_scored(document, torch.stack(steps), start + 1), "near": float(near.mean())})
    return _summary(rows)


def _scored(document: "Document", logs: Any, first: int) -> Values:
    """Of one document, from log-probabilities [T - first, V] of the tokens from `first` on."""
    import torch

    from benchmarks.keyworld import KEY

    ids, end = document.ids, int(document.asked.min())
    nats = -logs.gather(-1, ids[first:, None])[:, 0]
    right = logs.argmax(-1) == ids[first:]
    told = document.asked[:, None] - first + torch.arange(1, KEY)  # [K, KEY - 1], what follows a key's first symbol
    near = float(nats[: end - first].mean()) if end > first else math.nan
    return {"near": near, "far": float(nats[told].mean()), "right": int(right[told].all(1).sum()), "trials": len(told)}


def _summary(rows: Sequence[Values]) -> Values:
    right, trials = (sum(row[name] for row in rows) for name in ("right", "trials"))
    means = {name: round(math.fsum(row[name] for row in rows) / len(rows), 4) for name in ("near", "far")}
    near = report.standard_error([row["near"] for row in rows])
    return {
        "documents": len(rows),
        "near_nats": means["near"],
        "near_standard_error": None if near is None else round(near, 4),
        "key_nats": means["far"],
        "right": right,
        "trials": trials,
        "lower_bound_95": round(report.lower_bound_95(right, trials), 4),
    }


def _whole(args: argparse.Namespace, nats: Any) -> list[float]:
    """Mean nats of the second half of documents of the tuned length, keys asked anywhere: one number a document."""
    from benchmarks import keyworld

    found = []
    for i in range(2 * args.documents):
        document = keyworld.document(args.tokens, args.keys, keyworld.drawn(args.seed + 2000, i))
        found.append(round(float(nats(document.ids).mean()), 6))
    return found


def _dense_nats(model: "LlamaForCausalLM", ids: Any) -> Any:
    import torch

    from benchmarks import keyworld

    with torch.inference_mode():
        return keyworld.next_nats(model, ids[None])[0, len(ids) // 2 - 1 :]


def _ms_nats(engine: "Engine", ids: Any) -> Any:
    return -engine.log_probs(ids.tolist(), counted_from=len(ids) // 2)


def _paired(ours: Sequence[float], theirs: Sequence[float]) -> Values:
    """Perplexity of ours over theirs, document by document."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean, error = math.fsum(differences) / len(differences), report.standard_error(differences)
    return {
        "percent": round(100 * math.expm1(mean), 3),
        "standard_error_nats": None if error is None else round(error, 5),
        "documents": len(differences),
    }


def _finish(args: argparse.Namespace, parts: Mapping[str, Values]) -> Values:
    """Perplexity at the tuned length, read with MS-Attn, over that of full attention in tuning and reading."""
    if not {"ntk", "ms"} <= set(parts):
        return {}
    dense, found = parts["ntk"]["dense_nats"], {}
    for name, title in (("ntk", "tuned with full attention"), ("ms", "tuned with ms")):
        read = {f"m = 2, budget {args.budget}": parts[name]["ms_nats"], **parts[name]["ms_nats_variants"]}
        found[title] = {variant: _paired(nats, dense) for variant, nats in read.items()}
    return {"ms_over_tuned_and_read_dense_at_tuned_length": found}


def _table(parts: Mapping[str, Values]) -> tuple[list[str], list[list[Any]]]:
    rows = []
    for name, values in parts.items():
        for kind in ("original", "compact", "compact_at_first_factor"):
            for tokens, found in values.get(kind, {}).items():
                keys = f"{found['right']} of {found['trials']}"
                rows.append([name, kind, int(tokens), keys, found["key_nats"], found["near_nats"]])
    return ["arm", "positions", "tokens", "keys", "key nats", "near nats"], rows


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    from benchmarks.keyworld import BASE

    parser = harness.flags(__doc__, "positions")
    parser.set_defaults(model=str(BASE.parent))
    parser.add_argument("--tokens", type=int, default=STRETCH * BASE_RANGE, help="length to tune at (1024)")
    parser.add_argument("--steps", type=int, default=80, help="of tuning (80)")
    parser.add_argument("--batch", type=int, default=4, help="documents of a step (4)")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate (1e-3)")
    parser.add_argument("--budget", type=int, default=512, help="tokens one query attends to with MS-Attn (512)")
    lengths = (1024, 1280, 1536, 2048, 4096, 16_384, 65_536)
    parser.add_argument("--original", type=harness.numbers, default=lengths)
    parser.add_argument("--compact", type=harness.numbers, default=tuple(1024 * 4**i for i in range(4)))
    parser.add_argument("--arms", type=lambda words: words.split(","), default=[arm.name for arm in ARMS])
    parser.add_argument("--documents", type=int, default=8, help="at the tuned length; fewer of longer ones (8)")
    parser.add_argument("--keys", type=int, default=16, help="of a document (16)")
    args = parser.parse_args(argv)
    if args.quick:
        args.steps, args.batch, args.documents, args.keys = 2, 1, 1, 4
        args.tokens, args.budget, args.original, args.compact = 512, 384, (512,), (640,)
    return args


if __name__ == "__main__":
    sys.exit(main())
