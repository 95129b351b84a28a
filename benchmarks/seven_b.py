"""Tune a model of Llama-2-7B's shapes at 32,768 tokens on one GPU under a memory cap: {ms, sf, full} x {qkvo, ko}.

    python benchmarks/seven_b.py                 on a GPU; under ten minutes
    python benchmarks/seven_b.py --tiny          the same with a tiny model on the CPU

Weights are random: memory and time do not depend on what they are. Each arm takes a few steps on one repeated batch
with LoRA of rank 8, embeddings and norms, checkpointing and a loss in chunks. What does not fit under the first cap is
tried under the next. First every arm's gradients are compared with a reference that holds whole matrices.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

from app.eval import report
from app.kernels.ms_attn import ms_attention
from app.kernels.rope import rotate
from app.kernels.sf_attn import PATTERNS, allowed
from app.memory.config import AttentionConfig
from app.models.rope import PositionConfig
from app.runtime.attention import IdentityRotary
from app.train.tune.lora import causal_model, trained_parameters
from benchmarks import harness, machine, steps

ATTENTION, TARGETS = ("ms", "sf", "full"), ("qkvo", "ko")
STEPS = 5
WORST_GRADIENT = 1e-4
GB = 1e9
LLAMA_2_7B = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}
TINY = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
}
TINY_SELECTION = AttentionConfig(budget_tokens=64, region_tokens=8, merge=2, query_sub=2, key_sub=2, coarse_sub=4)


def main(argv: list[str] | None = None) -> int:
    """Measure; the exit code is 1 when a gradient is wrong, 2 without a GPU."""
    args = _arguments(argv)
    if not args.tiny and not torch.cuda.is_available():
        print("no GPU here: run it on one, or with --tiny", file=sys.stderr)
        return 2
    # The cap counts what the allocator holds, used or not; this keeps the two together. Read at CUDA's first use.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    device = torch.device("cpu" if args.tiny else "cuda")
    errors = {kind: gradient_error(kind, device) for kind in ATTENTION}
    if max(errors.values()) > WORST_GRADIENT:
        print(f"gradients are off the reference by {errors}: nothing is measured", file=sys.stderr)
        return 1
    rows = _measure(args, device)
    print(report.table(list(rows[0]), [list(row.values()) for row in rows]))
    result = {
        "benchmark": "seven_b",
        "settings": {"tokens": args.tokens, "steps": args.steps, "caps_gb": args.cap_gb, "tiny": args.tiny},
        "gradient_errors": errors,
        "rows": rows,
        "met": all(row["fits"] and row["loss_falls"] for row in rows if row["attention"] != "full")
        and {row["attention"] for row in rows} >= {"ms", "sf"},
        **machine.describe(),
    }
    print(json.dumps(result))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    new = args.output.with_suffix(".new")
    new.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    new.replace(args.output)
    return 0


def _measure(args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Every arm under the first cap that holds it; stops when the next arm would take too long."""
    rows, started, slowest = [], time.monotonic(), 0.0
    for kind in ATTENTION:
        for targets in TARGETS:
            for cap in args.cap_gb:
                began = time.monotonic()
                if rows and began - started + slowest > 60 * args.minutes:
                    print(f"{kind}, {targets}: left out, {args.minutes} minutes are over", file=sys.stderr)
                    return rows
                row = _arm(args, device, kind, targets, cap)
                slowest = max(slowest, time.monotonic() - began)
                rows.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
                if row["fits"]:
                    break
    return rows


def _arm(args: argparse.Namespace, device: torch.device, kind: str, targets: str, cap_gb: float) -> dict[str, Any]:
    row: dict[str, Any] = {"attention": kind, "targets": targets, "cap_gb": cap_gb, "fits": False}
    empty = {"peak_gb": None, "s_per_step": None, "tokens_per_s": None, "losses": [], "loss_falls": False}
    try:
        found = _steps(args, device, kind, targets, cap_gb)
    except torch.cuda.OutOfMemoryError:
        found = empty
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return row | found


def _steps(args: argparse.Namespace, device: torch.device, kind: str, targets: str, cap_gb: float) -> dict[str, Any]:
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap_gb * GB / whole))
        torch.cuda.reset_peak_memory_stats()
    stepper = _stepper(args, device, kind, targets)
    ids = torch.randint(stepper.adapted.config.vocab_size, (1, args.tokens), device=device)
    losses, seconds = [], []
    for _ in range(args.steps):
        began = time.perf_counter()
        losses.append(stepper.step(ids))  # gives a number, so the device is done
        seconds.append(time.perf_counter() - began)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        held = sum(p.numel() * p.element_size() for p in stepper.model.parameters())
        peak = held + steps.counted(lambda: stepper.step(ids))["peak_bytes"]
    median = statistics.median(seconds[1:] or seconds)
    return {
        "fits": peak <= cap_gb * GB,
        "peak_gb": round(peak / GB, 4),
        "s_per_step": round(median, 3),
        "tokens_per_s": round(args.tokens / median, 1),
        "losses": [round(loss, 4) for loss in losses],
        "loss_falls": losses[-1] < losses[0],
    }


