"""What `inspect` says of checkpoints, adapters, old LongLoRA folders, and of folders that are none of them."""

import json
import re
import shutil

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from app.models import inspect as module
from app.models.folder import fingerprint
from app.models.inspect import inspect
from tests.checkpoints import SIZES, adapter, cut, longlora, rewrite, save
from tests.models.test_checkpoint import DAMAGES


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    save(folder / "llama", LlamaConfig(**SIZES))
    adapter(folder / "adapter", folder / "llama", modules_to_save=["embed_tokens", "norm"])
    return folder


@pytest.fixture
def llama(kept, tmp_path):
    return shutil.copytree(kept / "llama", tmp_path / "llama")


@pytest.fixture(autouse=True)
def no_weights_are_read(monkeypatch):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("the model was loaded"))


def test_a_checkpoint(llama):
    rewrite(llama / "lectern.json", trained_tokens=448, attention={"budget_tokens": 256, "region_tokens": 32})
    found = inspect(llama)
    assert (found.kind, found.usable, found.reasons, found.base) == ("checkpoint", True, (), None)
    weights = load_file(llama / "model.safetensors")
    assert found.facts["parameters"] == f"{sum(w.numel() for w in weights.values()):,}"
    expected = {
        "architecture": "LlamaForCausalLM (llama)",
        "dtype": "float32",
        "layers": "2",
        "heads": "4 for queries, 2 for keys and values, 8 wide",
        "KV per token": "128 bytes in 16 bits",
        "vocabulary": "262 ids",
        "trained length": "448 tokens",
        "positions": "default, base 10,000",
        "attention": "MS-Attn, budget 256 tokens, regions of 32",
        "chat template": "yes",
        "tokenizer": "262 ids",
    }
    assert expected.items() <= found.facts.items()


def test_the_model_that_ships(shipped_model):
    found = inspect(shipped_model)
    assert found.usable and found.facts["parameters"] == "5,048,576"
    assert found.facts["vocabulary"] == "8,192 ids, embeddings tied" and "demonstration" in found.facts


def test_stretched_positions_are_told(tmp_path):
    rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    save(tmp_path / "qwen", Qwen3Config(**SIZES, rope_parameters=rope))
    found = inspect(tmp_path / "qwen")
    assert found.usable and found.facts["positions"] == "linear, base 10,000, factor 4"


@pytest.mark.parametrize("name", sorted(set(DAMAGES) - {"no config"}))
def test_the_reason_is_the_one_that_loading_gives(llama, name):
    damage, message = DAMAGES[name]
    if name in ("cut tokenizer", "odd tokenizer"):
        message = "tokenizer.json: cannot be read as JSON|KeyError: 'vocab'"
    damage(llama)
    found = inspect(llama)
    assert found.kind == "checkpoint" and not found.usable
    assert any(re.search(message, reason) for reason in found.reasons)


def test_weights_of_another_size(llama):
    rewrite(llama / "config.json", intermediate_size=64)
    (reason,) = inspect(llama).reasons
    assert "do not belong to its config.json: model.layers.0.mlp.gate_proj.weight (and 5 more)" in reason


def test_a_tokenizer_of_another_model(llama):
    rewrite(llama / "config.json", vocab_size=200)
    assert any("the tokenizer has 262 ids, the embeddings 200 rows" in reason for reason in inspect(llama).reasons)


