"""Checkpoints of every supported architecture, adapters, and every reason to refuse a folder."""

import functools
import json
import shutil
from collections import namedtuple

import peft
import psutil
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from app.errors import ConfigError, LecternError, ModelError
from app.models import checkpoint
from app.models.folder import model_files, tokenizer_files, weight_files
from app.runtime import load as loading
from app.settings import SHIPPED_MODEL, Settings
from tests import tiny
from tests.checkpoints import SIZES, adapter, cut, rewrite, save

CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "llama-scaled": LlamaConfig(
        **SIZES,
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    ),
    "llama-yarn": LlamaConfig(
        **SIZES,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128,
        },
    ),
    "mistral": MistralConfig(**{**SIZES, "max_position_embeddings": 2048}, sliding_window=384),
    "qwen2": Qwen2Config(**SIZES),
    "qwen2-windows": Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=384, max_window_layers=1),
    "qwen3": Qwen3Config(**{**SIZES, "head_dim": 16}),
}  # fmt: skip
TEXT = tiny.token_ids(150)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return functools.cache(lambda name: save(folder / name, CONFIGS[name]))


@pytest.fixture
def llama(saved, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(saved("llama"), tmp_path / "llama")


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """float32 throughout, so that equal means equal; the number of threads stays."""
    monkeypatch.setattr(checkpoint, "pick_dtype", lambda device: torch.float32)
    monkeypatch.setattr(loading, "Engine", functools.partial(loading.Engine, kv_dtype=torch.float32))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def load(folder, **settings):
    return loading.load_engine(Settings(model=str(folder), device="cpu", threads=1, **settings))


def logits(made, token_ids=TEXT):
    return made.logits(made.forward(made.open_chat(), token_ids))


def stock_logits(model, token_ids=TEXT):
    with torch.inference_mode():
        return model.eval()(torch.tensor([token_ids])).logits[0]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_equals_transformers(saved, name):
    made = load(saved(name))
    expected = stock_logits(AutoModelForCausalLM.from_pretrained(saved(name), dtype=torch.float32))
    torch.testing.assert_close(logits(made), expected, atol=1e-5, rtol=1e-5)
    assert made.budget_tokens == (384 if name in ("mistral", "qwen2-windows") else 512)


def test_shards_are_read(tmp_path):
    folder = save(tmp_path / "shards", CONFIGS["llama"], shard_size="20KB")
    assert len(weight_files(folder)) > 2
    expected = stock_logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    torch.testing.assert_close(logits(load(folder)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("more", [{}, {"modules_to_save": ["embed_tokens", "norm"]}])
def test_an_adapter_is_merged_as_peft_does(llama, tmp_path, more):
    path = adapter(tmp_path / "adapter", llama, **more)
    merged = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), path).merge_and_unload()
    made, bare = load(llama, adapter=str(path)), load(llama)
    torch.testing.assert_close(logits(made), stock_logits(merged), atol=1e-5, rtol=1e-5)
    assert (logits(made) - logits(bare)).abs().max() > 0.1
    assert made.recipe != bare.recipe


def test_an_adapter_of_other_weights_is_refused_before_any_is_loaded(llama, tmp_path, monkeypatch):
    path = adapter(tmp_path / "adapter", llama)
    rewrite(path / "lectern.json", base={"name": "theirs", "fingerprint": "0" * 64})
    monkeypatch.setattr(checkpoint, "load_model", lambda *args: pytest.fail("loaded"))
    with pytest.raises(ModelError, match=r"trained on theirs \(fingerprint 000000000000\), and .*llama holds"):
        load(llama, adapter=str(path))


def test_merging_in_half_precision_leaves_the_positions_exact(llama, tmp_path, monkeypatch):
    """The rotary frequencies are no weights: in bfloat16 they would be off by up to one position in five hundred."""
    monkeypatch.setattr(checkpoint, "pick_dtype", lambda device: torch.bfloat16)
    path = adapter(tmp_path / "adapter", llama)
    made, bare = load(llama, adapter=str(path)), load(llama)
    assert made.model.dtype == torch.bfloat16
    assert torch.equal(made.spec.inv_freq, bare.spec.inv_freq) and made.spec.inv_freq.dtype == torch.float32


def test_the_recipe_follows_the_weights_and_the_reading(llama):
    first, known = load(llama), {}
    assert loading.load_engine(Settings(model=str(llama), device="cpu"), known).recipe == first.recipe
    files = [key for key in known if not key.startswith("weights-in:")]  # beside them the form that was timed
    assert len(files) == len([*model_files(llama, None), *tokenizer_files(llama)])
    assert load(llama, budget_tokens=384).recipe != first.recipe
    assert load(llama, policy="streaming").recipe != first.recipe
    weights = load_file(llama / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, llama / "model.safetensors", metadata={"format": "pt"})
    assert load(llama).recipe != first.recipe


def test_lectern_json_says_how_to_read(llama):
    recipe = {
        "format": 1, "demonstration": True, "trained_tokens": 448, "system_prompt": "Be kind.",
        "attention": {"budget_tokens": 256, "region_tokens": 32}, "rope": {}, "training": {},
    }  # fmt: skip
    (llama / "lectern.json").write_text(json.dumps(recipe))
    made = load(llama)
    assert (made.budget_tokens, made.trained_tokens, made.shape.attention.region_tokens) == (256, 448, 32)
    assert made.demonstration and made.system_prompt == "Be kind."
    assert load(llama, budget_tokens=320).budget_tokens == 320


def test_lectern_json_says_how_an_answer_chooses(llama):
    assert load(llama).reselect_every == 8  # where nothing is said
    first = load(llama).recipe
    layers = json.loads((llama / "config.json").read_text())["num_hidden_layers"]
    rewrite(llama / "lectern.json", decode={"reselect_every": [8] * layers})
    made = load(llama)
    assert made.reselect_every == (8,) * layers and made.recipe == first  # what was read stays read
    assert load(llama, reselect_every=1).reselect_every == 1
    assert made.draft_tokens == 0
    rewrite(llama / "lectern.json", decode={"draft_tokens": 16})
    assert load(llama).draft_tokens == 16 and load(llama).recipe == first
    assert load(llama, draft_tokens=0).draft_tokens == 0
    assert made.lookup == "attention"
    rewrite(llama / "lectern.json", decode={"lookup": "both"})
    assert load(llama).lookup == "both" and load(llama).recipe == first
    assert load(llama, lookup="words").lookup == "words"


def test_a_model_from_the_hub_keeps_its_name(llama, monkeypatch):
    monkeypatch.setattr(loading, "find_folder", lambda model, **options: llama)
    assert load("ORG/Some-Model-1B").name == "Some-Model-1B"


def test_the_budget_is_4096_for_a_model_trained_to_more(tmp_path):
    config = {"model_type": "llama", "max_position_embeddings": 131_072}
    assert checkpoint.read_recipe(tmp_path, config, Settings()).attention.budget_tokens == 4096
    config["max_position_embeddings"] = 1000
    assert checkpoint.read_recipe(tmp_path, config, Settings()).attention.budget_tokens == 896


# --- refusals


def drop_a_shard(folder):
    weights = folder / "model.safetensors"
    weights.rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


DAMAGES = {
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json; this is not a checkpoint folder"),
    "broken config": (
        lambda f: cut(f / "config.json", 0.5),
        r"config.json: cannot be read as JSON \(.*copy or download",
    ),
    "binary config": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\0"), "config.json: cannot be read as JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[1]"), "config.json: holds no JSON object"),
    "other type": (
        lambda f: rewrite(f / "config.json", model_type="gpt2"),
        "'gpt2' is not supported; Lectern runs llama, ",
    ),
    "quantised": (lambda f: rewrite(f / "config.json", quantization_config={"bits": 4}), "unquantised checkpoint"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"weights are missing \(model.safetensors or "),
    "missing shard": (drop_a_shard, r"missing \(model-00002-of-00002.safetensors\); the folder is incomplete"),
    "cut weights": (lambda f: cut(f / "model.safetensors", 0.6), "model.safetensors: is damaged or cut short"),
    "cut header": (lambda f: cut(f / "model.safetensors", 0.001), "model.safetensors: is damaged or cut short"),
    "empty weights": (
        lambda f: (f / "model.safetensors").write_bytes(b""),
        "model.safetensors: is damaged or cut short",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json; copy the tokenizer files"),
    "cut tokenizer": (lambda f: cut(f / "tokenizer.json", 0.5), "the tokenizer cannot be loaded: "),
    "odd tokenizer": (
        lambda f: (f / "tokenizer.json").write_text('{"version": "1.0", "added_tokens": [], "model": {"type": "BPE"}}'),
        "the tokenizer cannot be loaded: Missing vocab",
    ),
    "unknown key": (
        lambda f: rewrite(f / "lectern.json", colour=1),
        "lectern.json: colour is not known to this version",
    ),
    "unknown choice": (
        lambda f: rewrite(f / "lectern.json", attention={"sinks": 4}),
        "lectern.json: sinks is not known",
    ),
    "later format": (lambda f: rewrite(f / "lectern.json", format=2), "lectern.json: format is not known .* update"),
    "no number": (
        lambda f: rewrite(f / "lectern.json", attention={"merge": "2"}),
        "lectern.json: merge = '2': must be a whole number",
    ),
    "no number of tokens": (
        lambda f: rewrite(f / "lectern.json", decode={"reselect_every": "4"}),
        "lectern.json: reselect_every = '4': must be a whole number",
    ),
    "a draft of less than nothing": (
        lambda f: rewrite(f / "lectern.json", decode={"draft_tokens": -1}),
        "lectern.json: draft_tokens = -1: must be a whole number, 0 for none",
    ),
    "a look-up by nothing known": (
        lambda f: rewrite(f / "lectern.json", decode={"lookup": "smell"}),
        "lectern.json: lookup = 'smell': not known; choose one of attention, words, both",
    ),
    "a layer too many": (
        lambda f: rewrite(f / "lectern.json", decode={"reselect_every": [1] * 99}),
        r"lectern.json: reselect_every = \[1, .*\]: has 99 numbers, the model \d layers",
    ),
    "unknown way to decode": (
        lambda f: rewrite(f / "lectern.json", decode={"every": 4}),
        "lectern.json: every is not known to this version",
    ),
    "no table": (lambda f: rewrite(f / "lectern.json", attention=[1]), "lectern.json: attention is not a table"),
    "broken lectern.json": (lambda f: (f / "lectern.json").write_text("{"), "lectern.json: cannot be read as JSON"),
}


@pytest.fixture
def nothing_allocated(monkeypatch):
    for kind in (transformers.AutoModelForCausalLM, peft.PeftModel):
        monkeypatch.setattr(kind, "from_pretrained", lambda *args, **kwargs: pytest.fail("the model was loaded"))


@pytest.mark.usefixtures("nothing_allocated")
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_refused(llama, name):
    damage, message = DAMAGES[name]
    damage(llama)
    with pytest.raises(ModelError, match=message) as refusal:
        load(llama)
    assert str(llama) in str(refusal.value)


@pytest.mark.usefixtures("nothing_allocated")
@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"model": "/no/such/folder"}, ModelError, "no such folder; give a checkpoint folder or a hub id"),
        ({"model": "./no-folder"}, ModelError, "no such folder"),
        ({"model": "a/b/c"}, ModelError, "no such folder"),
        ({"model": "FOLDER/config.json"}, ModelError, "is no GGUF file; give one, or the folder that holds"),
        ({"model": "nobody/nothing"}, ModelError, "not on this machine; add --download"),
        ({"model": "nobody/nothing", "download": True}, ModelError, "the hub cannot be reached"),
        ({"model": "no body/noth ing"}, ModelError, "the hub refused it"),
        ({"budget_tokens": 640}, ConfigError, "budget_tokens = 640: the model was trained to attend to 512"),
        ({"budget_tokens": 400}, ConfigError, "budget_tokens = 400: must be a multiple of 128"),
        ({"device": "cuda"}, ConfigError, "--device cuda: this PyTorch sees no CUDA device"),
        ({"adapter": "FOLDER"}, ModelError, "no adapter_config.json there; give the folder of a LoRA adapter"),
        ({"adapter": "/no/such/folder"}, ModelError, "no adapter_config.json there"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(llama, monkeypatch, settings, kind, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = {k: v.replace("FOLDER", str(llama)) if isinstance(v, str) else v for k, v in settings.items()}
    with pytest.raises(kind, match=message):
        loading.load_engine(Settings(**{"model": str(llama), **settings}))


@pytest.mark.usefixtures("nothing_allocated")
def test_a_budget_beyond_a_sliding_window_is_refused(saved):
    with pytest.raises(ConfigError, match="trained to attend to 384"):
        load(saved("mistral"), budget_tokens=512)


def free(monkeypatch, free_bytes):
    memory = namedtuple("memory", "available total")(free_bytes, 1 << 34)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def test_too_little_memory_is_refused(llama, tmp_path, monkeypatch):
    """Weights are counted as they will be held: a float32 folder takes half its size in bfloat16."""
    size = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(llama).parameters()) * 4
    path = adapter(tmp_path / "adapter", llama)
    free(monkeypatch, size)
    with pytest.raises(ModelError, match="llama: needs about .* GiB are free on cpu; close other programs"):
        load(llama)
    cpu = torch.device("cpu")
    checkpoint.check_memory(llama, cpu, torch.bfloat16)
    with pytest.raises(ModelError, match="needs about"):
        checkpoint.check_memory(llama, cpu, torch.bfloat16, merging=True)
    free(monkeypatch, size * 1.2)
    load(llama, adapter=str(path))


def other_size(path, llama):
    save(path / "wide", LlamaConfig(**{**SIZES, "hidden_size": 64}))
    return adapter(path / "adapter", path / "wide")


def more_layers(path, llama):
    save(path / "deep", LlamaConfig(**{**SIZES, "num_hidden_layers": 3}))
    return adapter(path / "adapter", path / "deep")


def other_names(path, llama):
    adapter(path / "adapter", llama)
    file = path / "adapter" / "adapter_model.safetensors"
    weights = {name.replace("self_attn.q_proj", "attention.wq"): w for name, w in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    return path / "adapter"


def other_kind(path, llama):
    adapter(path / "adapter", llama)
    rewrite(path / "adapter" / "adapter_config.json", peft_type="IA3")
    return path / "adapter"


def no_weights(path, llama):
    adapter(path / "adapter", llama)
    (path / "adapter" / "adapter_model.safetensors").unlink()
    return path / "adapter"


def cut_weights(path, llama):
    adapter(path / "adapter", llama)
    cut(path / "adapter" / "adapter_model.safetensors", 0.5)
    return path / "adapter"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (other_size, r"another model than llama: .*_proj.lora_A.weight has the shape \(4, 64\); choose"),
        (more_layers, "another model than llama: .*layers.2"),
        (other_names, "another model than llama: .*attention.wq"),
        (other_kind, "is of type IA3; only LoRA adapters can be merged"),
        (no_weights, "no adapter_model.safetensors there"),
        (cut_weights, "adapter_model.safetensors: is damaged or cut short"),
    ],
)
def test_an_adapter_that_does_not_belong_is_refused(llama, tmp_path, request, make, message):
    path = make(tmp_path, llama)
    request.getfixturevalue("nothing_allocated")
    with pytest.raises(ModelError, match=message):
        load(llama, adapter=str(path))


@pytest.mark.parametrize("change", ["missing", "wide"])
def test_weights_that_do_not_belong_to_the_config_are_refused(llama, change):
    """Transformers would fill such weights with random numbers."""
    weights = load_file(llama / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if change == "missing":
        del weights[name]
    else:
        weights[name] = torch.zeros(3, 3)
    save_file(weights, llama / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"do not belong to its config.json: {name} .*copy or download"):
        load(llama)


def test_every_refusal_is_one_line(llama):
    rewrite(llama / "config.json", num_attention_heads=5)
    with pytest.raises(LecternError) as refusal:
        load(llama)
    assert "\n" not in str(refusal.value)


def test_the_model_that_ships_looks_up_by_both():
    recipe = checkpoint.read_recipe(SHIPPED_MODEL, {"model_type": "llama", "num_hidden_layers": 30}, Settings())
    assert (recipe.decode.lookup, recipe.decode.draft_tokens) == ("both", 16)
