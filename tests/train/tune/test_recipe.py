"""Tuning recipes: what is read, and mistakes told by table, name and value."""

from pathlib import Path

import pytest

from app.errors import ConfigError
from app.train.tune.recipe import LoraRecipe, TuningRecipe, TuneConfig, read_tuning

ROOT = Path(__file__).resolve().parents[3]
WHOLE = """
[tune]
base = "model"
out = "tuned"
attention = "ms"
tokens = 2048
steps = 30
learning_rate = 1

[selection]
budget_tokens = 1024

[positions]
method = "crd"
factors = [4, 8]

[lora]
targets = "ko"
token_rows = [3, 4]
embeddings = false

[data]
files = ["a.txt", "b"]
shares = [1, 0.5]
"""


@pytest.fixture
def write(tmp_path):
    def writing(text: str):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "r.toml").write_text(text)
        return tmp_path / "r.toml"

    return writing


def test_a_whole_recipe(write, tmp_path):
    recipe = read_tuning(write(WHOLE))
    assert (recipe.tune.attention, recipe.tune.tokens, recipe.selection.budget_tokens) == ("ms", 2048, 1024)
    assert recipe.tune.learning_rate == 1.0 and isinstance(recipe.tune.learning_rate, float)
    assert recipe.tune.base == str(tmp_path / "model") and recipe.tune.out == str(tmp_path / "tuned")
    assert recipe.lora.modules == ("k_proj", "o_proj") and recipe.lora.token_rows == (3, 4)
    assert recipe.positions.factors == (4, 8)
    assert recipe.data.files == (str(tmp_path / "a.txt"), str(tmp_path / "b")) and recipe.data.shares == (1.0, 0.5)


