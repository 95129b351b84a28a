"""The picture of reading time and decode speed by length, ours and the peers', from the results of `peers.py`.

pip install matplotlib
python benchmarks/plot.py
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.peers import OURS, side_by_side  # noqa: E402

RESULT, PICTURE = ROOT / "benchmarks" / "results" / "peers.json", ROOT / "docs" / "images" / "speed.png"
COLOURS = {OURS: "#0072B2", "transformers": "#D55E00", "llama.cpp": "#009E73"}  # Okabe and Ito: told apart by everyone
MARKS = {OURS: "o", "transformers": "s", "llama.cpp": "^"}
VARIANTS = {  # those that read the longest texts
    OURS: OURS,
    "transformers": "transformers bfloat16",
    "llama.cpp": "llama.cpp bfloat16, flash attention",
}
NAMES = {OURS: "Lectern", "llama.cpp": "llama.cpp, flash attention"}
Line = Sequence[tuple[int, float, bool]]  # (tokens, seconds or tokens per second, measured and not foretold)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--output", type=Path, default=PICTURE)
    args = parser.parse_args(argv)
    reading, decode = lines(json.loads(args.result.read_text(encoding="utf-8")))
    draw(reading, decode, args.output)
    return 0


def lines(result: Mapping[str, Any]) -> tuple[dict[str, Line], dict[str, Line]]:
    """(seconds of reading, tokens per second of decode) by contender; of each peer one variant, the same everywhere.

    Processor time, so that what else ran counts for nobody.
    """
    reading: dict[str, list[tuple[int, float, bool]]] = {kind: [] for kind in COLOURS}
    decode: dict[str, list[tuple[int, float, bool]]] = {kind: [] for kind in COLOURS}
    for tokens, contenders in side_by_side(result["parts"]).items():
        for kind, variant in VARIANTS.items():
            if run := contenders.get(variant):
                measured = "fitted_from" not in run
                reading[kind].append((tokens, run["read_processor_s"], measured))
                decode[kind].append((tokens, 1000 / run["step_processor_ms"], measured))
    rows = result["parts"]["decode"]["rows"]
    decode[OURS] = [(row["tokens"], 1000 / row["processor_ms"], True) for row in rows]
    return ({k: sorted(v) for k, v in reading.items() if v}, {k: sorted(v) for k, v in decode.items() if v})


def draw(reading: Mapping[str, Line], decode: Mapping[str, Line], path: Path) -> None:
    """Two panels, log-log, as PNG; what was not measured but foretold is dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 3.9), layout="constrained")
    for axes, data, title, label in (
        (panels[0], reading, "Reading a text", "seconds"),
        (panels[1], decode, "Writing the answer", "tokens per second"),
    ):
        for kind, points in data.items():
            measured = [point[:2] for point in points if point[2]]
            foretold = [*measured[-1:], *(point[:2] for point in points if not point[2])]
            style = {"color": COLOURS[kind], "marker": MARKS[kind], "linewidth": 2}
            axes.plot(*zip(*measured, strict=True), label=NAMES.get(kind, kind), **style)
            if len(foretold) > 1:
                axes.plot(*zip(*foretold, strict=True), linestyle="--", markerfacecolor="white", zorder=1, **style)
        axes.set(title=title, xlabel="tokens read", ylabel=label, xscale="log", yscale="log")
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks := sorted({tokens for points in data.values() for tokens, *_ in points}))
        axes.set_xticklabels([f"{n // 1024}K" if n < 1 << 20 else f"{n >> 20}M" for n in ticks])
        axes.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.grid(True, which="major", color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
    panels[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160, facecolor="white")
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
