"""The world of keys, and the benchmark on positions at the size of a test."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import keyworld, positions
from benchmarks.keyworld import KEY, PHRASE


def test_a_key_is_planted_once_and_asked_once() -> None:
    for at_end in (False, True):
        made = keyworld.document(500, 8, keyworld.drawn(0, 3), at_end=at_end)
        ids = made.ids.tolist()
        assert len(ids) == 500
        for place in made.asked.tolist():
            key = ids[place : place + KEY]
            assert [ids.count(symbol) for symbol in key] == [2] * KEY
            first = ids.index(key[0])
            assert first < place and ids[first : first + KEY] == key
        if at_end:
            assert sorted(made.asked.tolist()) == list(range(500 - 8 * KEY, 500, KEY))
    again = keyworld.document(500, 8, keyworld.drawn(0, 3), at_end=True)
    assert torch.equal(again.ids, made.ids)
    assert not torch.equal(keyworld.document(500, 8, keyworld.drawn(0, 4), at_end=True).ids, made.ids)


def test_what_is_not_a_key_repeats() -> None:
    ids = keyworld.document(3000, 1, keyworld.drawn(0, 1)).ids.tolist()
    pairs = {tuple(ids[i : i + 2]) for i in range(len(ids) - 1)}
    low, high = keyworld.DICTIONARY
    assert low * (PHRASE - 1) < len(pairs) <= high * (PHRASE - 1) + high**2 + 20


def test_the_kept_base_finds_keys_at_its_own_length_and_not_beyond() -> None:
    base = keyworld.base_model()
    near = positions.dense(base, positions._documents(256, 4, 6, seed=7))
    far = positions.dense(base, positions._documents(1024, 2, 6, seed=7))
    assert near["right"] >= 20 and near["trials"] == 24 and far["right"] <= 4


def test_a_document_that_fits_reads_the_same_both_ways() -> None:
    """Dense and compact reading are one computation while everything fits the budget."""
    base = keyworld.base_model()
    documents = positions._documents(200, 2, 4, seed=1)
    ours, theirs = positions.dense(base, documents), positions.compact(positions.engine_of(base, 384), documents)
    assert ours["right"] == theirs["right"] and ours["trials"] == theirs["trials"] == 8
    assert ours["key_nats"] == pytest.approx(theirs["key_nats"], abs=2e-4)
    assert ours["near_nats"] == pytest.approx(theirs["near_nats"], abs=2e-4)


def test_positions(tmp_path: Path) -> None:
    output = tmp_path / "positions.json"
    flags = ["--quick", "--work", str(tmp_path / "work"), "--output", str(output)]
    assert positions.main([*flags, "--arms", "ntk,crd-mask,ms"]) == 0
    values = json.loads(output.read_text(encoding="utf-8"))
    parts = values["parts"]
    assert list(parts) == ["ntk", "ms", "crd-mask"]
    assert parts["ntk"]["original"]["512"]["trials"] == 8 and parts["ntk"]["compact"]["640"]["trials"] == 8
    assert list(parts["crd-mask"]["compact_at_first_factor"]) == ["640"]
    compared = values["ms_over_tuned_and_read_dense_at_tuned_length"]["tuned with full attention"]
    assert list(compared) == ["m = 2, budget 384", *positions.VARIANTS]
    assert compared["m = 1"]["documents"] == 2 and compared["m = 1"]["percent"] != 0
    assert compared["m = 2, budget 768"]["percent"] == pytest.approx(0, abs=0.05)  # all of it fits


def test_nothing_is_measured_with_a_base_that_finds_nothing(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(keyworld, "base_model", keyworld.new_model)
    output = tmp_path / "positions.json"
    assert positions.main(["--quick", "--work", str(tmp_path), "--output", str(output)]) == 1
    assert "of its keys at 256 tokens: nothing is measured" in capsys.readouterr().err and not output.exists()
