"""scripts/serve_elsewhere.py: what stock engines are told to load, and that llama.cpp says what transformers says."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.errors import ModelError
from app.settings import SMALL_MODEL
from scripts import serve_elsewhere, to_gguf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SMALL_MODEL, tmp_path / "model"))


def change(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def test_what_ships_is_laid_out_as_stock_engines_want_it(folder):
    assert serve_elsewhere.layout(folder) == []


def test_each_fault_is_named(folder):
    change(folder, architectures=["OurForCausalLM"])
    weights = load_file(folder / "model.safetensors")
    norm = weights.pop("model.norm.weight")
    weights["model.layers.0.self_attn.q_proj.lora_A.default.weight"] = norm.clone()
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 5)
    save_file(weights, folder / "model.safetensors")
    (folder / "chat_template.jinja").unlink()
    found = serve_elsewhere.layout(folder)
    told = ("architectures", "model.norm.weight is missing", "lora_A", "up_proj.weight has shape", "chat template")
    assert len(found) == len(told)
    assert all(any(words in problem for problem in found) for words in told), found


def test_a_fault_ends_the_command(folder, capsys):
    change(folder, architectures=["OurForCausalLM"])
    assert serve_elsewhere.main(["vllm", str(folder)]) == 1
    assert "architectures" in capsys.readouterr().err


def test_the_context_is_the_budget(folder):
    assert (
        serve_elsewhere.budget(folder)
        == json.loads((folder / "lectern.json").read_text())["attention"]["budget_tokens"]
    )
    (folder / "lectern.json").unlink()
    assert serve_elsewhere.budget(folder) == json.loads((folder / "config.json").read_text())["max_position_embeddings"]


def test_vllm_is_started_on_loopback_or_told_to_be_missing(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ModelError, match="pip install vllm && vllm serve"):
        serve_elsewhere.vllm(folder, 8000, 2048)
    (tmp_path / "vllm").write_text("#!/bin/sh\n")
    (tmp_path / "vllm").chmod(0o700)
    ran = []
    monkeypatch.setattr(serve_elsewhere.os, "execv", lambda path, command: ran.append((path, command)))
    serve_elsewhere.vllm(folder, 8000, 2048)
    ((path, command),) = ran
    assert path == str(tmp_path / "vllm") and command[:3] == ["vllm", "serve", str(folder)]
    assert (
        command[command.index("--host") + 1] == "127.0.0.1" and command[command.index("--max-model-len") + 1] == "2048"
    )


def test_the_split_rule_of_the_base_that_ships_is_known():
    """As SmolLM2's tokenizer.json states it."""
    assert to_gguf.SPLITS[to_gguf.SMOLLM] == "smollm"


def test_llama_cpp_says_what_transformers_says(folder, monkeypatch, capsys):
    pytest.importorskip("xllamacpp")
    monkeypatch.setattr(serve_elsewhere, "TOKENS", 12)
    asked = serve_elsewhere.questions()[2:5]
    monkeypatch.setattr(serve_elsewhere, "questions", lambda: asked)
    flags = ["llama.cpp", str(folder), "--threads", "1", "--check"]
    assert serve_elsewhere.main(flags) == 0
    assert "3 of 3 answers equal" in capsys.readouterr().out
    monkeypatch.setattr(serve_elsewhere, "stock", lambda folder, asked: ["another"] * len(asked))
    assert serve_elsewhere.main(flags) == 1
