"""How long a start takes until the page answers: seconds of several starts, as a table, one JSON line and one file.

    python benchmarks/start.py --runs 5

The first start makes the data folder and is not counted. Each start is a process of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.eval import report
from app.settings import SMALL_MODEL
from benchmarks import machine

LIMIT_S = 120


def main() -> int:
    """Measure; the exit code is 1 when the page or the model does not come up."""
    args = _arguments()
    load_before = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "app.cli", "serve", "--no-browser", "--port", "0", "--home", home]
        command += ["--model", args.model] if args.model else []
        runs = [_start(command, Path(home)) for _ in range(args.runs + 1)][1:]
    rows = [
        [name, *(run[name] for run in runs), round(statistics.median(run[name] for run in runs), 2)]
        for name in ("health_s", "page_s", "model_s")
    ]
    summary = {
        row[0]: {"median": row[-1], "least": min(row[1:-1]), "most": max(row[1:-1]), "runs": row[1:-1]} for row in rows
    }
    result = {"benchmark": "start", "load_before": load_before, **summary, **machine.describe()}
    print(report.table(["until", *(f"run {i + 1}" for i in range(args.runs)), "median"], rows))
    print(json.dumps(result))
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def _start(command: list[str], home: Path) -> dict[str, float]:
    """Seconds until /health answers, the page is there, and the model is loaded."""
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=machine.ROOT, stderr=subprocess.PIPE, text=True)
    try:
        url = _wait(process, started, lambda: json.loads((home / "owner.json").read_text(encoding="utf-8"))["url"])
        base = url.partition("?")[0]  # without the key of this start, which /health does not need
        health = _wait(process, started, lambda: json.loads(_get(base + "health")))
        health_s = time.perf_counter() - started
        page = _get(url)
        page_s = time.perf_counter() - started
        if health["app"] != "lectern" or "Lectern" not in page:
            raise SystemExit(f"{base}: this is not the page of Lectern")
        state = _wait(process, started, lambda: _settled(json.loads(_get(base + "health"))["model"]))
        model_s = time.perf_counter() - started
        if state["state"] != "ready":
            raise SystemExit("the model did not load")
    finally:
        process.terminate()
        process.wait(timeout=LIMIT_S)
        process.stderr.close()
    return {"health_s": round(health_s, 2), "page_s": round(page_s, 2), "model_s": round(model_s, 2)}


def _wait(process: subprocess.Popen, started: float, look: Any) -> Any:
    """What `look` finds, asked again and again while it finds nothing."""
    while time.perf_counter() - started < LIMIT_S:
        if process.poll() is not None:
            raise SystemExit(f"the server ended: {process.stderr.read().strip()}")
        try:
            if found := look():
                return found
        except (OSError, ValueError):
            pass
        time.sleep(0.02)
    raise SystemExit(f"nothing after {LIMIT_S} seconds")


def _settled(model: dict[str, str]) -> dict[str, str] | None:
    return None if model["state"] == "loading" else model


def _get(url: str) -> str:
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())  # the key becomes a cookie
    with browser.open(url, timeout=LIMIT_S) as answer:
        return answer.read().decode()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--model", default=str(SMALL_MODEL), help="checkpoint folder (the small model that ships)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "start.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
