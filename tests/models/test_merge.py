"""`merge`: the checkpoint is the model that was trained, loads everywhere, and nothing half made stays."""

import functools
import json
import shutil
from collections import namedtuple

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen3Config

from app.errors import ConfigError, InputError, ModelError
from app.models import checkpoint, merge_check, merging
from app.models import merge as module
from app.models.folder import fingerprint, weight_files
from app.models.inspect import inspect
from app.models.merge import merge
from app.models.rope import PositionConfig, rope_entry
from app.runtime import load
from app.settings import Settings
from tests import tiny
from tests.checkpoints import SIZES, adapter, cut, longlora, rewrite, save

TEXT = tiny.token_ids(100)
pytestmark = pytest.mark.filterwarnings("ignore:Model has")  # peft on tied weights


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    save(folder / "llama", LlamaConfig(**SIZES))
    save(folder / "tied", Qwen3Config(**SIZES, tie_word_embeddings=True))
    adapter(folder / "adapter", folder / "llama", modules_to_save=["embed_tokens", "norm"])
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def stock(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(torch.tensor([TEXT])).logits[0]


def in_the_app(monkeypatch, **settings):
    monkeypatch.setattr(checkpoint, "pick_dtype", lambda device: torch.float32)
    monkeypatch.setattr(load, "Engine", functools.partial(load.Engine, kv_dtype=torch.float32))
    made = load.load_engine(Settings(device="cpu", threads=1, **settings))
    return made, made.logits(made.forward(made.open_chat(), TEXT))


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_checkpoint_is_the_trained_model_everywhere(kept, tmp_path, monkeypatch):
    made = merge(kept / "adapter", tmp_path / "out")
    assert made.check.difference < 1e-5 and made.check.rounding < 1e-5 and made.check.same_tokens == 1
    assert (made.dtype, made.rows, made.tied, made.base, made.notes) == ("float32", 262, False, kept / "llama", ())
    _, adapted = in_the_app(monkeypatch, model=str(kept / "llama"), adapter=str(kept / "adapter"))
    engine_of, merged = in_the_app(monkeypatch, model=str(tmp_path / "out"))
    torch.testing.assert_close(merged, adapted, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(merged, stock(tmp_path / "out"), atol=1e-5, rtol=1e-5)
    assert (stock(kept / "llama") - merged).abs().max() > 0.1
    assert engine_of.trained_tokens == 512 and inspect(tmp_path / "out").facts["merged from"] == "adapter on llama"
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == 262
    assert left(tmp_path) == ["out"]


def test_what_is_recorded(kept, tmp_path):
    path = shutil.copytree(kept / "adapter", tmp_path / "tuned")
    weights = fingerprint(weight_files(kept / "llama"), {})
    rope = rope_entry(PositionConfig("ntk", (4.0,), 512), {"rope_type": "default", "rope_theta": 1e4}, 8)
    rewrite(
        path / "lectern.json", format=1, trained_tokens=2048, rope=rope, attention={"budget_tokens": 1024},
        base={"name": "llama", "fingerprint": weights}, training={"steps": 30, "tokens": 7}, tuning={"lora": {}},
    )  # fmt: skip
    merge(path, tmp_path / "out", dtype="bfloat16")
    recipe = json.loads((tmp_path / "out" / "lectern.json").read_text())
    assert (recipe["trained_tokens"], recipe["attention"], recipe["rope"]) == (2048, {"budget_tokens": 1024}, rope)
    assert recipe["base"] == {"name": "llama", "fingerprint": weights} and recipe["training"]["steps"] == 30
    assert (recipe["merged_from"]["name"], recipe["merged_from"]["layout"]) == ("tuned", "peft")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_parameters"]["rope_theta"] == pytest.approx(rope["theta"]) and rope["theta"] > 5e4
    assert (config["dtype"], config["max_position_embeddings"]) == ("bfloat16", 2048)


@pytest.mark.parametrize("method", ["ntk", "linear"])
def test_stretched_positions_go_into_the_config(kept, tmp_path, monkeypatch, method):
    path = shutil.copytree(kept / "adapter", tmp_path / "tuned")
    rope = rope_entry(PositionConfig(method, (4.0,), 512), {"rope_type": "default", "rope_theta": 1e4}, 8)
    rewrite(path / "lectern.json", trained_tokens=2048, rope=rope)
    merge(path, tmp_path / "out")
    _, adapted = in_the_app(monkeypatch, model=str(kept / "llama"), adapter=str(path))
    torch.testing.assert_close(stock(tmp_path / "out"), adapted, atol=1e-5, rtol=1e-5)
    plain = merge(kept / "adapter", tmp_path / "plain").folder
    assert (stock(plain) - adapted).abs().max() > 1e-3


def test_in_half_precision_only_rounding_differs(kept, tmp_path):
    check = merge(kept / "adapter", tmp_path / "out", dtype="bfloat16").check
    assert check.difference <= 1e-3 < check.rounding < 0.1
    assert {weight.dtype for weight in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_stay_tied_where_they_were_trained_so(kept, tmp_path, tied):
    path = adapter(tmp_path / "a", kept / "tied", modules_to_save=["embed_tokens"], ensure_weight_tying=tied)
    made = merge(path, tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert made.tied is tied and config["tie_word_embeddings"] is tied and ("lm_head.weight" in weights) is not tied
    assert made.check.difference < 1e-5 and bool(made.notes) is not tied


def test_trained_token_rows(kept, tmp_path):
    path = adapter(tmp_path / "a", kept / "tied", trainable_token_indices={"embed_tokens": [1, 70]})
    made = merge(path, tmp_path / "out")
    before = load_file(kept / "tied" / "model.safetensors")["model.embed_tokens.weight"]
    after = load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens.weight"]
    assert (before != after).any(dim=1).nonzero().flatten().tolist() == [1, 70] and made.tied


def test_shards_are_read_and_written(tmp_path, monkeypatch):
    base = save(tmp_path / "base", LlamaConfig(**SIZES), shard_size="20KB")
    path = adapter(tmp_path / "a", base)
    monkeypatch.setattr(module, "SHARD_BYTES", 30_000)
    made = merge(path, tmp_path / "out")
    files = weight_files(tmp_path / "out")
    assert len(files) > 2 and sum(file.stat().st_size for file in files) == made.size_bytes
    assert max(file.stat().st_size for file in files) < 60_000 and made.check.difference < 1e-5
    assert not list((tmp_path / "out").glob("*.part"))


# --- old LongLoRA folders


@pytest.fixture
def old(kept, tmp_path):
    """Trained with a padding token that the base does not have, as LongLoRA's scripts do it."""
    path = longlora(tmp_path / "old", kept / "adapter")
    trained = torch.load(path / "trainable_params.bin")
    rows = trained["model.embed_tokens.weight"]
    trained["model.embed_tokens.weight"] = torch.cat([rows, torch.full((1, 32), 0.1)])
    torch.save({f"base_model.model.{name}": weight for name, weight in trained.items()}, path / "trainable_params.bin")
    return path


def test_longlora_with_its_padding_token(kept, tmp_path, old):
    made = merge(old, tmp_path / "out", trained_tokens=2000)
    assert made.rows == 263 and made.check.difference < 1e-5 and "[PAD]" in made.notes[0]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (len(tokenizer), tokenizer.pad_token, tokenizer.pad_token_id) == (263, "[PAD]", 262)
    head = load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"]
    base = load_file(kept / "llama" / "model.safetensors")["lm_head.weight"]
    assert torch.equal(head[:262], base) and torch.allclose(head[262], base.mean(0))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vocab_size"] == 263 and config["rope_parameters"]["rope_type"] == "linear"
    assert config["rope_parameters"]["factor"] == 4.0 and config["max_position_embeddings"] == 2000
    found = inspect(tmp_path / "out")
    assert found.usable and found.facts["trained length"] == "2,000 tokens"


def test_tokens_that_the_adapter_names(tmp_path, old):
    """As a slow tokenizer leaves them: no tokenizer.json, whose place the base's takes."""
    (old / "added_tokens.json").write_text(json.dumps({"<fill>": 262}))
    (old / "tokenizer.model").write_bytes(b"sentencepiece")
    made = merge(old, tmp_path / "out", trained_tokens=512)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (len(tokenizer), tokenizer.convert_tokens_to_ids("<fill>")) == (263, 262) and "<fill>" in made.notes[0]
    assert "tokenizer.model" not in left(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["max_position_embeddings"] == 512


def test_longlora_does_not_say_its_length(tmp_path, old):
    with pytest.raises(ConfigError, match="on which length they were trained.*--trained-tokens, such as"):
        merge(old, tmp_path / "out")
    assert left(tmp_path) == ["old"]


def test_a_vocabulary_that_no_tokenizer_explains(tmp_path, old):
    trained = torch.load(old / "trainable_params.bin")
    name = "base_model.model.model.embed_tokens.weight"
    trained[name] = torch.cat([trained[name]] * 2)
    torch.save(trained, old / "trainable_params.bin")
    with pytest.raises(ModelError, match="trained with 526 token ids, the tokenizer of llama has 262; copy the tok"):
        merge(old, tmp_path / "out", trained_tokens=512)
    tokenizer = tiny.byte_tokenizer()
    tokenizer.add_tokens([f"<{i}>" for i in range(300)])
    tokenizer.save_pretrained(old)
    with pytest.raises(ModelError, match="the tokenizer has 562 ids, the embeddings 526 rows"):
        merge(old, tmp_path / "out", trained_tokens=512)
    assert left(tmp_path) == ["old"]


# --- refusals


def wrong_weights(kept, tmp_path):
    other = shutil.copytree(kept / "llama", tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    path = shutil.copytree(kept / "adapter", tmp_path / "a")
    rewrite(path / "lectern.json", base={"name": "first", "fingerprint": fingerprint(weight_files(kept / "llama"), {})})
    return {"adapter": path, "base": other}


def wrong_shapes(kept, tmp_path):
    return {"base": save(tmp_path / "wide", LlamaConfig(**{**SIZES, "hidden_size": 64}))}


def not_a_number(kept, tmp_path):
    path = shutil.copytree(kept / "adapter", tmp_path / "a")
    weights = load_file(path / "adapter_model.safetensors")
    weights["base_model.model.model.norm.weight"][3] = float("nan")
    save_file(weights, path / "adapter_model.safetensors")
    return {"adapter": path}


def too_large(kept, tmp_path):
    base = shutil.copytree(kept / "llama", tmp_path / "large")
    weights = load_file(base / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0] = 1e6
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    return {"base": base, "dtype": "float16"}


def cut_base(kept, tmp_path):
    base = shutil.copytree(kept / "llama", tmp_path / "cut")
    cut(base / "model.safetensors", 0.7)
    return {"base": base}


def no_base(kept, tmp_path):
    path = shutil.copytree(kept / "adapter", tmp_path / "a")
    rewrite(path / "adapter_config.json", base_model_name_or_path="gone/away")
    return {"adapter": path}


def stated_twice(kept, tmp_path):
    path = shutil.copytree(kept / "adapter", tmp_path / "a")
    rewrite(path / "lectern.json", trained_tokens=1024)
    return {"adapter": path, "trained_tokens": 2048}


REFUSALS = [
    (wrong_weights, ModelError, r"was trained on first \(fingerprint .* holds other weights"),
    (wrong_shapes, ModelError, "was made for another model than wide"),
    (not_a_number, ModelError, "model.norm.weight holds values that are not numbers"),
    (
        too_large,
        ModelError,
        r"layers.0.mlp.up_proj.weight: holds values .* too large for float16; choose --dtype float32",
    ),
    (cut_base, ModelError, "model.safetensors: is damaged or cut short"),
    (no_base, ModelError, "its base gone/away is not on this machine; give the folder of it with --base"),
    (stated_twice, ConfigError, "says itself that it was trained on 1024; leave the flag out"),
    (lambda kept, _: {"adapter": kept / "llama"}, ModelError, "is a checkpoint already; there is nothing to merge"),
    (lambda kept, path: {"adapter": path}, ModelError, "no adapter_config.json there"),
    (lambda kept, path: {"base": path}, ModelError, "no config.json; this is not a checkpoint folder"),
    (lambda kept, path: {"base": path / "no"}, ModelError, "--base .*/no: no such folder; give the folder of the"),
]


@pytest.mark.parametrize(("make", "kind", "message"), REFUSALS)
def test_what_does_not_fit_is_refused(kept, tmp_path, make, kind, message):
    out = tmp_path / "results" / "out"
    with pytest.raises(kind, match=message):
        merge(**{"adapter": kept / "adapter", "out": out, **make(kept, tmp_path)})
    assert not out.parent.exists() or left(out.parent) == []


def test_nothing_is_overwritten_without_force(kept, tmp_path):
    out = shutil.copytree(kept / "llama", tmp_path / "out")
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="is there already; choose another folder, or add --force"):
        merge(kept / "adapter", out)
    with pytest.raises(ModelError, match="no adapter_config.json"):
        merge(tmp_path, out, force=True)
    assert (out / "model.safetensors").read_bytes() == before
    merge(kept / "adapter", out, force=True)
    assert (out / "model.safetensors").read_bytes() != before and left(tmp_path) == ["out"]


def test_force_spares_what_is_no_model(kept, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "one.txt").write_text("Dear")
    with pytest.raises(InputError, match="holds no model, so it stays"):
        merge(kept / "adapter", tmp_path / "letters", force=True)
    base = shutil.copytree(kept / "llama", tmp_path / "models" / "llama")
    for out in (base, base.parent):
        with pytest.raises(InputError, match="which is read; choose another folder"):
            merge(kept / "adapter", out, base=base, force=True)
    assert left(tmp_path) == ["letters", "models"] and (base / "config.json").exists()


def test_a_full_disk_is_told_first(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: namedtuple("usage", "free")(40_000_000))
    with pytest.raises(InputError, match="needs about 50 MB, 40 MB are free"):
        merge(kept / "adapter", tmp_path / "out")
    assert left(tmp_path) == []


def test_a_merge_that_went_wrong_leaves_nothing(kept, tmp_path, monkeypatch):
    right = merging.AdapterWeights._scale
    monkeypatch.setattr(merging.AdapterWeights, "_scale", lambda *args: 2 * right(*args))
    with pytest.raises(ModelError, match="differ from the adapter's by .* so nothing was written"):
        merge(kept / "adapter", tmp_path / "out", dtype="bfloat16")
    assert left(tmp_path) == []


TIED = [
    {"target_modules": ["q_proj", "embed_tokens"]},
    {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    {"target_modules": ["q_proj", "lm_head"], "ensure_weight_tying": True},
    {"trainable_token_indices": {"lm_head": [3, 5], "embed_tokens": [7, 5]}},
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("trained", TIED)
def test_what_was_trained_on_tied_embeddings_is_merged_once(kept, tmp_path, trained):
    """peft's own merge adds it twice, or mixes the rows of both: the measure is the adapter as it runs."""
    path = adapter(tmp_path / "a", kept / "tied", **trained)
    assert merge(path, tmp_path / "out").check.difference < 1e-5


def test_an_adapter_is_compared_with_its_merge_before_it_is_loaded_once(kept, tmp_path, monkeypatch):
    known = {}
    right = merging.AdapterWeights._scale
    settings = Settings(device="cpu", threads=1, model=str(kept / "llama"), adapter=str(kept / "adapter"))
    monkeypatch.setattr(merging.AdapterWeights, "_scale", lambda *args: 2 * right(*args))
    with pytest.raises(ModelError, match="merged here its logits differ .* so it is not loaded"):
        load.load_engine(settings, known)
    monkeypatch.undo()
    load.load_engine(settings, known)
    monkeypatch.setattr(merge_check, "_trained_logits", None)  # not called again
    load.load_engine(settings, known)


def test_an_adapter_saved_again_is_the_same(kept, tmp_path):
    """peft writes the lists of adapter_config.json in another order each time."""
    paths = [kept / "adapter" / "adapter_config.json", tmp_path / "adapter_config.json"]
    values = json.loads(paths[0].read_text())
    paths[1].write_text(json.dumps({**values, "target_modules": values["target_modules"][::-1]}, indent=1))
    assert fingerprint(paths[:1], {}) == fingerprint(paths[1:], {})
    rewrite(paths[1], lora_alpha=99)
    assert fingerprint(paths[:1], {}) != fingerprint(paths[1:], {})


def test_a_stopped_merge_leaves_nothing(kept, tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "compare", stop)
    with pytest.raises(KeyboardInterrupt):
        merge(kept / "adapter", tmp_path / "out")
    assert left(tmp_path) == []


def test_too_little_memory_to_compare_is_said(kept, tmp_path, monkeypatch):
    memory = psutil.virtual_memory()._replace(available=100_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    made = merge(kept / "adapter", tmp_path / "out")
    assert made.check is None and "not compared with the adapter's model" in made.notes[0]
    assert len(weight_files(tmp_path / "out")) > 1
