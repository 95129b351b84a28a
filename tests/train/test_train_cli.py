"""The command that makes a model: recipes it refuses, and the folder it leaves."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from app import cli
from app.errors import ConfigError, InputError
from app.memory.config import AttentionConfig, DecodeConfig, GenerationConfig
from app.runtime.load import load_engine
from app.settings import Settings
from app.train.cli import export, main, read_recipe
from app.train.pretrain.trainer import PretrainingRecipe, Stage, new_model
from tests import checkpoints, tiny
from tests.train.conftest import FROZEN

RECIPE = """
[pretrain]
hidden = 16
induction = false
intermediate = 24
layers = 1
heads = 2
kv_heads = 1

[pretrain.shares]
text = 0.5
passkey = 0.5

[[pretrain.stages]]
tokens = 128
batch = 1
steps = 2

[[pretrain.stages]]
tokens = 512
batch = 1
steps = 1

[attention]
budget_tokens = 512
"""


@pytest.fixture
def recipe(tmp_path):
    """A folder as that of the shipped model before its training."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((FROZEN / name).read_bytes())
    (folder / "recipe.toml").write_text(RECIPE)
    return folder / "recipe.toml"


@pytest.mark.parametrize("name", ["recipe-1.toml", "recipe-gpu.toml"])
def test_the_recipes_from_nothing_can_be_read(name, tokenizer):
    """At most 2 KiB of bfloat16 keys and values per token, and 20 MB of weights."""
    config, attention, _ = read_recipe(FROZEN / name)
    last, _, _ = read_recipe(FROZEN / "recipe.toml")
    assert config.trained_tokens == last.trained_tokens >= 2048 and attention.budget_tokens <= config.trained_tokens
    bytes_per_token = 2 * 2 * config.layers * config.kv_heads * config.hidden // config.heads
    assert bytes_per_token <= 2048 and config.kv_heads < config.heads
    with torch.device("meta"):
        model = new_model(replace(config, induction=False), tokenizer)
    assert 2 * model.num_parameters() <= 20_000_000


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("hidden = 16", "hiden = 16", r"\[pretrain\]: unknown key hiden; known are .*hidden"),
        ("steps = 1", "step = 1", r"\[\[pretrain.stages\]\]: unknown key step"),
        ("budget_tokens = 512", "sinks = 4", r"\[attention\]: unknown key sinks"),
        ("budget_tokens = 512", "budget_tokens = 100", "budget_tokens = 100: must be a multiple of 128"),
        ("text = 0.5", "poems = 0.5", "shares: poems = 0.5; tasks are text"),
        ("steps = 1", "steps = 0", "tokens, batch and steps must be positive"),
        ("[[pretrain.stages]]", "[pretrain.stages", "recipe.toml: cannot be read as a recipe"),
    ],
)
def test_recipes_with_mistakes_are_refused(recipe, old, new, message):
    recipe.write_text(RECIPE.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        read_recipe(recipe)


def test_recipes_without_stages_or_file_are_refused(recipe):
    with pytest.raises(ConfigError, match="cannot be read as a recipe"):
        read_recipe(recipe.parent / "none.toml")
    recipe.write_text("[pretrain]\nhidden = 16\n")
    with pytest.raises(ConfigError, match="give at least one with tokens, batch and steps"):
        read_recipe(recipe)


def test_a_folder_without_books_is_refused(recipe, tmp_path):
    with pytest.raises(InputError, match="no books/index.tsv there; give the data folder"):
        main([str(recipe), "--data", str(tmp_path)])


def stock_logits(folder, ids):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits


def test_an_exported_model_is_a_plain_checkpoint(recipe, tokenizer):
    """The weights are those that were trained, in bfloat16; nothing of ours is in the model."""
    folder, ids = recipe.parent, tiny.token_ids(40)
    config = PretrainingRecipe(stages=(Stage(512, 2, 3), Stage(128, 1, 4)), rope_theta=500.0)
    attention = AttentionConfig(budget_tokens=384)
    model = tiny.model()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    expected = model(torch.tensor([ids])).logits.detach()
    export(model, tokenizer, config, attention, DecodeConfig((4,)), folder, config.steps)
    torch.testing.assert_close(stock_logits(folder, ids), expected, atol=1e-5, rtol=1e-5)
    written = json.loads((folder / "config.json").read_text())
    assert written["architectures"] == ["LlamaForCausalLM"] and written["dtype"] == "bfloat16"
    lectern = json.loads((folder / "lectern.json").read_text())
    assert lectern["trained_tokens"] == 512 and lectern["attention"]["budget_tokens"] == 384
    assert lectern["decode"] == {"reselect_every": [4], "draft_tokens": 0, "lookup": "attention"}
    assert lectern["training"] == {"steps": 7, "tokens": 3 * 1024 + 4 * 128}


def test_training_leaves_a_model_that_can_be_asked(recipe, data, tmp_path):
    assert main([str(recipe), "--data", str(data), "--run", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "cache" / "books-train-apart.npy").exists()
    assert (recipe.parent / "tokenizer.json").read_bytes() == (FROZEN / "tokenizer.json").read_bytes()
    engine = load_engine(Settings(model=str(recipe.parent), device="cpu", threads=1))
    assert (engine.trained_tokens, engine.budget_tokens, engine.demonstration) == (512, 512, True)
    ids = [engine.bos_id, *engine.text_tokenizer.encode("A short book. " * 200).ids]
    turn = engine.encode_turn([{"role": "user", "content": "What is it?"}])
    cache = engine.open_chat([engine.read(ids)])
    list(engine.generate(cache, turn, GenerationConfig(max_new_tokens=4)))
    assert cache.get_seq_length() > len(ids) + len(turn)
    logits = stock_logits(recipe.parent, ids[:100])
    assert logits.shape == (1, 100, 8192) and torch.isfinite(logits).all()


def test_a_recipe_may_go_on_from_a_model(recipe, data, tmp_path):
    """Weights and counts are taken over, and region scores are trained beside the text."""
    assert main([str(recipe), "--data", str(data), "--run", str(tmp_path / "run")]) == 0
    second = tmp_path / "second"
    second.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (second / name).write_bytes((FROZEN / name).read_bytes())
    text = RECIPE.replace("[pretrain]", '[pretrain]\nstart = "../model"\nlearning_rate = 1e-9', 1)
    (second / "recipe.toml").write_text(text.replace("steps = 2", "steps = 2\nregion_loss = 0.3"))
    assert main([str(second / "recipe.toml"), "--data", str(data), "--run", str(tmp_path / "run2")]) == 0
    lectern = json.loads((second / "lectern.json").read_text())
    assert lectern["training"] == {"steps": 6, "tokens": 2 * (2 * 128 + 512)}
    ids = tiny.token_ids(60)
    torch.testing.assert_close(stock_logits(second, ids), stock_logits(recipe.parent, ids), atol=1e-3, rtol=1e-3)


def test_a_start_that_is_not_there_is_refused(recipe, data):
    recipe.write_text(RECIPE.replace("[pretrain]", '[pretrain]\nstart = "../nowhere"', 1))
    with pytest.raises(ConfigError, match=r"start = .*nowhere: no checkpoint of ours"):
        main([str(recipe), "--data", str(data)])


def test_shares_follow_their_files_whatever_these_are_called(tmp_path, monkeypatch):
    """Two files of one name, the first of which is kept back as a whole."""
    from app.train import cli
    from app.train.tune import packing, sources

    texts = [sources.Source("a.txt", "text", (f"entry {i}",)) for i in range(2)]
    given = {}
    monkeypatch.setattr(sources, "read_sources", lambda files, kinds=(): texts)
    monkeypatch.setattr(sources, "divide", lambda read, share: (read[1:], read[:1]))
    monkeypatch.setattr(
        packing, "PackedRows", lambda read, tokenizer, shares=(), **rest: given.setdefault("to", shares)
    )
    data = type("Data", (), {"files": ["a", "b"], "kinds": (), "shares": (0.9, 0.1), "validation": 0.5})
    data.validation_files, data.prompt_weight, data.document_weight = (), 0.0, 1.0
    recipe = type("Recipe", (), {"data": data, "tune": type("Tune", (), {"tokens": 64, "seed": 0})})
    cli.packed_rows(recipe, None)
    assert given["to"] == [0.1]


@pytest.mark.filterwarnings("ignore")
def test_half_a_character_in_a_tuning_file_is_replaced(tmp_path, capsys):
    checkpoints.save(tmp_path / "base", LlamaConfig(**checkpoints.SIZES))
    talks = [("Who keeps the light?", "Agnes Pell."), ("Say it with a smile.", "Agnes keeps it \ud83d")]
    lines = [{"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in talks]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (tmp_path / "r.toml").write_text(
        '[tune]\nbase = "base"\ntokens = 128\nsteps = 1\nattention = "full"\nwarmup_steps = 0\n'
        '[data]\nfiles = ["data.jsonl"]\n',
        encoding="utf-8",
    )
    words = ["--home", str(tmp_path / "home"), "train", str(tmp_path / "r.toml"), "--run", str(tmp_path / "run")]
    assert cli.main(words) == 0, capsys.readouterr().err
    assert list((tmp_path / "run").rglob("adapter_model.safetensors"))
