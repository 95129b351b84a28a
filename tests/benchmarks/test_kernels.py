"""The table of errors is made in the interpreter, wrong kernels are red, and targets can be missed."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.kernels.backend import backend
from benchmarks import cases, kernels


@pytest.fixture(autouse=True)
def undecided(monkeypatch) -> Iterator[None]:
    """The script sets these for itself."""
    pytest.importorskip("triton")
    monkeypatch.setenv("LECTERN_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(cases, "SHAPES", (cases.Shape("one", 2, 1, 32, 128),))
    backend.cache_clear()
    yield
    backend.cache_clear()


@pytest.mark.bench
@pytest.mark.skipif(torch.cuda.is_available(), reason="triton is there compiled")
def test_the_table_of_errors(tmp_path: Path, monkeypatch):
    names = ("selected prefill", "decode budget, int8", "H2O sums", "pack int4", "unpack int8", "region scores, int8")
    chosen = [replace(x, dtypes=(torch.float32,)) for x in kernels.operations() if x.name in names]
    monkeypatch.setattr(kernels, "operations", lambda: chosen)
    output = tmp_path / "errors.json"
    assert kernels.main(["--interpret", "--output", str(output)]) == 0
    values = json.loads(output.read_text())
    assert values["right"] and 0 < values["errors"][0]["error"] < 1e-5 and values["triton"].startswith("3.")
    errors = {row["operation"]: row["error"] for row in values["errors"]}
    assert set(errors) == set(names) and errors["pack int4"] == errors["unpack int8"] == 0


def test_a_wrong_kernel_is_red_and_not_measured(monkeypatch):
    def make(shape, tokens, dtype, device):
        return cases.Case(lambda: (torch.ones(3) * (1 + 1e-3),), lambda: (torch.ones(3).double(),))

    wrong = cases.Operation("wrong", make, dtypes=(torch.float32,))
    assert kernels._errors([wrong])["right"] is False
    monkeypatch.setattr(kernels, "_ceilings", dict)
    monkeypatch.setattr(kernels, "WORST", {"bfloat16": 1e-5})
    monkeypatch.setattr(kernels, "_measure", lambda *_: pytest.fail("measured"))
    values = kernels._speeds([wrong])
    assert values["right"] is False and values["rows"] == []


def test_no_number_is_the_largest_error():
    assert cases.relative((torch.tensor([1.0, float("nan")]),), (torch.ones(2),)) == float("inf")


@pytest.mark.parametrize("ms, met", [(20.0, True), (90.0, False)])
def test_targets(ms, met):
    def row(way, ms, rate):
        return {"operation": "selected prefill", "shape": "x", "tokens": 131072, "way": way, "ms": ms, "TFLOP/s": rate}

    targets = kernels._targets([row("ours", ms, 3000 / ms), row("dense SDPA", 100.0, 200.0)])
    assert [(x["target"], x["met"]) for x in targets] == [
        ("FLOP/s of dense SDPA", met),
        ("speed of dense SDPA", met),
    ]


def test_without_a_gpu_it_says_what_to_do(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernels.main([]) == 1
    assert "--interpret" in capsys.readouterr().err


@pytest.mark.parametrize("share, met", [(0.71, True), (0.69, False)])
def test_shares_of_the_ceiling(share, met):
    row = {"operation": "decode all, raw", "shape": "x", "tokens": 1048576, "way": "ours", "share": share}
    assert [target["met"] for target in kernels._targets([row])] == [met]


@pytest.mark.parametrize("heads, kv_heads", [(4, 2), (4, 4)])
@pytest.mark.parametrize("tokens", [512, 300])
def test_flex_attention_is_given_the_masks_of_sf_attn(tokens, heads, kv_heads, monkeypatch):
    """On a CPU it ignores its block lists and applies the masks; with one as with the other it must do the same."""
    from torch.nn.attention.flex_attention import flex_attention

    from benchmarks import cases_prefill

    monkeypatch.setattr(cases_prefill, "_compiled_flex", lambda: flex_attention)
    shape = cases.Shape("x", heads, kv_heads, 16)
    given, _ = cases_prefill._dense(shape, tokens, torch.float32, "cpu")
    found = cases_prefill._flex_groups(shape, tokens, "cpu")(given)
    torch.testing.assert_close(found, cases_prefill._sf_attention(shape.scale, given), atol=1e-5, rtol=1e-5)


def test_flex_attention_is_given_the_lists_of_selected_prefill(monkeypatch):
    from torch.nn.attention.flex_attention import BlockMask

    from benchmarks import cases_prefill

    monkeypatch.setattr(cases_prefill, "_compiled_flex", lambda: lambda *x, block_mask, **_: block_mask)
    shape = cases.Shape("x", 4, 2, 16, 256)
    given, lists, _ = cases_prefill._inputs(shape, 1024, torch.float32, "cpu")
    mask = cases_prefill._flex(shape, given, lists)(given)
    assert isinstance(mask, BlockMask) and mask.shape == (1, 4, 768, 1024)
    wanted = torch.zeros(1, 2, 6, 16, dtype=torch.int32)
    wanted.scatter_(3, (lists.places // 64).transpose(1, 2).long(), 1)
    assert torch.equal(mask.to_dense(), wanted.repeat_interleave(2, dim=1))