def test_a_base_that_is_no_folder_stays_a_hub_id(write):
    assert read_tuning(write(WHOLE.replace('"model"', '"ORG/NAME"'))).tune.base == "ORG/NAME"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tokens = 2048", "token = 2048", r"\[tune\]: unknown key token; known are base, tokens"),
        ("tokens = 2048", "", r"\[tune\]: 'tokens' must be given"),
        ('base = "model"', 'base = ""', r"\[tune\]: base = '': must be the folder"),
        ("tokens = 2048", 'tokens = "2K"', r"\[tune\]: tokens = '2K': must be a whole number"),
        ("tokens = 2048", "tokens = true", r"\[tune\]: tokens = True: must be a whole number"),
        ("tokens = 2048", "tokens = 1", r"\[tune\]: tokens = 1: must be at least 2"),
        (
            "[data]",
            "[pattern]\nsinks = 4\n[data]",
            r"\[pattern\]: belongs to the segmented kinds, not to attention = 'ms'",
        ),
        ("steps = 30", "steps = 0", r"\[tune\]: steps = 0: must be at least 1"),
        ("learning_rate = 1", "learning_rate = nan", r"learning_rate = nan: must be at least 0"),
        ("learning_rate = 1", "learning_rate = 0", r"learning_rate = 0.0: must be above 0"),
        ("learning_rate = 1", 'dtype = "int8"', r"dtype = 'int8': must be one of auto, bfloat16, float32"),
        ("learning_rate = 1", 'schedule = "step"', r"schedule = 'step': must be one of constant, linear, cosine"),
        ('"ms"', '"msa"', r"attention = 'msa': must be one of full, block"),
        ('"ms"', '"sf"', r"r.toml: \[selection\]: belongs to attention = 'ms', not to 'sf'"),
        ("budget_tokens = 1024", "budget_tokens = 2048", r"budget_tokens = 2048: with tokens = 2048 nothing would be"),
        ("budget_tokens = 1024", "budget_tokens = 1000", r"\[selection\]: budget_tokens = 1000: must be a multiple"),
        ("budget_tokens = 1024", "budget = 1024", r"\[selection\]: unknown key budget"),
        ("[selection]\nbudget_tokens = 1024", "", r"attention = 'ms': needs a table \[selection\]"),
        ("factors = [4, 8]", "factors = [8, 4]", r"\[positions\]: positions factors = \[8.0, 4.0\]"),
        ('targets = "ko"', 'targets = "kx"', r"\[lora\]: targets = 'kx': must be letters of qkvo"),
        ('targets = "ko"', 'targets = "kk"', r"\[lora\]: targets = 'kk': must be different letters"),
        ('targets = "ko"', "rank = 0", r"\[lora\]: rank = 0: must be at least 1"),
        ('targets = "ko"', "dropout = 1.0", r"\[lora\]: dropout = 1.0: must be below 1"),
        ("token_rows = [3, 4]", "token_rows = 3", r"\[lora\]: token_rows = 3: must be a list"),
        ("embeddings = false", "", r"token_rows = \[3, 4\]: must be left out where embeddings = true"),
        ("shares = [1, 0.5]", "shares = [1]", r"\[data\]: shares = \[1.0\]: must be as many as files, 2"),
        ("[data]", "[date]", r"unknown table date; known are tune, lora"),
        ("[tune]", "[tune", "cannot be read as a recipe"),
    ],
)
def test_mistakes_are_told_by_name_and_value(write, old, new, message):
    assert old in WHOLE
    with pytest.raises(ConfigError, match=message):
        read_tuning(write(WHOLE.replace(old, new)))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("tokens = 512\n[pattern]\ngroup_tokens = 512", "group_tokens = 512: must be below tokens = 512"),
        ("tokens = 4", "tokens = 4: too few for 4 groups; train longer texts"),
        ("tokens = 512\n[pattern]\nsink = 4", r"\[pattern\]: unknown key sink; known are shift_fraction"),
        ("tokens = 512\n[pattern]\nsinks = 1.5", r"\[pattern\]: sinks = 1.5: must be a whole number"),
        ("tokens = 512\n[pattern]\nreturn_ratio = 2", r"return_ratio = 2.0: must lie between 0 and 1"),
    ],
)
def test_groups_that_make_no_sense(write, lines, message):
    with pytest.raises(ConfigError, match=message):
        read_tuning(write(f'[tune]\nbase = "model"\nsteps = 1\n{lines}\n'))
    fine = read_tuning(write('[tune]\nbase = "model"\nsteps = 1\ntokens = 512\n[pattern]\nsinks = 8\n'))
    assert fine.groups.sinks == 8 and fine.groups.groups == 4


def test_a_recipe_without_its_table_or_file(write, tmp_path):
    with pytest.raises(ConfigError, match=r"no table \[tune\] \(or \[pretrain\]\)"):
        read_tuning(write("[lora]\nrank = 4\n"))
    with pytest.raises(ConfigError, match=r"\[tune\]: must be a table"):
        read_tuning(write("tune = 3\n"))
    with pytest.raises(ConfigError, match="cannot be read as a recipe"):
        read_tuning(tmp_path / "none.toml")


def test_something_must_learn():
    with pytest.raises(ConfigError, match="targets = 'none': must be given where neither"):
        LoraRecipe("none", embeddings=False, norms=False)
    assert LoraRecipe("none", embeddings=False).modules == ()
    assert len(LoraRecipe("all").modules) == 7


def test_the_defaults_are_the_best_groups_and_longlora():
    recipe = TuningRecipe(TuneConfig("base", tokens=8192, steps=1000))
    assert recipe.tune.attention == "sf_fixed" and recipe.lora == LoraRecipe("qkvo", 8, 16.0)
    assert recipe.plain()["tune"]["learning_rate"] == 2e-5


@pytest.mark.parametrize(
    "path", sorted((ROOT / "app" / "train" / "recipes").glob("*.toml")), ids=lambda path: path.name
)
def test_the_recipes_that_ship_can_be_read(path):
    recipe = read_tuning(path)
    assert (Path(recipe.tune.base) / "config.json").exists() and all(Path(file).exists() for file in recipe.data.files)
