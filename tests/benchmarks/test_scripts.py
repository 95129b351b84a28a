"""Each script runs whole at the size of a test, and its figures can come out both ways."""

import json
import math
import random
from pathlib import Path

import pytest

from app.eval import needles, texts
from benchmarks import attached, controls, evidence, h2o, knows, length, passkey, perplexity, store
from benchmarks import needles as table
from tests import tiny
from tests.eval.fake_engine import FakeEngine
from tests.eval.test_needles import oracle

BOOK = Path(__file__).resolve().parents[1] / "data" / "book.txt"


def result(script, flags: list[str], *more: str) -> dict:
    assert script.main([*flags, "--file", str(BOOK), *more]) == 0
    return json.loads(Path(flags[flags.index("--output") + 1]).read_text(encoding="utf-8"))


def test_passkey(quick: list[str]) -> None:
    values = result(passkey, quick, "--needed", "0")
    parts = values["parts"]
    ours = ["single-repeat-25", "single-prose-25", "spread-30-0-0", "labelled-30"]
    assert list(parts) == [*ours, "control-streaming", "control-random"]
    assert parts["spread-30-0-0"]["book"] == BOOK.name
    assert values["spread"]["by_seed"] == {"0": values["spread"]["right"]}
    assert values["controls_failed"] and not values["all_found"]
    assert parts["labelled-30"]["trials"] == 2 and parts["single-prose-25"]["distractors"] == 8
    assert parts["single-repeat-25"]["marks"][-1]["tokens"] <= 25 * 64


def test_passkey_needs_a_model_that_finds_keys_at_all(quick: list[str], capsys: pytest.CaptureFixture) -> None:
    assert passkey.main([*quick, "--file", str(BOOK)]) == 1
    assert "at the trained length: nothing is measured" in capsys.readouterr().err


def test_passkey_verdicts() -> None:
    good = {"right": 2, "trials": 2, "accuracy": 1.0}
    bad = {"right": 0, "trials": 2, "accuracy": 0.0}
    told = passkey._finish({"single": good, "control-random": bad})
    assert told == {"all_found": True, "controls_failed": True, "spread": None}
    told = passkey._finish({"single": bad, "control-random": good})
    assert told == {"all_found": False, "controls_failed": False, "spread": None}


def test_passkey_tells_how_far_books_and_seeds_lie_apart() -> None:
    drawn = [("a", 0, 10), ("b", 0, 7), ("a", 1, 9), ("b", 1, 10)]
    parts = {
        f"spread-64-{book}-{seed}": {"book": book, "drawn": seed, "right": right, "trials": 10, "accuracy": right / 10}
        for book, seed, right in drawn
    }
    told = passkey._finish(parts)["spread"]
    assert (told["readings"], told["right"], told["trials"]) == (4, 36, 40)
    assert (told["worst"], told["median"], told["best"]) == (7, 9.5, 10)
    assert told["by_book"] == {"a": 19, "b": 17} and told["by_seed"] == {"0": 17, "1": 19}
    assert 0.7 < told["lower_bound_95"] < 0.9


def test_needles(quick: list[str]) -> None:
    values = result(table, quick)
    assert list(values["parts"]) == ["keep-all-2000", "streaming-2000"]
    rows = values["parts"]["keep-all-2000"]["rows"]
    assert [(row["task"], row["trials"], row["second"]["trials"]) for row in rows] == [
        ("multi-key", 1, 1),
        ("uuid", 1, 1),
        ("tracking", 1, 1),
    ]


def test_perplexity(quick: list[str]) -> None:
    values = result(perplexity, quick)
    assert set(values["perplexity"]) == {"64", "256"}
    assert values["over_dense"]["nats"] == pytest.approx(0, abs=1e-3)  # all of it fits
    assert abs(values["step_over_m2"]["nats"]) < 1 and values["step_over_m2"]["documents"] == 1
    assert values["made_streaming_over_ours"]["documents"] == 2


