"""The bars that the model that ships is held to, and which of them a result of shipped.py meets."""

import json
import operator
from pathlib import Path

from benchmarks.harness import Values

FOUR_MILLION = 4_000_000
FIND = ("single", "multi-key", "multi-value", "multi-query")


def bars(middle: int, longest: int, values: Values) -> list[Values]:
    """What was reached beside what is wanted; `met` is None where it was not measured.

    Args:
        middle: length at which needles must be found and answers kept.
        longest: length that the effective lengths must reach.
        values: the result.
    """
    rows = {row["task"]: row for row in values["needles"] if row["tokens"] == middle}
    alone, evidence, elsewhere = values["questions"]["alone"], values["evidence"], values["elsewhere"]
    shown = evidence["top_3"] / evidence["right"] if evidence["right"] else None
    effective = {task: values["effective_tokens"].get(task) for task in FIND}
    reached = [
        (f"single at {middle:,} tokens, share right", rows.get("single", {}).get("accuracy"), ">=", 1.0),
        (f"multi-key at {middle:,} tokens, share right", rows.get("multi-key", {}).get("accuracy"), ">=", 0.95),
        (f"{values['pairs']['planted']:,} pairs, share right", values["pairs"]["accuracy"], ">=", 0.99),
        *((f"effective length, {task}", tokens or 0, ">=", longest) for task, tokens in effective.items()),
        ("F1 in the paragraph", alone["f1"], ">=", 15),
        (f"retention at {middle:,} tokens", values["retention"].get(str(middle)), ">=", 0.95),
        ("refusal F1 in the paragraph", alone["refusal_f1"], ">=", 70),
        ("points that refusing costs", alone["refusal_cost"], "<=", 3),
        ("evidence in the top 3, share of right answers", shown, ">=", 0.9),
        ("keys in 4M tokens, share right", elsewhere["keys_in_4m"], ">=", 1.0),
        ("perplexity varies, percent", elsewhere["perplexity_varies_percent"], "<=", 3),
        ("sinks and window worse on far evidence, nats", elsewhere["streaming_over_ours_nats"], ">", 0),
    ]
    return [
        {"what": what, "reached": found, "wanted": f"{sign} {bar:g}", "met": _met(found, sign, bar)}
        for what, found, sign, bar in reached
    ]


def _met(found: float | None, sign: str, bar: float) -> bool | None:
    if found is None:
        return None
    return {">": operator.gt, ">=": operator.ge, "<=": operator.le}[sign](found, bar)


def elsewhere(results: Path, weights: str) -> Values:
    """What length.py and perplexity.py measured of the same weights; None where they did not."""
    length, perplexity = (_kept(results / f"{name}.json", weights) for name in ("length", "perplexity"))
    rows = [row for part in length.get("parts", {}).values() for row in part["rows"] if row["tokens"] > FOUR_MILLION]
    return {
        "keys_in_4m": rows[-1]["keys_right"] / rows[-1]["keys_asked"] if rows else None,
        "perplexity_varies_percent": perplexity.get("varies_percent"),
        "streaming_over_ours_nats": (perplexity.get("made_streaming_over_ours") or {}).get("nats"),
    }


def _kept(path: Path, weights: str) -> Values:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return kept if kept.get("weights") == weights else {}
