"""Models of LM Studio, Ollama and the hub's client are listed where they lie; nothing is copied."""

import json
import shutil
from pathlib import Path

import pytest

from app.models.shelf import add_folder, local_models
from app.settings import Settings
from tests.models import gguf_maker


@pytest.fixture
def file(tmp_path) -> Path:
    return gguf_maker.write(tmp_path / "Tiny-Q8_0.gguf", gguf_maker.model(), kind="Q8_0")


def test_they_are_listed_and_can_be_chosen(tmp_path, monkeypatch, file):
    user = tmp_path / "user"
    monkeypatch.setattr(Path, "home", lambda: user)
    monkeypatch.setenv("OLLAMA_MODELS", str(user / "ollama"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(user / "hub"))
    studio = user / ".lmstudio" / "models" / "someone" / "Tiny-GGUF" / "Tiny-Q8_0.gguf"
    blob = user / "ollama" / "blobs" / "sha256-abc"
    manifest = user / "ollama" / "manifests" / "host" / "library" / "tiny" / "1b"
    hub = user / "hub" / "models--someone--Tiny-GGUF"
    snapshot = hub / "snapshots" / "c0ffee" / "Tiny-Q8_0.gguf"
    for place in (studio, blob, snapshot):
        place.parent.mkdir(parents=True)
        shutil.copyfile(file, place)
    manifest.parent.mkdir(parents=True)
    layers = [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:abc"}]
    manifest.write_text(json.dumps({"layers": layers}))
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("c0ffee")
    before = sorted(user.rglob("*"))
    found = {(model.name, model.place): model for model in local_models(Settings(home=tmp_path / "home"))}
    assert sorted(user.rglob("*")) == before
    for name, place, path in (
        ("Tiny-Q8_0.gguf", "in LM Studio's folder", studio),
        ("tiny:1b", "in Ollama's folder", blob),
        ("someone/Tiny-GGUF/Tiny-Q8_0.gguf", "in the hub's cache", snapshot),
    ):
        model = found[name, place]
        assert model.usable and model.choices[0].model == str(path) and model.size_bytes == file.stat().st_size
        assert model.facts["architecture"] == "LlamaForCausalLM (llama), GGUF"
        assert model.facts["dtype"].startswith("Q8_0") and model.facts["trained length"] == "1,024 tokens"


def test_a_folder_of_gguf_files_can_be_added(tmp_path, file):
    gguf_maker.write(tmp_path / "Other.gguf", gguf_maker.model(), arch="gemma3")
    gguf_maker.write(tmp_path / "Split.gguf", gguf_maker.model(), parts=3)
    home = tmp_path / "home"
    assert set(add_folder(home, str(tmp_path))) >= {"Tiny-Q8_0.gguf", "Other.gguf", "Split-00001-of-00003.gguf"}
    found = {model.name: model for model in local_models(Settings(home=home))}
    assert found["Split-00001-of-00003.gguf"].facts["architecture"].endswith("3 parts")
    assert "architecture 'gemma3' is not supported" in found["Other.gguf"].reasons[0]