def test_paired_differences() -> None:
    ours, theirs = {"a": 1.0, "b": 2.0, "c": 3.0, "x": 9.0}, {"a": 1.1, "b": 2.2, "c": 3.3}
    found = perplexity.paired(ours, theirs)
    assert found["documents"] == 3 and found["nats"] == pytest.approx(0.2)
    assert found["standard_error"] == pytest.approx(0.1 / math.sqrt(3), abs=1e-6)
    assert found["errors"] == pytest.approx(3.46, abs=0.01) and found["percent"] == pytest.approx(22.14, abs=0.01)
    assert perplexity.paired(ours, {}) is None


def test_steps_of_one_token_are_those_of_a_dense_reading_while_all_fits() -> None:
    engine, ids = tiny.engine(), tiny.token_ids(60)
    alone = perplexity.stepwise(engine, ids, 40)
    assert alone.tolist() == pytest.approx(engine.log_probs(ids, counted_from=40).tolist(), abs=1e-4)


@pytest.mark.bench
def test_a_made_document_repeats_what_stood_far_back() -> None:
    engine = tiny.engine()
    ids, repeated = perplexity.make(engine, texts.lines_of(BOOK), 12_000, seed=1)
    text, end = engine.decode(ids[:repeated]), engine.decode(ids[repeated:])
    lines = end.strip().splitlines()
    assert len(lines) == 2 * perplexity.FACTS and all(line in text[: len(text) // 2] for line in lines)
    assert sum("The value of" in line for line in lines) == perplexity.FACTS


def test_attached(quick: list[str]) -> None:
    values = result(attached, quick)
    assert values["facts"] == 2 and set(values["points"]) == set(attached.WAYS)


def test_attached_tells_a_loss() -> None:
    lines = ["Another quiet line of a book about the sea."] * 5
    planted = needles.plan(random.Random(0), ["multi-key"], 6)
    scores = attached.compare(FakeEngine(oracle), lines, planted, 900, 1)
    assert all(sum(found) == 6 for found in scores.values())
    values = {"scores": {"together": [1.0] * 6, "attached": [1.0] * 5 + [0.0], "other_order": [1.0] * 6}}
    assert not attached._finish({"pair-0": values})["same"]


def test_knows(quick: list[str], tmp_path: Path) -> None:
    """Two texts with both kinds of questions, and two that the third question is taken from."""
    file = tmp_path / "questions.jsonl"
    rows = []
    for number in range(4):
        text = f"The keeper of house {number} is Ann. " * 3
        qas = [{"question": "Who keeps it?", "answers": ["Ann"]}, {"question": "Why?", "answerable": False}]
        rows.append(json.dumps({"id": str(number), "text": text, "qas": qas}))
    file.write_text("\n".join(rows), encoding="utf-8")
    assert knows.main([*quick, "--questions", str(file)]) == 0
    values = json.loads(Path(quick[-1]).read_text(encoding="utf-8"))
    assert values["asked"] == {"answered": 2, "own": 2, "foreign": 2}
    assert set(values["area_under_curve"]) == set(knows.FIGURES)


def test_area_under_the_curve() -> None:
    assert knows.under_curve([3, 2], [1, 0]) == 1 and knows.under_curve([0], [1, 2]) == 0
    assert knows.under_curve([1, 2], [1, 2]) == 0.5


def test_evidence(quick: list[str]) -> None:
    values = result(evidence, quick)
    facts = [fact for part in values["parts"].values() for fact in part["facts"]]
    assert values["facts"] == len(facts) == 2 and any(fact["loss"] != 0 for fact in facts)


def test_evidence_verdicts() -> None:
    facts = [
        {"right": True, "rank": 1, "loss": 5.0, "most_loss_of_others": 0.2},
        {"right": True, "rank": 4, "loss": 0.1, "most_loss_of_others": 0.2},
        {"right": False, "rank": None, "loss": 1.0, "most_loss_of_others": 0.2},
    ]
    found = evidence._finish({"reading-0": {"facts": facts}})
    assert (found["right"], found["top_3"], found["removal_lowers_most"]) == (2, 1, 2)


def test_h2o(quick: list[str]) -> None:
    values = result(h2o, quick)
    for kind in h2o.KINDS:
        assert len(values[kind]["mean"]) == 1 + len(h2o.RULES) * len(h2o.SHARES)
        assert values[kind]["rises_little_at_20"] in (True, False) and values[kind]["mean"][0]["kl"] == 0
    assert values["plain"]["mean"][0]["again"] is None


def test_h2o_verdicts() -> None:
    def part(kind: str, ours: float) -> dict:
        nats = dict.fromkeys(h2o.RULES, 1.1) | {"full": 1.0, "recent": 1.045, "ours": ours}
        rest = dict.fromkeys(h2o.FIGURES, None)
        rows = [{"rule": r, "share": 1.0 if r == "full" else 0.2} | rest | {"nats": n} for r, n in nats.items()]
        return {"kind": kind, "rows": rows}

    parts = {"a": part("plain", 1.04), "b": part("recurring", 1.04)}
    assert h2o._finish(parts)["met"] and h2o._finish(parts)["plain"]["best_of_ours_at_20"] == "ours"
    assert not h2o._finish(parts | {"b": part("recurring", 1.046)})["met"]  # worse than the latest keys
    assert not h2o._finish(parts | {"a": part("plain", 1.06)})["met"]


def test_h2o_passages_recur_and_are_known_the_second_time(quick: list[str]) -> None:
    from benchmarks import h2o_texts

    args = h2o.harness.flags("Test.", "h2o").parse_args(quick)
    args.prompt, args.text, args.facts = 2000, 1000, 3
    engine, lines = controls.engine(args, "keep-all"), texts.lines_of(BOOK)
    ids, known, asked = h2o_texts.recurring(engine, lines, args, random.Random(0))
    text, prompt = engine.decode(ids), engine.decode(ids[:2000])
    assert len(ids) == len(known) == 3000 and asked
    assert all(needle.sentences[0] in prompt for needle in asked)
    again = engine.decode([token for token, seen in zip(ids, known, strict=True) if seen])
    new = engine.decode([token for token, seen in zip(ids, known, strict=True) if not seen])
    sentence = asked[0].sentences[0]
    assert new.count(sentence) == 1 and again.count(sentence) >= text.count(sentence) - 1 > 0


def kept_by(rule: h2o.Rule, budget: float, tokens: list[int], prompt: int) -> list:
    """Which keys a rule keeps in each layer of the tiny model."""
    h2o.RULES["tried"] = rule
    try:
        args = h2o.harness.flags("Test.", "h2o").parse_args([])
        model = tiny.model()
        h2o.AttentionInterface.register(h2o.NAME, h2o.table_attention)
        model.set_attn_implementation(h2o.NAME)
        rows = [h2o.Row("full", 1.0), h2o.Row("tried", budget)]
        _, keys = h2o.decode(model, tokens[:prompt], tokens[prompt:], rows, args.seed)
    finally:
        del h2o.RULES["tried"]
    return [alive[1].clone() for alive in keys.alive]


@pytest.mark.bench
@pytest.mark.parametrize("name", sorted(h2o.RULES))
def test_h2o_keeps_its_budget_and_does_not_look_ahead(name: str) -> None:
    rule, tokens = h2o.RULES[name], tiny.token_ids(180)
    short = kept_by(rule, 0.25, tokens[:160], 120)
    other = kept_by(rule, 0.25, [*tokens[:159], *tokens[170:171]], 120)
    for alive, same in zip(short, other, strict=True):
        held = alive.sum(-1).tolist()
        assert 30 - 16 <= held[0] == held[1] < 30 and bool((alive == same).all())
        assert alive[:, 158].all() and alive[:, : rule.options.sinks].all()
    assert kept_by(rule, 2.0, tokens[:160], 120)[0].sum(-1).tolist() == [159, 159]


def test_h2o_keeps_what_is_looked_at() -> None:
    keys = h2o.Keys([h2o.Row("published", 0.5)], 1, 60, None)
    q = 10 * h2o.torch.ones(1, 1, 60, 4)
    k = h2o.torch.zeros(1, 1, 60, 4)
    k[:, :, 3] = 1.0
    keys.attend(0, q, k, k, 1.0)
    alive = keys.alive[0][0, 0]
    assert alive[3] and alive[45:].all() and 14 <= alive.sum() < 30


def test_the_random_control_attends_to_as_much_as_ours_but_not_the_same(quick: list[str]) -> None:
    args = h2o.harness.flags("Test.", "h2o").parse_args(quick)
    ours, chance = (controls.engine(args, policy) for policy in ("keep-all", "random"))
    ids = tiny.token_ids(400)
    a, b = ours.log_probs(ids), chance.log_probs(ids)
    assert chance.policy == "random" and ours.policy == "keep-all"
    assert bool((a[:63] == b[:63]).all())  # all of it fits
    assert float((a[100:] - b[100:]).abs().mean()) > 0.01
    assert bool((ours.log_probs(ids) == a).all())
    longer = chance.log_probs([*ids[:300], *reversed(ids[300:])])
    assert bool((longer[:63] == a[:63]).all()) and not math.isnan(float(longer.sum()))


@pytest.mark.bench
def test_every_estimate(tiny_folder: Path, capsys: pytest.CaptureFixture) -> None:
    for script in (passkey, table, perplexity, attached, evidence, h2o):
        assert script.main(["--estimate", "--model", str(tiny_folder), "--file", str(BOOK)]) == 0
        assert capsys.readouterr().out.splitlines()[-1].startswith("all")


@pytest.mark.bench
def test_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codecs and policies that drop tokens take less than raw keys and values; what is written comes back."""
    monkeypatch.setattr(store, "POLICIES", ("keep-all", "h2o"))
    output = tmp_path / "store.json"
    assert store.main(["--tokens", "1500", "--megabytes", "2", "--repeats", "1", "--output", str(output)]) == 0
    values = json.loads(output.read_text(encoding="utf-8"))
    sizes = {(row["policy"], row["codec"]): row["bytes_per_token"] for row in values["sizes"]}
    assert sizes["keep-all", "raw"] > sizes["keep-all", "int8"] > sizes["keep-all", "int4"] > 2048 / 4
    assert sizes["h2o", "raw"] < sizes["keep-all", "raw"]
    assert min(values["megabytes_per_s"]["median"].values()) > 0


def test_length(quick: list[str]) -> None:
    values = result(length, quick)
    (part,) = values["parts"].values()
    rows = {row["tokens"]: row for row in part["rows"]}
    assert list(rows) == [496, 992, max(rows)] and 1950 < max(rows) <= 2000
    assert list(values["time_2n_over_n"]) and values["met"]["keys"] is False
    assert all(row["host_bytes"] > 100 * row["tokens"] for row in part["rows"][1:])
    assert rows[992]["keys_asked"] == 1 and rows[max(rows)]["keys_asked"] == 3


def test_length_verdicts() -> None:
    def row(tokens: int, seconds: float, rest: int, speed: float, right: int = 1) -> dict:
        told = {"rest_bytes": rest, "host_bytes": 1, "peak_bytes": 1, "decode_tokens_per_s": {"median": speed}}
        return {"tokens": tokens, "cpu_seconds": seconds, "keys_right": right, "keys_asked": 1, **told}

    half = {"tokens": 65_536, "cpu_seconds": 10.0}
    good = {"rows": [half, row(131_072, 20.5, 100, 10.0)]}, {"rows": [row(262_144, 41.0, 104, 8.5)]}
    values = length._finish(dict(enumerate(good)))
    assert values["met"] == {"time": True, "memory": True, "decode": True, "keys": True}
    assert values["time_2n_over_n"] == {"131072": 2.05}
    bad = {"rows": [half, row(131_072, 22.0, 100, 10.0)]}, {"rows": [row(262_144, 50.0, 106, 7.9, 0)]}
    assert not any(length._finish(dict(enumerate(bad)))["met"].values())
