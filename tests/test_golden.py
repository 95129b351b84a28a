"""What is on disks already keeps its names: recipes, block keys, bundles and `lectern.json`.

A value that changes here makes every document be read again, or a file of another version be refused. Change one only
together with a new MEMORY_FORMAT or bundle format, and say so in the changelog.
"""

import hashlib
import json
import zipfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import pytest

from app.models.checkpoint import read_recipe
from app.runtime import policies
from app.settings import POLICIES, Settings
from app.train.tune.output import Base, lectern_json
from app.train.tune.recipe import read_tuning
from tests import tiny
from tests.chat.opened import SHORT, Open, finish, open_chat, write

__all__ = ["open_chat"]

ROOT = Path(__file__).resolve().parent.parent
RECIPES = {
    "raw": {
        "keep-all": "333be1c7770c5cb8",
        "bounded": "a31a62427613d5f2",
        "h2o": "c35cc2bb8ba93a3c",
        "streaming": "7d633b70432d547c",
        "infllm": "fe355d6e33a4a8b4",
        "full": "be2aaef4888d25f9",
    },
    "int8": {"keep-all": "8906bf6fcdb5ce24"},
    "int4": {"keep-all": "144b3127d79dff8b"},
}
KEYS = {"keep-all": (157, "7c963b4f765466ec"), "bounded": (157, "981a08d32e45a8ea"), "h2o": (5, "488544c78e20da73")}
BUNDLE = {
    "names": "08b07e939a262d33",
    "manifest": ["entries", "format", "parts", "recipe", "version"],
    "document": "created detail id kind memories notes parts sha256 skipped state title tokens".split(),
    "chat": [
        ["info", "messages", "tail"],
        ["content", "evidence", "id", "role", "stats"],
        ["memories", "token_ids", "turns"],
    ],
    "tokens": "668fb8d46e93f808",
    "block": "04000000030000004000000000060000",
}
PAIR = ("config", "lectern")
WRITTEN = {"sf": "8f2886a17e5016d6", "ms": "c5ac9acbbd3a4d1a"}
TUNING = {
    "sf": 'attention = "sf"\ntokens = 4096\n[positions]\nmethod = "ntk"\nfactors = [2]\n',
    "ms": 'attention = "ms"\ntokens = 2048\n[selection]\nbudget_tokens = 1024\n',
}
READ = "c688f9e65be432d1"


def digest(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


@pytest.mark.parametrize("codec", ("raw", "int8", "int4"))
def test_engine_recipes(codec: str) -> None:
    made = tiny.engine(codec=codec)
    others = [name for name in POLICIES if name != "keep-all" and codec == "raw"]  # only keep-all packs
    found = {name: made.under(policies.named(name)).recipe[:16] for name in others}
    assert {"keep-all": made.recipe[:16], **found} == RECIPES[codec]


@pytest.mark.parametrize("policy", ("keep-all", "bounded", "h2o"))
def test_block_keys(open_chat: Open, tmp_path: Path, policy: str) -> None:
    """Of a document and of its scores or slots."""
    chat = open_chat(policy=policy)
    document = chat.library.add_document(write(tmp_path, words=200))
    for _ in chat.read(document.id):
        pass
    keys = chat.store.manifest(document.id, tiny.engine(policy=policy).recipe, 0)
    assert chat.store.blocks.known_prefix(keys) == len(keys)
    assert (len(keys), digest(keys)) == KEYS[policy]


def test_exported_bundle(open_chat: Open, tmp_path: Path) -> None:
    chat = open_chat()
    document = chat.library.add_document(write(tmp_path, words=200))
    key = finish(chat.ask("who is it?", documents=[document.id], generation=SHORT)).chat
    chat.transfers.export_file(key, tmp_path / "chat.lectern")
    with zipfile.ZipFile(tmp_path / "chat.lectern") as file:
        names = file.namelist()
        manifest = json.loads(file.read("manifest.json"))
        told = json.loads(file.read(f"documents/{document.id}.json"))
        said = json.loads(file.read("chat.json"))
        tokens = hashlib.sha256(file.read(f"documents/{document.id}/0.tokens")).hexdigest()[:16]
        head = file.read(f"documents/{document.id}/0/0.block")[:16].hex()
    assert {
        "names": digest(names),
        "manifest": sorted(manifest),
        "document": sorted(told),
        "chat": [sorted(said), sorted(said["messages"][1]), sorted(said["tail"])],
        "tokens": tokens,
        "block": head,
    } == BUNDLE


@pytest.mark.parametrize("kind", TUNING)
def test_lectern_json_written(shipped_model: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "recipe.toml"
    text = '[tune]\nbase = "lectern-small"\nsteps = 40\n' + TUNING[kind] + '[data]\nfiles = ["book.txt"]\n'
    path.write_text(text, encoding="utf-8")
    base = Base(shipped_model, *(json.loads((shipped_model / f"{name}.json").read_text()) for name in PAIR))
    found = lectern_json(read_tuning(path), base, {"steps": 40})
    assert sorted(found.pop("versions")) == ["lectern", "peft", "torch", "transformers"]
    assert digest([json.dumps(found, sort_keys=True)]) == WRITTEN[kind]


def test_lectern_json_read(shipped_model: Path) -> None:
    config = json.loads((shipped_model / "config.json").read_text())
    found = asdict(read_recipe(shipped_model, config, Settings()))
    assert digest([json.dumps(found, sort_keys=True)]) == READ
