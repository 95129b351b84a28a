"""Kernels: error against float64, then speed against the ceilings of the same machine in the same run, and peers.

On a GPU (under ten minutes): `python benchmarks/kernels.py`. Without one, `--interpret` writes the table of errors, of
the kernels in Triton's interpreter, to results/kernels-interpreter.json. A red check tells no speed.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.eval import report
from benchmarks import machine

if TYPE_CHECKING:
    import torch

    from benchmarks.cases import Operation, Shape

RESULTS = Path(__file__).parent / "results"
WORST = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}  # bfloat16 keeps 8 bits where float16 keeps 11
SECONDS = 0.5  # of measuring one way
REPEATS = (5, 50)  # fewest and most
ENOUGH_S = 540.0  # then what is left is left out, and named
TARGETS = (
    # what, of which operation at which length, the least ratio of ours to dense SDPA's
    ("FLOP/s", "selected prefill", 131072, 0.5),
    ("speed", "selected prefill", 131072, 5.0),
    ("speed", "selected training", 32768, 1.0),
)
MEASURED = ("ms", "spread", "TFLOP/s", "GB/s", "share")

SHARES = (  # of the ceiling, at least
    ("decode all, raw", 131072, 0.7),
    ("decode all, raw", 1048576, 0.7),
)

Values = dict[str, Any]


def operations() -> "Sequence[Operation]":
    """The registry: what is checked and measured, file by file."""
    from benchmarks import cases_decode, cases_prefill

    return *cases_prefill.OPERATIONS, *cases_decode.OPERATIONS


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interpret", action="store_true", help="only errors, in Triton's interpreter on the CPU")
    parser.add_argument("--only", help="operations whose names begin so")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    os.environ["LECTERN_KERNELS"] = "triton"
    if args.interpret:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
    import torch

    if not args.interpret and not torch.cuda.is_available():
        print("needs a CUDA device; --interpret writes the table of errors without one", file=sys.stderr)
        return 1
    chosen = [x for x in operations() if x.name.startswith(args.only or "")]
    started = time.perf_counter()
    result = {"benchmark": "kernels", **(_errors(chosen) if args.interpret else _speeds(chosen))}
    result |= {"seconds": round(time.perf_counter() - started, 1), **machine.describe(), "triton": _triton()}
    print(json.dumps(result))
    output = args.output or RESULTS / ("kernels-interpreter.json" if args.interpret else "kernels.json")
    if args.only is None or args.output:
        output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if result["right"] else 1


def _triton() -> str:
    import triton

    return triton.__version__


def _check(operation: "Operation", shape: "Shape", tokens: int, dtype: "torch.dtype", device: str) -> Values:
    """The error of one case against float64, and whether it is small enough."""
    from benchmarks.cases import relative

    case = operation.make(shape, tokens, dtype, device)
    error = relative(case.kernel(), case.exact())
    name = str(dtype).removeprefix("torch.")
    row = {"operation": operation.name, "shape": shape.name, "tokens": tokens, "dtype": name}
    return {**row, "error": error, "right": error <= WORST[name]}


def _errors(chosen: "Sequence[Operation]") -> Values:
    """The table of errors in the interpreter, with a few heads of each shape."""
    from benchmarks.cases import SHAPES

    rows = []
    for operation in chosen:
        for shape in dict.fromkeys(shape.tiny() for shape in SHAPES):
            for dtype in operation.dtypes:
                rows.append(_check(operation, shape, operation.tiny_tokens, dtype, "cpu"))
                print(f"{operation.name}, {shape.name}, {rows[-1]['dtype']}: {rows[-1]['error']:.1e}", file=sys.stderr)
    print(_error_table(rows))
    return {"right": all(row["right"] for row in rows), "worst": WORST, "errors": rows}


def _error_table(rows: Sequence[Values]) -> str:
    cells = [[row[x] for x in ("operation", "shape", "tokens", "dtype")] + [f"{row['error']:.1e}"] for row in rows]
    return report.table(["operation", "shape", "tokens", "dtype", "error"], cells)


def _speeds(chosen: "Sequence[Operation]") -> Values:
    """Errors on the device; then, of what is right, times, ceilings and targets."""
    import torch

    from benchmarks.cases import SHAPES

    errors, rows, skipped, ceilings = [], [], [], _ceilings()
    started = time.perf_counter()
    for operation in chosen:
        for shape in SHAPES:
            if time.perf_counter() - started > ENOUGH_S:
                skipped.append(f"{operation.name}, {shape.name}")
                continue
            errors.append(_check(operation, shape, operation.check_tokens, torch.bfloat16, "cuda"))
            if not errors[-1]["right"]:
                print(f"{operation.name}, {shape.name}: error {errors[-1]['error']:.1e}, not measured", file=sys.stderr)
                continue
            for tokens in operation.tokens:
                rows += _measure(operation, shape, tokens, ceilings)
                torch.cuda.empty_cache()
    targets = _targets(rows)
    print(_error_table(errors))
    headings = ["operation", "shape", "tokens", "way", *MEASURED]
    print(report.table(headings, [[row[x] for x in headings] for row in rows]))
    for target in targets:
        print(json.dumps(target))
    right = all(row["right"] for row in errors)
    return {
        "right": right,
        "ceilings": ceilings,
        "errors": errors,
        "rows": rows,
        "targets": targets,
        "skipped": skipped,
    }


def _ceilings() -> Mapping[str, float]:
    """What this GPU gives at best, measured now: FLOP/s of a large bfloat16 product, bytes/s of a copy."""
    import torch

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(1 << 30, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    product, copy = _times(lambda: a @ b), _times(lambda: target.copy_(source))
    return {"flops": 2 * 8192**3 / statistics.median(product), "bytes": 2 * (1 << 30) / statistics.median(copy)}


def _times(run: Callable[[], object]) -> list[float]:
    """Seconds of each of several runs, by the device's clock; the first two, which compile and warm up, left out."""
    import torch

    for _ in range(2):
        run()
    torch.cuda.synchronize()
    times: list[float] = []
    while len(times) < REPEATS[0] or (sum(times) < SECONDS and len(times) < REPEATS[1]):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return times


