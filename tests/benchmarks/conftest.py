import json
from dataclasses import asdict
from pathlib import Path

import pytest

from app.eval import needles, passkey
from benchmarks import attached, evidence
from tests import tiny


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a checkpoint."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny.model().save_pretrained(folder)
    tiny.byte_tokenizer().save_pretrained(folder)
    recipe = {"format": 1, "trained_tokens": tiny.SMALL.budget_tokens, "attention": asdict(tiny.SMALL)}
    (folder / "lectern.json").write_text(json.dumps(recipe), encoding="utf-8")
    return folder


@pytest.fixture
def quick(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags that run a benchmark in a moment; answers are cut short, as the tiny model never ends one."""
    for module in (passkey, attached, evidence):
        monkeypatch.setattr(module, "ANSWER_TOKENS", 6)
    monkeypatch.setattr(needles, "ANSWER_TOKENS", {})
    monkeypatch.setattr(needles, "OTHER_ANSWER_TOKENS", 6)
    work, output = tmp_path / "work", tmp_path / "results" / "result.json"
    return ["--quick", "--model", str(tiny_folder), "--work", str(work), "--output", str(output)]
