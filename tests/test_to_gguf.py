"""scripts/to_gguf.py: what it writes, and that llama.cpp reads it as transformers reads the checkpoint.

Skipped without the packages gguf and xllamacpp, which no requirements file names.
"""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from app.errors import ModelError
from tests.checkpoints import SIZES, rewrite, save

gguf = pytest.importorskip("gguf")
SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "to_gguf.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("to_gguf", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["to_gguf"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def small(tmp_path_factory, shipped_model):
    """Random weights, sharp enough to differ, with the tokenizer that ships; positions interpolated."""
    folder = tmp_path_factory.mktemp("small") / "model"
    rope = {"rope_type": "linear", "rope_theta": 5e3, "factor": 4.0}
    config = {**SIZES, "vocab_size": 8192, "head_dim": 16, "rope_parameters": rope, "tie_word_embeddings": True}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**config)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((shipped_model / name).read_bytes())
    return folder


def test_what_is_written(script, small, tmp_path):
    script.convert(small, tmp_path / "m.gguf", "float16")
    read = gguf.GGUFReader(tmp_path / "m.gguf")
    facts = {name: field.contents() for name, field in read.fields.items()}
    tokenizer = json.loads((small / "tokenizer.json").read_text())
    assert facts["tokenizer.ggml.tokens"][300] == {v: k for k, v in tokenizer["model"]["vocab"].items()}[300]
    assert facts["tokenizer.ggml.pre"] == "qwen2" and len(facts["tokenizer.ggml.merges"]) == 7866
    assert [facts[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding")] == [1, 2, 0]
    assert facts["tokenizer.ggml.token_type"][:7] == [3] * 7 and facts["tokenizer.ggml.token_type"][300] == 1
    assert facts["llama.rope.freq_base"] == 5000 and facts["llama.rope.scaling.factor"] == 4
    assert facts["llama.attention.key_length"] == 16 and facts["llama.context_length"] == 512
    tensors = {tensor.name: tensor for tensor in read.tensors}
    assert "output.weight" not in tensors and tensors["output_norm.weight"].tensor_type.name == "F32"
    weights = load_file(small / "model.safetensors")
    key = torch.tensor(tensors["blk.1.attn_k.weight"].data.copy()).float()
    turned = key.view(2, 8, 2, -1).transpose(1, 2).reshape(key.shape)
    torch.testing.assert_close(turned, weights["model.layers.1.self_attn.k_proj.weight"], atol=1e-3, rtol=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: save(f, Qwen3Config(**SIZES)), "is a qwen3; take llama.cpp's convert_hf_to_gguf.py"),
        (lambda f: save(f, LlamaConfig(**SIZES)), "its tokenizer is not one of ours"),
        (lambda f: rewrite(save(f, LlamaConfig(**SIZES)) / "config.json", num_hidden_layers=3), "lacks model.layers.2"),
        (
            lambda f: rewrite(save(f, LlamaConfig(**SIZES)) / "config.json", rope_parameters={"rope_type": "yarn"}),
            "positions of type yarn",
        ),
    ],
)
def test_what_is_not_ours_is_refused(script, tmp_path, damage, message):
    damage(tmp_path / "model")
    with pytest.raises(ModelError, match=message):
        script.convert(tmp_path / "model", tmp_path / "m.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_llama_cpp_reads_it_alike(script, small, tmp_path, capsys):
    pytest.importorskip("xllamacpp")
    script.convert(small, tmp_path / "m.gguf")
    assert script.check(small, tmp_path / "m.gguf") == 0
    assert "20 of 20 texts equal" in capsys.readouterr().out


def test_the_comparison_can_fail(script, small, tmp_path, capsys, monkeypatch):
    """Another split rule, and keys turned as queries of another width."""
    pytest.importorskip("xllamacpp")
    monkeypatch.setattr(script, "SPLITS", dict.fromkeys(script.SPLITS, "gpt-2"))
    monkeypatch.setattr(script, "interleaved", lambda weight, heads: weight)
    monkeypatch.setattr(script, "NEW_TOKENS", 8)
    script.convert(small, tmp_path / "m.gguf")
    assert script.check(small, tmp_path / "m.gguf") == 1
    assert "other ids for" in (said := capsys.readouterr().out) and "greedy text: 10 of 10" not in said
