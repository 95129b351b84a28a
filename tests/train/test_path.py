"""The whole path by the command line: train, kill, go on, merge, load in the app, ask. And two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from app import cli
from app.errors import ConfigError, InputError, ModelError, TrainError
from app.memory.config import GenerationConfig
from app.runtime.load import load_engine
from app.settings import Settings
from app.train.cli import train
from app.train.loop import last_checkpoint
from tests import tiny
from tests.checkpoints import rewrite

ROOT = Path(__file__).resolve().parents[2]
STEPS = 30
RECIPE = f"""
[tune]
base = "base"
attention = "ms"
tokens = 128
steps = {STEPS}
batch = 2
learning_rate = 1e-2
warmup_steps = 2
save_steps = 10
dtype = "float32"

[selection]
budget_tokens = 64
region_tokens = 8
query_sub = 2
key_sub = 2
coarse_sub = 4

[lora]
targets = "ko"
rank = 4
dropout = 0.1

[data]
files = ["texts"]
"""
# A command that kills itself, hard, when step 18 asks for its texts.
DYING = """
import os, signal, sys
from app.train import cli
from app.train.tune.packing import PackedRows
draw = PackedRows.__call__
def dying(self, step, rows):
    if step == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    return draw(self, step, rows)
PackedRows.__call__ = dying
cli.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a recipe, its base and its texts, and the losses of an unbroken run."""
    folder = tmp_path_factory.mktemp("path")
    tiny.model().save_pretrained(folder / "base")
    tiny.byte_tokenizer().save_pretrained(folder / "base")
    (folder / "texts").mkdir()
    for i in range(3):
        text = f"The keeper of light {i} is called Ada, and her cat sleeps on the stove. " * 40
        (folder / "texts" / f"{i}.txt").write_text(text)
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


def losses(run: Path) -> list[tuple[float, float]]:
    state = json.loads((last_checkpoint(run) / "trainer_state.json").read_text())
    return [(entry["loss"], entry["grad_norm"]) for entry in state["log_history"] if "loss" in entry]


def command(*words: str | Path, **more) -> subprocess.CompletedProcess:
    given = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "cwd": ROOT, "capture_output": True, "text": True}
    return subprocess.run([sys.executable, *map(str, words)], timeout=300, **given, **more)


def answer(settings: Settings) -> list[int]:
    """What the app's model says about a document that does not fit its budget."""
    engine = load_engine(settings)
    document = engine.read([engine.bos_id, *engine.text_tokenizer.encode("Ada keeps the light. " * 20).ids])
    turn = engine.encode_turn([{"role": "user", "content": "Who keeps it?"}])
    cache = engine.open_chat([document])
    return list(engine.generate(cache, turn, GenerationConfig(max_new_tokens=8)))


@pytest.mark.slow
def test_train_kill_resume_merge_load_ask(home, tmp_path):
    recipe, run = home / "recipe.toml", tmp_path / "run"
    killed = command("-c", DYING, recipe, "--run", run)
    assert killed.returncode == -9, killed.stderr
    assert last_checkpoint(run).name == "checkpoint-10" and not (run / "adapter").exists()
    adapter = train([str(recipe), "--run", str(run)])
    unbroken = train([str(recipe), "--run", str(tmp_path / "unbroken")])
    assert losses(run) == losses(tmp_path / "unbroken") and len(losses(run)) == STEPS
    assert losses(run)[-1][0] < losses(run)[0][0] - 1
    weights = [(folder / "adapter_model.safetensors").read_bytes() for folder in (adapter, unbroken)]
    assert weights[0] == weights[1]

    lectern = json.loads((adapter / "lectern.json").read_text())
    assert lectern["trained_tokens"] == 128 and lectern["attention"]["budget_tokens"] == 64
    assert lectern["training"]["steps"] == STEPS and lectern["training"]["tokens"] == STEPS * 2 * 128
    assert lectern["tuning"]["lora"]["targets"] == "ko" and lectern["tuning"]["data"]["files"] == ["texts"]
    assert str(home) not in (adapter / "lectern.json").read_text()

    assert cli.main(["merge", str(adapter), "--out", str(tmp_path / "merged"), "--dtype", "float32"]) == 0
    said = answer(Settings(model=str(tmp_path / "merged"), device="cpu", threads=1))
    assert said and said == answer(Settings(model=str(home / "base"), adapter=str(adapter), device="cpu", threads=1))
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert torch.isfinite(stock(torch.tensor([tiny.token_ids(50)])).logits).all()
    assert train([str(recipe), "--run", str(run)]) == adapter  # finished: nothing is done again


