"""Passkey over lengths and policies: accuracy, time and memory, as a table, one JSON line and one file.

    python benchmarks/passkey.py --times-trained 4,16,64 --per-reading 10

`streaming` (sinks and window) is the control: it forgets, so it must fail beyond its window.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app import privacy
from app.eval import passkey, report
from app.eval.passkey import PasskeyConfig
from app.process import peak_bytes
from app.settings import Settings, fill
from benchmarks import machine

NEEDED = 0.9


def main() -> int:
    """Measure; the exit code is 1, and no speed is told, when the model fails at its trained length."""
    args = _arguments()
    privacy.apply()
    flags = {"model": args.model, "device": args.device, "threads": args.threads}
    settings = fill(Settings, flags=flags)
    config = PasskeyConfig(
        (1,),
        args.trials,
        args.per_reading,
        args.filler,
        args.filler_file if args.filler == "prose" else None,
        args.seed,
    )
    runs: list[dict[str, Any]] = []
    started = time.monotonic()
    for policy in args.policies.split(","):
        from app.runtime.engine import load_engine

        engine = load_engine(replace(settings, policy=policy))
        if policy == "keep-all":
            sound = passkey.summary(list(passkey.run(engine, replace(config, lengths=(engine.trained_tokens,)))))
            if sound["accuracy"] < NEEDED:
                print(f"accuracy {sound['accuracy']} at the trained length: nothing more is measured", file=sys.stderr)
                return 1
        for times in map(int, args.times_trained.split(",")):
            if time.monotonic() - started > 60 * args.minutes:
                print(f"{policy}, {times} times: left out, {args.minutes} minutes are over", file=sys.stderr)
                continue
            runs.append({"policy": policy, "times": times} | _measure(engine, config, times))
            print(f"{policy}, {times} times: accuracy {runs[-1]['accuracy']}", file=sys.stderr)
    result = {"benchmark": "passkey", "model": Path(settings.model).name, "config": _plain(config), "runs": runs}
    result |= machine.describe()
    columns = ["policy", "times", "tokens", "accuracy", "lower_bound_95", "seconds", "tokens_per_s", "peak_bytes"]
    print(report.table(columns, [[run[name] for name in columns] for run in runs]))
    print(json.dumps(result))
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def _measure(engine: Any, config: PasskeyConfig, times: int) -> dict[str, Any]:
    started = time.perf_counter()
    cells = list(passkey.run(engine, replace(config, lengths=(times * engine.trained_tokens,))))
    seconds = time.perf_counter() - started
    values = passkey.summary(cells)
    (length,) = values.pop("lengths")
    tokens = length["document_tokens"] * -(-config.trials // config.per_reading)
    return {
        "tokens": length["document_tokens"],
        **values,
        "seconds": round(seconds, 2),
        "tokens_per_s": round(tokens / seconds, 1),
        "peak_bytes": peak_bytes(),
    }


def _plain(config: PasskeyConfig) -> dict[str, Any]:
    values = asdict(config) | {"filler_file": config.filler_file and config.filler_file.name}
    del values["lengths"]
    return values


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="checkpoint folder; the small model that ships when not given")
    parser.add_argument("--times-trained", default="1,4,16", help="lengths as multiples of the trained one")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--per-reading", type=int, default=10)
    parser.add_argument("--filler", choices=("repeat", "prose"), default="repeat")
    parser.add_argument("--filler-file", type=Path)
    parser.add_argument("--policies", default="keep-all,streaming")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--minutes", type=float, default=9, help="no new length is begun after this")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "passkey.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