def _measure(operation: "Operation", shape: "Shape", tokens: int, ceilings: Mapping[str, float]) -> list[Values]:
    """A row for ours and for each peer; of one that fails, such as for lack of memory, what it says."""
    import torch

    from benchmarks.cases import Way

    case = operation.make(shape, tokens, torch.bfloat16, "cuda")
    rows = []
    for name, way in {"ours": Way(case.kernel, case.flops, case.bytes), **case.peers}.items():
        row: Values = {"operation": operation.name, "shape": shape.name, "tokens": tokens, "way": name}
        try:
            times = _times(way.run)
        except RuntimeError as error:  # what torch raises when memory is out or a kernel cannot run
            rows.append(
                row | {x: "" for x in ("ms", "spread", "TFLOP/s", "GB/s", "share")} | {"failed": str(error)[:300]}
            )
            continue
        median = statistics.median(times)
        rate = {"flops": way.flops / median, "bytes": way.bytes / median}
        row |= {"ms": round(median * 1e3, 3), "spread": f"{min(times) * 1e3:.3f}-{max(times) * 1e3:.3f}"}
        row |= {"TFLOP/s": round(rate["flops"] / 1e12, 1), "GB/s": round(rate["bytes"] / 1e9, 1)}
        rows.append(row | {"share": round(rate[operation.bound] / ceilings[operation.bound], 3)})
    return rows


def _targets(rows: Sequence[Values]) -> list[Values]:
    """What was aimed at, against dense SDPA or the ceiling, shape by shape, and what came out."""
    found = {(row["operation"], row["shape"], row["tokens"], row["way"]): row for row in rows if "failed" not in row}
    targets, shapes = [], list(dict.fromkeys(row["shape"] for row in rows))
    for what, operation, tokens, least in TARGETS:
        for shape in shapes:
            ours, dense = (found.get((operation, shape, tokens, way)) for way in ("ours", "dense SDPA"))
            if ours and dense:
                ratio = ours["TFLOP/s"] / dense["TFLOP/s"] if what == "FLOP/s" else dense["ms"] / ours["ms"]
                target = {"target": f"{what} of dense SDPA", "operation": operation, "tokens": tokens, "shape": shape}
                targets.append(target | {"least": least, "ratio": round(ratio, 2), "met": ratio >= least})
    for operation, tokens, least in SHARES:
        for row in (found.get((operation, shape, tokens, "ours")) for shape in shapes):
            if row:
                target = {"target": "share of the ceiling", "operation": operation, "tokens": tokens}
                target |= {"shape": row["shape"], "least": least, "ratio": row["share"], "met": row["share"] >= least}
                targets.append(target)
    return targets


if __name__ == "__main__":
    raise SystemExit(main())