@pytest.mark.slow
def test_two_processes_learn_as_one_does_with_twice_the_batch(home, tmp_path):
    """Started as docs/training.md says."""
    text = (
        RECIPE.replace(f"steps = {STEPS}", "steps = 4").replace("dropout = 0.1", "").replace('"base"', f'"{home}/base"')
    )
    text = text.replace('"texts"', f'"{home}/texts"')
    for name, batch in (("two", 1), ("one", 2)):
        (tmp_path / f"{name}.toml").write_text(text.replace("batch = 2", f"batch = {batch}"))
    launch = ("-m", "accelerate.commands.launch", "--config_file", "app/train/accelerate/cpu-2.yaml")
    port = ("--main_process_port", "0")
    words = ("-m", "app.cli", "train", tmp_path / "two.toml", "--run", tmp_path / "two", "--device", "cpu")
    made = command(*launch, *port, *words)
    assert made.returncode == 0, made.stderr
    assert made.stdout.count("It is in") == 1 and made.stderr.count("step 4 of 4, loss") == 1
    train([str(tmp_path / "one.toml"), "--run", str(tmp_path / "one"), "--device", "cpu"])
    for two, one in zip(losses(tmp_path / "two"), losses(tmp_path / "one"), strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    assert (tmp_path / "two" / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("name", ["cpu-2", "gpus", "fsdp", "deepspeed"])
def test_accelerate_understands_each_configuration(name):
    """Two processes of `cpu-2` are run above. The others want GPUs: accelerate makes DDP of FSDP on a CPU."""
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(f"app/train/accelerate/{name}.yaml")
    kinds = {"cpu-2": "MULTI_GPU", "gpus": "MULTI_GPU", "fsdp": "FSDP", "deepspeed": "DEEPSPEED"}
    assert config.distributed_type == kinds[name] and config.num_machines == 1
    assert bool(config.fsdp_config) == (name == "fsdp") and bool(config.deepspeed_config) == (name == "deepspeed")
    if name == "deepspeed":
        zero = json.loads((ROOT / config.deepspeed_config["deepspeed_config_file"]).read_text())
        assert zero["zero_optimization"]["stage"] == 2


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ('"base"', '"bass"', ModelError, r"^\[tune\] base = bass: no such folder"),
        ("[lora]", "[lore]", ConfigError, "unknown table lore"),
        ('"texts"', '"text"', InputError, "text: there is no such file or folder"),
        ('"texts"', '"empty.txt"', InputError, "empty.txt"),
        ('"texts"', '"bad.jsonl"', InputError, r"bad.jsonl"),
        ('["texts"]', "[]", ConfigError, "no files to learn from"),
        ("tokens = 128", "tokens = 100000000", TrainError, "^needs about .* GB .* make tokens smaller"),
        (
            "learning_rate = 1e-2",
            "learning_rate = 1e30",
            TrainError,
            r"^step \d: the (loss|gradient norm) is (nan|inf)",
        ),
    ],
)
def test_mistakes_leave_no_half_written_folder(home, tmp_path, old, new, error, message):
    (home / "empty.txt").write_text("")
    (home / "bad.jsonl").write_text('{"instruction": "Who?", "output": "Ada"}\n{"instruction": \n')
    recipe = home / "wrong.toml"
    recipe.write_text(RECIPE.replace(old, new))
    with pytest.raises(error, match=message):
        train([str(recipe), "--run", str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    assert not list(tmp_path.glob("*out*")) and not list((tmp_path / "run").glob("*adapter*"))


def test_flags_that_do_not_belong_together(home, tmp_path):
    recipe = str(home / "recipe.toml")
    with pytest.raises(ConfigError, match=r"--data .*: belongs to a recipe with \[pretrain\]"):
        train([recipe, "--data", str(tmp_path)])
    with pytest.raises(InputError, match="is there already; delete it, or choose another folder with --out"):
        train([recipe, "--out", str(home / "base"), "--run", str(tmp_path / "run")])
    (home / "both.toml").write_text(RECIPE + "\n[pretrain]\nhidden = 16\n")
    with pytest.raises(ConfigError, match=r"both \[pretrain\] and \[tune\]"):
        train([str(home / "both.toml")])


def test_an_adapter_of_another_base_is_refused(home, tmp_path):
    """Of the same shapes: only the fingerprint tells."""
    text = RECIPE.replace(f"steps = {STEPS}", "steps = 1")
    (home / "short.toml").write_text(text)
    adapter = train([str(home / "short.toml"), "--run", str(tmp_path / "run")])
    tiny.model(seed=1).save_pretrained(tmp_path / "other")
    tiny.byte_tokenizer().save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="was trained on base .* holds other weights of the same shapes"):
        load_engine(Settings(model=str(tmp_path / "other"), adapter=str(adapter), device="cpu"))
    rewrite(adapter / "lectern.json", base={})
    load_engine(Settings(model=str(tmp_path / "other"), adapter=str(adapter), device="cpu", threads=1))
