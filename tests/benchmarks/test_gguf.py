"""The GGUF benchmark's own parts: halves of a file, and texts that part."""

from argparse import Namespace

import pytest
import torch

from app.models.gguf import describe
from app.models.merging import load_stock
from benchmarks import gguf
from tests.models import gguf_maker


def test_halves_are_the_same_model(tmp_path):
    made = gguf_maker.model()
    file = gguf.as_halves(gguf_maker.write(tmp_path / "a.gguf", made), tmp_path / "b.gguf")
    loaded, ids = load_stock(describe(file, tmp_path / "room"), torch.float32), torch.tensor([[5, 9, 77]])
    torch.testing.assert_close(loaded(ids).logits, made(ids).logits, atol=1e-2, rtol=1e-2)
    weight = loaded.model.layers[0].mlp.up_proj.weight
    assert torch.equal(weight, made.model.layers[0].mlp.up_proj.weight.half().float())


def test_a_model_goes_on_as_in_llama_cpp_and_another_does_not(tmp_path, monkeypatch):
    pytest.importorskip("xllamacpp")
    file = gguf_maker.write(tmp_path / "a.gguf", gguf_maker.model(), gguf_maker.byte_pairs("smollm"))
    monkeypatch.setattr(gguf, "PROMPTS", ("the sea", "a light in the harbour"))
    assert gguf._greedy(Namespace(gguf=file), halves=False)["same"] == 2
    real = gguf._stock

    def other(path):
        return real(gguf_maker.write(tmp_path / "c.gguf", gguf_maker.model(hidden=64), gguf_maker.byte_pairs("smollm")))

    monkeypatch.setattr(gguf, "_stock", other)
    assert gguf._greedy(Namespace(gguf=file), halves=False)["same"] < 2
