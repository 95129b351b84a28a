"""The commands about local models, on checkpoints that lie on the disk."""

import json
from pathlib import Path

import pytest

from app import cli
from tests.chat.checkpoints import save_checkpoint


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def run(capsys: pytest.CaptureFixture[str], home: Path, *words: object) -> tuple[int, dict, str]:
    """(exit code, the JSON, stderr) of a command."""
    code = cli.main(["--home", str(home), *map(str, words), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]), err


def test_models_are_listed_added_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home, folder = tmp_path / "home", save_checkpoint(tmp_path / "mine" / "alpha").parent
    (folder / "half").mkdir()
    (folder / "half" / "config.json").write_text("{}")
    capsys.readouterr()
    code, values, _ = run(capsys, home, "models", "add", folder)
    assert code == 0 and values["found"] == ["alpha", "half"]
    code, values, _ = run(capsys, home, "models")
    listed = {model["name"]: model for model in values["models"]}
    assert listed["alpha"]["usable"] and listed["alpha"]["load"] == [{"model": str(folder / "alpha"), "adapter": None}]
    assert not listed["half"]["usable"] and listed["half"]["reasons"] and listed["half"]["load"] == []
    assert cli.main(["--home", str(home), "models", "list"]) == 0
    assert "model type None is not supported" in capsys.readouterr().out
    assert run(capsys, home, "models", "remove", folder)[0] == 0
    code, values, err = run(capsys, home, "models", "remove", folder)
    assert code == 1 and "not among the added folders" in values["error"] and values["error"] in err
    assert "alpha" not in [model["name"] for model in run(capsys, home, "models")[1]["models"]]
    assert run(capsys, home, "models", "add", tmp_path / "none")[0] == 1
