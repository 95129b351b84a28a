"""What the benchmarks share: flags, engines, and parts that are measured one by one and merged when all are there.

A part that is done is kept in the work folder, so that a stop loses one part. The result file is written only when
every part was measured with the same weights and settings.
"""

import argparse
import hashlib
import json
import lzma
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app import system
from app.errors import ConfigError, InputError, LecternError
from app.eval import report, texts
from app.settings import SMALL_MODEL, Settings, fill
from benchmarks import machine

if TYPE_CHECKING:
    from app.runtime.engine import Engine
    from app.runtime.policies import Policy

RESULTS = Path(__file__).parent / "results"
READ_TOKENS_PER_S = 2600  # one core, 5 M parameters
STEP_S = 0.018  # one decoded token there
ANSWER_S = 16 * STEP_S + 0.1
PROGRESS_S = 10.0
NEAR_NATS = 0.05  # log-probabilities of the engine, perhaps in bfloat16, and of transformers in float32, on average

Values = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A piece of a benchmark that is measured and kept by itself.

    Attributes:
        seconds: estimate for one core of the reference machine.
    """

    name: str
    seconds: float
    run: Callable[[], Values]


@dataclass(frozen=True)
class Benchmark:
    """What one script measures.

    Attributes:
        settings: all that shapes the figures; a part measured with others is not merged.
        check: correctness, run first; returns what is wrong, or None.
        finish: from the values of all parts by name to what is told beside them, such as `{"met": ...}`.
        table: headings and rows of the parts that are there.
        details: values that stay with their part in the work folder, and out of the result.
    """

    name: str
    settings: Mapping[str, Any]
    parts: Sequence[Part]
    table: Callable[[Mapping[str, Values]], tuple[Sequence[str], Sequence[Sequence[Any]]]]
    finish: Callable[[Mapping[str, Values]], Values] = lambda parts: {}
    check: Callable[[], str | None] = lambda: None
    details: Sequence[str] = ()


def flags(description: str, name: str) -> argparse.ArgumentParser:
    """A parser with the flags that every benchmark takes."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--model", default=str(SMALL_MODEL), help="checkpoint folder (the small model that ships)")
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="PART,PART", help="measure these parts; a star ends a name")
    parser.add_argument("--again", action="store_true", help="measure parts again that are done")
    parser.add_argument("--quick", action="store_true", help="sizes of a test: a minute, and figures without worth")
    parser.add_argument("--estimate", action="store_true", help="print what each part would take, and stop")
    parser.add_argument("--work", type=Path, default=machine.ROOT / "runs" / "benchmarks", help="folder for parts")
    parser.add_argument("--output", type=Path, default=RESULTS / f"{name}.json")
    return parser


def engine(
    args: argparse.Namespace, policy: "str | Policy" = "keep-all", settings: Values | None = None, **attention: Any
) -> "Engine":
    """The model under a policy.

    Args:
        policy: one of the product by name, or one of our own.
        settings: more fields of Settings.
        attention: changes to the checkpoint's attention recipe, by the names of AttentionConfig.
    """
    from app.runtime.load import load_engine

    values = {"model": args.model, "device": args.device, "threads": args.threads, **(settings or {})}
    if attention or not isinstance(policy, str):
        return _variant(fill(Settings, environment={}, flags=values), policy, attention)
    return load_engine(fill(Settings, environment={}, flags=values | {"policy": policy}))


def _variant(settings: Settings, policy: "str | Policy", attention: Mapping[str, Any]) -> "Engine":
    """An engine whose attention recipe is not the checkpoint's, or whose policy has no name."""
    import torch
    from transformers import AutoTokenizer

    from app.models import checkpoint
    from app.models.folder import find_folder, read_config
    from app.runtime.engine import Engine

    folder = find_folder(settings.model, download=False)
    recipe = checkpoint.read_recipe(folder, read_config(folder), settings)
    recipe = replace(recipe, attention=replace(recipe.attention, **attention))
    device = checkpoint.pick_device(settings.device)
    torch.set_num_threads(settings.threads or 1)
    model = checkpoint.load_model(folder, settings, device, checkpoint.pick_dtype(device), recipe.rope)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Engine(model, tokenizer, recipe, policy=policy, name=folder.name, weights=weights(folder))


def trained_tokens(args: argparse.Namespace) -> int:
    """The length the model was trained on, without loading it."""
    from app.models import checkpoint
    from app.models.folder import find_folder, read_config

    folder = find_folder(args.model, download=False)
    return checkpoint.read_recipe(folder, read_config(folder), Settings(model=args.model)).trained_tokens


