from pathlib import Path

import pytest

from app.errors import ConfigError
from app.memory.config import GenerationConfig
from app.settings import Settings, fill


def test_order_is_defaults_toml_environment_flags(tmp_path: Path):
    toml = tmp_path / "lectern.toml"
    toml.write_text('policy = "full"\nthreads = 2\ndevice = "cpu"\n', encoding="utf-8")
    environment = {"LECTERN_THREADS": "3", "LECTERN_DEVICE": "auto"}
    settings = fill(Settings, toml=toml, environment=environment, flags={"device": "cuda", "threads": None})
    assert (settings.policy, settings.threads, settings.device) == ("full", 3, "cuda")
    assert settings.disk_budget_gb == Settings().disk_budget_gb


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("THREADS", "many", "LECTERN_THREADS=many: is not a whole number"),
        ("BUDGET_TOKENS", "1e9", "is not a whole number"),
        ("DISK_BUDGET_GB", "much", "is not a number"),
        ("DOWNLOAD", "maybe", "is not yes or no"),
        ("THREADS", "0", "^LECTERN_THREADS=0: must be at least 1"),
        ("POLICY", "x", "^LECTERN_POLICY=x: not known; choose one of keep-all, .*full"),
        ("BUDGET_TOKENS", "-5", "^LECTERN_BUDGET_TOKENS=-5: must be positive"),
        ("DISK_BUDGET_GB", "nan", "^LECTERN_DISK_BUDGET_GB=nan: must be positive and finite"),
        ("DISK_BUDGET_GB", "inf", "must be positive and finite"),
        ("KV_CODEC", "int2", "^LECTERN_KV_CODEC=int2: not known; choose one of raw, int8, int4"),
        ("HOST_BUDGET_GB", "0", "^LECTERN_HOST_BUDGET_GB=0.*: must be positive and finite"),
        ("DISK_BUDGET_GB", "-1", "must be positive and finite"),
        ("POLICY", "keep-all\ud83d", "^LECTERN_POLICY=keep-all\ufffd: not known"),
        ("THREADS", "caf\udce9", "^LECTERN_THREADS=caf\ufffd: is not a whole number"),
        ("THREADS", "9" * 5_000, "is not a whole number"),
    ],
)
def test_nonsense_in_the_environment_is_named(name: str, value: str, message: str):
    with pytest.raises(ConfigError, match=message):
        fill(Settings, environment={f"LECTERN_{name}": value})


def test_names_of_files_stay_as_the_system_gave_them_and_are_shown_whole():
    settings = fill(Settings, environment={"LECTERN_MODEL": "caf\udce9", "LECTERN_HOME": "caf\udce9"})
    assert (settings.model, settings.home) == ("caf\udce9", Path("caf\udce9"))
    assert settings.model_name == "caf\ufffd"


def test_a_flag_that_wins_over_a_variable_is_named_itself():
    with pytest.raises(ConfigError, match="^--policy y: not known"):
        fill(Settings, environment={"LECTERN_POLICY": "x", "LECTERN_DEVICE": "cpu"}, flags={"policy": "y"})


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_no_generator_takes_is_refused(seed: int):
    with pytest.raises(ConfigError, match="seed"):
        GenerationConfig(seed=seed)
