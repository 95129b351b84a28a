"""The estimate of memory, against known sizes and against what a layer really keeps; and the refusal."""

import json

import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from app.errors import TrainError
from app.train.attention import TrainingAttention
from app.train.tune import estimate
from app.train.tune.output import read_base
from app.train.tune.estimate import check_room, learning_weights
from app.train.tune.lora import add_adapter, trained_parameters
from app.train.tune.passes import TuningModel
from app.train.tune.recipe import LoraRecipe, TuningRecipe, TuneConfig
from tests import tiny

LLAMA_2_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32000}


def llama_shapes() -> dict[str, tuple[int, ...]]:
    shapes = {"model.embed_tokens.weight": (32000, 4096), "lm_head.weight": (32000, 4096), "model.norm.weight": (4096,)}
    for i in range(32):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.self_attn.{p}_proj.weight": (4096, 4096) for p in "qkvo"}
        shapes |= {f"{layer}.mlp.{p}_proj.weight": (11008, 4096) for p in ("gate", "up")}
        shapes |= {f"{layer}.mlp.down_proj.weight": (4096, 11008)}
        shapes |= {f"{layer}.{n}_layernorm.weight": (4096,) for n in ("input", "post_attention")}
    return shapes


@pytest.mark.parametrize(
    ("lora", "millions"),
    [
        (LoraRecipe("qkvo", embeddings=False, norms=False), 8.39),
        (LoraRecipe("ko", embeddings=False, norms=False), 4.19),
        (LoraRecipe("none", embeddings=True, norms=False), 131.07),
        (LoraRecipe("none", embeddings=False, norms=True), 0.27),
        (LoraRecipe("qkvo"), 139.73),
        (LoraRecipe("ko"), 135.53),
        (LoraRecipe("none", embeddings=False, norms=False, token_rows=(1, 2)), 0.008),
        (LoraRecipe(full=True), 6738.4),
    ],
)
def test_what_learns_of_llama_2_7b(lora, millions):
    """The figures of docs/training.md: with embeddings, reduced adapters save 3%."""
    assert learning_weights(lora, llama_shapes()) / 1e6 == pytest.approx(millions, abs=0.01, rel=1e-4)


@pytest.mark.parametrize("lora", [LoraRecipe("ko"), LoraRecipe("all", norms=False), LoraRecipe(full=True)])
def test_what_learns_is_what_the_model_says(lora):
    model = tiny.model()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    learning = trained_parameters(add_adapter(model, lora))
    assert learning_weights(lora, shapes) == sum(p.numel() for p in learning.values())


def test_llama_2_7b_at_32k_fits_40_gb_with_checkpointing_alone():
    recipe = TuningRecipe(TuneConfig("base", tokens=32768, steps=1))
    found = estimate.estimate(recipe, LLAMA_2_7B, llama_shapes(), 2, "cuda")
    assert 25e9 < found.total < 40e9
    without = TuningRecipe(TuneConfig("base", tokens=32768, steps=1, checkpointing=False))
    assert estimate.estimate(without, LLAMA_2_7B, llama_shapes(), 2, "cuda").total > 150e9


def kept_bytes(lora: LoraRecipe, layers: int, dtype: torch.dtype, tokens: int = 512) -> int:
    """Bytes of all tensors that a forward pass keeps, weights left out."""
    config = LlamaConfig(
        vocab_size=32, hidden_size=128, intermediate_size=352, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    model = TuningModel(add_adapter(LlamaForCausalLM(config).to(dtype), lora), TrainingAttention(), dtype).train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    bf16 = dtype == torch.bfloat16
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", dtype=dtype, enabled=bf16):
        model(torch.zeros(1, tokens, dtype=torch.long), torch.ones(1, tokens))
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora", [LoraRecipe("qkvo"), LoraRecipe(full=True)])
def test_what_a_layer_keeps(lora, dtype):
    """Not less than counted, and not twice as much."""
    counted = (kept_bytes(lora, 3, dtype) - kept_bytes(lora, 1, dtype)) / 2
    of_width, of_inner = estimate.FULL_KEEPS if lora.full else estimate.LORA_KEEPS
    assert counted <= 512 * (of_width * 128 + of_inner * 352) * dtype.itemsize < 2 * counted


@pytest.fixture
def base(tmp_path):
    tiny.model().save_pretrained(tmp_path)
    tiny.byte_tokenizer().save_pretrained(tmp_path)
    return read_base(str(tmp_path))


def room(monkeypatch, gb: float):
    free = type("Memory", (), {"available": gb * 1e9})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)


@pytest.mark.parametrize(
    ("gb", "tune", "lora", "advice"),
    [
        (0.6, {"tokens": 1 << 20}, {}, r"are free on cpu: make tokens smaller \(now 1048576; about \d+ fit\)"),
        (0.6, {"tokens": 1 << 20, "checkpointing": False}, {}, "on cpu: set checkpointing = true; make tokens"),
        (0.6, {"tokens": 1 << 17, "batch": 8}, {}, r"make batch smaller \(now 8\) and accumulation larger; make"),
        (0.2, {"dtype": "float32"}, {"full": True}, r"on cpu: set \[lora\] full = false"),
        (0.2, {}, {}, r"on cpu: train \[lora\] token_rows in place of embeddings"),
        (0.2, {}, {"embeddings": False}, "on cpu: choose a smaller base"),
    ],
)
def test_what_cannot_fit_is_refused_with_what_to_change(base, monkeypatch, gb, tune, lora, advice):
    room(monkeypatch, gb)
    recipe = TuningRecipe(TuneConfig("base", **{"tokens": 64, "steps": 1, **tune}), LoraRecipe(**lora))
    with pytest.raises(TrainError, match=rf"^needs about \d+\.\d GB \(the base 0.0, .*{advice}"):
        check_room(recipe, base, torch.device("cpu"), torch.float32)


def test_what_fits_passes_and_processes_add_up(base, monkeypatch):
    recipe = TuningRecipe(TuneConfig("base", tokens=64, steps=1))
    room(monkeypatch, 0.5)
    check_room(recipe, base, torch.device("cpu"), torch.float32)
    with pytest.raises(TrainError, match="free on cpu for 2 processes"):
        check_room(recipe, base, torch.device("cpu"), torch.float32, processes=2)


def test_a_base_that_is_not_there(tmp_path):
    from app.errors import ModelError

    with pytest.raises(ModelError, match=r"^\[tune\] base = .*none: no such folder"):
        read_base(str(tmp_path / "none"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match="weights are missing"):
        read_base(str(tmp_path))