def _stepper(args: argparse.Namespace, device: torch.device, kind: str, targets: str) -> steps.Stepper:
    torch.manual_seed(0)
    shapes = TINY if args.tiny else LLAMA_2_7B
    factor = args.tokens / shapes["max_position_embeddings"]
    config = steps.StepConfig(
        kind, args.tokens, targets=targets, positions=PositionConfig("ntk", (factor,)), learning_rate=1e-3
    )
    selection = TINY_SELECTION if args.tiny else AttentionConfig(budget_tokens=args.budget)
    model = new_model(shapes, device, torch.float32 if args.tiny else torch.bfloat16)
    return steps.Stepper(model, config, selection)


def new_model(shapes: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> LlamaForCausalLM:
    """Random weights, made where they are used and in their own data type: no copy in float32 ever exists."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlamaForCausalLM(LlamaConfig(**shapes, tie_word_embeddings=False))
    finally:
        torch.set_default_dtype(usual)


# --- the reference


def gradient_error(kind: str, device: torch.device, tokens: int = 203) -> float:
    """Largest difference of any gradient from that of whole attention matrices, whole logits and no checkpoint."""
    found, wanted = (_gradients(kind, device, tokens, reference) for reference in (False, True))
    assert max(float(x.abs().max()) for x in wanted.values()) > 100 * WORST_GRADIENT  # a comparison that says something
    return max(float((found[name] - wanted[name]).abs().max()) for name in wanted)


def _gradients(kind: str, device: torch.device, tokens: int, reference: bool) -> dict[str, Tensor]:
    torch.manual_seed(1)
    model = new_model(TINY, device, torch.float32)
    config = steps.StepConfig(kind, tokens, targets="qkvo", positions=PositionConfig("ntk", (8,)))
    stepper = steps.Stepper(model, config, TINY_SELECTION)
    parameters = trained_parameters(stepper.adapted)
    for name, parameter in parameters.items():
        if ".lora_B" in name:  # zero at first, so that nothing would reach lora_A
            nn.init.normal_(parameter, std=0.1)
    ids = torch.randint(TINY["vocab_size"], (2, tokens), device=device)
    if reference:
        causal = causal_model(stepper.adapted)
        _install_reference(causal, kind, stepper.attention.table)
        logits = causal(input_ids=ids, use_cache=False).logits[:, :-1]
        F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten()).backward()
    else:
        stepper.gradients(ids)
    return {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}


def _install_reference(model: nn.Module, kind: str, table: tuple[Tensor, Tensor]) -> None:
    """Attention by definition: MSA-1's oracle, or a softmax under the pattern's whole matrix."""
    cos, sin = table

    def attend(module, query, key, value, attention_mask, scaling, **kwargs):
        if kind == "ms":
            out = ms_attention(query, key, value, cos, sin, scale=scaling, options=TINY_SELECTION)
            return out.transpose(1, 2), None
        tokens, heads = query.shape[2:0:-1]
        if kind == "full":
            mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()
        else:
            mask = torch.stack([allowed(PATTERNS[kind], tokens, head, heads) for head in range(heads)])
        keys = rotate(key, cos, sin).repeat_interleave(heads // key.shape[1], 1)
        logits = rotate(query, cos, sin) @ keys.transpose(-1, -2) * scaling
        weights = logits.masked_fill(~mask.to(logits.device), float("-inf")).softmax(-1)
        return (weights @ value.repeat_interleave(heads // value.shape[1], 1)).transpose(1, 2), None

    AttentionInterface.register("benchmark_reference", attend)
    model.gradient_checkpointing_disable()
    model.set_attn_implementation("benchmark_reference")
    model.model.rotary_emb = IdentityRotary()


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--budget", type=int, default=4096, help="tokens that one query of ms attends to (4096)")
    parser.add_argument("--cap-gb", type=float, nargs="+", default=[40.0, 80.0], help="memory caps, tried in turn")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--minutes", type=float, default=9.0, help="arms that would end later are left out (9)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU: figures without worth")
    parser.add_argument("--output", type=Path, default=harness.RESULTS / "seven_b.json")
    args = parser.parse_args(argv)
    if args.tiny and args.tokens == parser.get_default("tokens"):
        args.tokens, args.cap_gb = 256, [0.1]
    return args


if __name__ == "__main__":
    sys.exit(main())