def weights(folder: str | Path) -> str:
    """Digest of a checkpoint's weights."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def prose(args: argparse.Namespace, files: Sequence[Path] | None) -> Path:
    """One file with the lines of all `files`; the sample book when there are none."""
    if not files:
        files = sorted((machine.ROOT / "samples").glob("*.txt"))
    lines = [line for path in files for line in texts.lines_of(path)]
    args.work.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256("\n".join(map(str, files)).encode()).hexdigest()[:12]
    path = args.work / f"prose-{name}.txt.xz"
    new = path.with_suffix(f".{os.getpid()}.new")  # another benchmark may be reading it
    new.write_bytes(lzma.compress("\n".join(lines).encode(), preset=0))
    new.replace(path)
    return path


def same_as_transformers(args: argparse.Namespace, tokens: int = 384) -> str | None:
    """Check that the engine predicts a short text as the stock model does; returns what is wrong."""
    import torch
    from transformers import AutoModelForCausalLM

    ours = engine(args)
    text = "\n".join(texts.lines_of(machine.ROOT / "tests" / "data" / "book.txt"))
    ids = texts.encode(ours, text[: 8 * tokens])[: min(tokens, ours.budget_tokens)]
    found = ours.log_probs(ids)
    stock = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = stock(torch.tensor([ids])).logits[0, :-1]
    wanted = torch.log_softmax(logits.float(), -1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
    off = float((found - wanted).abs().mean())
    return None if off < NEAR_NATS else f"log-probabilities are {off:.3f} nats off those of transformers"


def numbers(text: str) -> tuple[int, ...]:
    """The type of flags such as 1,4,16."""
    return tuple(int(word) for word in text.split(","))


def progress(what: str) -> Callable[[int, int], None]:
    """A callback that tells on stderr, now and then, how far `what` is."""
    started = time.monotonic()
    told = started

    def show(done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= PROGRESS_S and done:
            told = now
            left = (now - started) * (total - done) / done
            print(f"{what}: {done:,} of {total:,}, {left:.0f} s left", file=sys.stderr, flush=True)

    return show


def reading_s(tokens: float) -> float:
    """Estimated seconds to read so many tokens."""
    return tokens / READ_TOKENS_PER_S


def main(benchmark: Benchmark, args: argparse.Namespace) -> int:
    """Measure the parts that are asked for and not done, and merge when none is missing.

    Returns:
        The exit code: 1 when the check fails or something is wrong with the model, a file or a flag.
    """
    if args.estimate:
        rows = [[part.name, round(part.seconds / 60, 1)] for part in benchmark.parts]
        total = sum(part.seconds for part in benchmark.parts)
        print(report.table(["part", "minutes"], [*rows, ["all", round(total / 60, 1)]]))
        return 0
    system.keep_private()
    try:
        return _measure(benchmark, args)
    except LecternError as error:
        print(error, file=sys.stderr)
        return 1


def _measure(benchmark: Benchmark, args: argparse.Namespace) -> int:
    key = {"weights": weights(args.model), "quick": args.quick, "settings": _plain(benchmark.settings)}
    folder = args.work / benchmark.name
    folder.mkdir(parents=True, exist_ok=True)
    wanted = _chosen(benchmark.parts, args.only)
    todo = [part for part in wanted if args.again or _kept(folder, part.name, key) is None]
    if todo:
        wrong = benchmark.check()
        if wrong:
            print(f"{wrong}: nothing is measured", file=sys.stderr)
            return 1
    for part in todo:
        started = time.perf_counter()
        print(f"{part.name}: about {part.seconds / 60:.1f} minutes", file=sys.stderr, flush=True)
        values = {"values": part.run(), "seconds": round(time.perf_counter() - started, 1)}
        kept = {"key": key, **values, "machine": machine.describe()}
        _write(folder / f"{part.name}.json", kept)
    done = {part.name: kept for part in benchmark.parts if (kept := _kept(folder, part.name, key)) is not None}
    values = {name: kept["values"] for name, kept in done.items()}
    print(report.table(*benchmark.table(values)))
    missing = [part.name for part in benchmark.parts if part.name not in done]
    if missing:
        print(f"not measured yet: {', '.join(missing)}; no result is written", file=sys.stderr)
        return 0
    result = {
        "benchmark": benchmark.name,
        "model": Path(args.model).name,
        **key,
        **benchmark.finish(values),
        "parts": {
            name: {"seconds": kept["seconds"]} | {k: v for k, v in kept["values"].items() if k not in benchmark.details}
            for name, kept in done.items()
        },
        **done[benchmark.parts[-1].name]["machine"],
        "commits": sorted({kept["machine"]["commit"] for kept in done.values()}),
    }
    print(json.dumps(result))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    _write(args.output, result)
    return 0


def _chosen(parts: Sequence[Part], only: str | None) -> list[Part]:
    if only is None:
        return list(parts)
    chosen = []
    for name in only.split(","):
        found = [p for p in parts if p.name == name or name.endswith("*") and p.name.startswith(name[:-1])]
        if not found:
            raise ConfigError(f"--only {name}: no such part; there are {', '.join(p.name for p in parts)}")
        chosen += found
    return chosen


def _kept(folder: Path, name: str, key: Values) -> Values | None:
    """What was measured of a part before, when weights and settings are the same."""
    try:
        kept = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return kept if kept.get("key") == key else None


def _plain(settings: Mapping[str, Any]) -> Values:
    """Settings as JSON gives them back; of a file only its name."""
    return json.loads(json.dumps(settings, default=lambda value: value.name if isinstance(value, Path) else str(value)))


def _write(path: Path, values: Values) -> None:
    """Whole or not at all."""
    new = path.with_suffix(".new")
    try:
        new.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        new.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}; choose another folder") from error