def test_more_than_the_machine_holds(llama, monkeypatch):
    memory = psutil.virtual_memory()._replace(total=1000, available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    (reason,) = inspect(llama).reasons
    assert "needs about" in reason and "free on cpu" in reason


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model_type": "llama"}', '{"model_type": ["llama"]}'])
def test_a_bad_config_raises_nothing(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    found = inspect(tmp_path)
    assert found.kind == "checkpoint" and not found.usable and found.reasons


def test_no_model_at_all(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    assert "holds no config.json" in inspect(tmp_path).reasons[0]
    assert "no such folder" in inspect(tmp_path / "none").reasons[0]
    assert "no such folder" in inspect(tmp_path / "notes.txt").reasons[0]


def test_an_adapter(kept):
    found = inspect(kept / "adapter")
    assert (found.kind, found.usable, found.base) == ("adapter", True, kept / "llama")
    assert found.facts["base"] == f"{kept / 'llama'}, here"
    assert sorted(found.facts["targets"].split(", ")) == ["k_proj", "o_proj", "q_proj"]
    assert found.facts["rank"] == "4, alpha 8"
    assert found.facts["also trained"] == "embeddings (1), norms (5)"
    assert found.facts["vocabulary"] == "262 ids" and found.facts["trained length"] == "512 tokens"


def test_an_adapters_own_recipe_wins(kept, tmp_path):
    path = shutil.copytree(kept / "adapter", tmp_path / "adapter")
    rope = {"type": "default", "theta": 40000.0, "method": "ntk", "factors": [4.0], "factor": 4.0}
    rewrite(path / "lectern.json", trained_tokens=2048, attention={"budget_tokens": 512}, rope=rope)
    found = inspect(path)
    assert found.facts["positions"] == "default, base 40,000, factor 4, stretched by ntk"
    assert found.usable and found.facts["trained length"] == "2,048 tokens"
    assert found.facts["attention"].startswith("MS-Attn, budget 512")


def test_the_base_is_looked_for_beside_the_adapter_and_where_it_is_said(kept, tmp_path):
    path = shutil.copytree(kept / "adapter", tmp_path / "adapter")
    rewrite(path / "adapter_config.json", base_model_name_or_path="llama")
    (reason,) = inspect(path).reasons
    assert "its base llama is not on this machine; give the folder of it with --base" in reason
    assert inspect(path, kept / "llama").base == kept / "llama"
    shutil.copytree(kept / "llama", tmp_path / "llama")
    assert inspect(path).base == tmp_path / "llama"


def test_the_base_is_another_model(kept, tmp_path):
    wide = save(tmp_path / "wide", LlamaConfig(**{**SIZES, "hidden_size": 64}))
    found = inspect(kept / "adapter", wide)
    assert not found.usable and "was made for another model than wide" in found.reasons[0]


def test_an_old_longlora_folder(kept, tmp_path):
    path = longlora(tmp_path / "old", kept / "adapter")
    found = inspect(path)
    assert (found.kind, found.usable, found.base) == ("longlora", False, kept / "llama")
    assert "does not say to which length its positions were stretched; merge it first" in found.reasons[0]
    assert found.facts["also trained"] == "embeddings (1), norms (5)" and "LongLoRA" in found.facts["type"]
    rewrite(path / "lectern.json", rope={"type": "linear", "theta": 10000.0, "factor": 4.0})
    assert inspect(path).usable


def test_a_base_with_other_weights(kept, tmp_path):
    path = shutil.copytree(kept / "adapter", tmp_path / "adapter")
    rewrite(
        path / "lectern.json",
        base={"name": "first", "fingerprint": fingerprint([kept / "llama/model.safetensors"], {})},
    )
    assert inspect(path).usable
    other = shutil.copytree(kept / "llama", tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, other / "model.safetensors")
    (reason,) = inspect(path, other).reasons
    assert "was trained on first (fingerprint " in reason and "holds other weights" in reason


ADAPTER_DAMAGES = {
    "kind": (lambda f: rewrite(f / "adapter_config.json", peft_type="IA3"), "is of type IA3"),
    "option": (lambda f: rewrite(f / "adapter_config.json", lora_bias=True), "lora_bias = True: adds biases"),
    "config": (lambda f: cut(f / "adapter_config.json", 0.5), "cannot be read as JSON"),
    "none": (lambda f: (f / "adapter_model.bin").unlink(), "no adapter_model.safetensors there"),
    "cut": (lambda f: cut(f / "adapter_model.bin", 0.5), "adapter_model.bin: is damaged, or holds more than weights"),
    "text": (lambda f: (f / "trainable_params.bin").write_text("no"), "trainable_params.bin: is damaged"),
    "recipe": (lambda f: (f / "lectern.json").write_text(json.dumps([1])), "lectern.json: holds no JSON object"),
}


@pytest.mark.parametrize("name", ADAPTER_DAMAGES)
def test_a_damaged_adapter(kept, tmp_path, name):
    damage, message = ADAPTER_DAMAGES[name]
    path = longlora(tmp_path / "old", kept / "adapter")
    damage(path)
    found = inspect(path)
    assert not found.usable and found.kind == "longlora" and message in " ".join(found.reasons)


def test_a_file_that_runs_code_is_not_run(kept, tmp_path):
    class Evil:
        def __reduce__(self):
            return (pytest.fail, ("code of a file was run",))

    path = longlora(tmp_path / "old", kept / "adapter")
    torch.save({"model.norm.weight": Evil()}, path / "trainable_params.bin")
    assert "holds more than weights" in inspect(path).reasons[0]


def test_any_error_in_a_file_becomes_a_reason(llama, monkeypatch):
    monkeypatch.setattr(module, "highest_id", lambda tokenizer: 1 // 0)
    assert "ZeroDivisionError" in inspect(llama).reasons[0]


ODD = (None, [], {"a": 1}, "x", -1)


@pytest.mark.parametrize("file", ["config.json", "lectern.json", "tokenizer.json", "adapter_config.json"])
def test_odd_values_raise_nothing(kept, llama, tmp_path, file):
    """Every key of every file with every kind of value; what can be told is told."""
    path = shutil.copytree(kept / "adapter", tmp_path / "adapter") if file == "adapter_config.json" else llama
    rewrite(path / "lectern.json", trained_tokens=512, attention={"budget_tokens": 256}, rope={}, training={}, base={})
    first = (path / file).read_text()
    for key in [*json.loads(first), "rope_scaling", "sliding_window", "trainable_token_indices"]:
        for value in ODD:
            (path / file).write_text(first)
            rewrite(path / file, **{key: value})
            found = inspect(path)
            assert found.kind == ("adapter" if path.name == "adapter" else "checkpoint")
            assert found.usable == (not found.reasons) and all(isinstance(fact, str) for fact in found.facts.values())
