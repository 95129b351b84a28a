"""Fill any configuration dataclass: defaults, TOML file, environment, flags, in that order."""

import math
import os
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from app.errors import ConfigError
from app.wellformed import whole

ROOT = Path(__file__).resolve().parent.parent
SHIPPED_MODEL = ROOT / "models" / "lectern-reader"
SMALL_MODEL = ROOT / "models" / "lectern-small"
POLICIES = ("keep-all", "bounded", "h2o", "streaming", "infllm", "full")
H2O_PRESETS = ("peak", "mean", "exact", "decay", "published")

KV_CODECS = ("raw", "int8", "int4")
WEIGHTS = ("auto", "float32", "float16", "bfloat16", "int8")
LOOKUPS = ("attention", "words", "both")

FILES = ("home", "model", "adapter")  # their names stay as the system gave them

T = TypeVar("T")


def default_home() -> Path:
    """The platform's user-data folder for Lectern."""
    import platformdirs

    return Path(platformdirs.user_data_dir("lectern", appauthor=False))


@dataclass(frozen=True)
class Settings:
    """What a start of Lectern can be told.

    Attributes:
        home: data folder; None means the platform's user-data folder.
        model: folder of a checkpoint, a GGUF file, or a hub id.
        adapter: folder of a LoRA adapter, merged into the model at load.
        download: allow huggingface-hub to fetch `model`.
        policy: what later tokens attend to, one of POLICIES.
        h2o: how tokens are scored where some are dropped, one of H2O_PRESETS; None means `peak` under policy h2o and
            `mean` under bounded.
        memory_cap_mb: what the memory of one text may take under policy bounded; None means 1,024.
        budget_tokens: tokens one query may attend to; None means what the model's recipe says.
        kv_codec: how what was read is kept: `raw`, or smaller as `int8` or `int4`.
        reselect_every: tokens of an answer that share one choice of regions; 1 chooses for each, None means what the
            model's recipe says.
        draft_tokens: tokens of the draft that tells which regions of long texts an answer sees; 0 answers at once, None
            means what the model's recipe says.
        lookup: what finds the regions of a long text that an answer sees, one of LOOKUPS: the model's attention, the
            words of the question, or both; None means what the model's recipe says.
        weights: in what the model's linear layers are kept on a CPU, one of WEIGHTS; `auto` takes what this CPU
            multiplies fastest, `float32` is exact, `int8` is bfloat16 with int8 for the tokens of answers.
        device: `auto`, `cpu` or `cuda`.
        threads: CPU threads of the model; None means chosen from the cores.
        host_budget_gb: keys and values held in RAM; None means a quarter of it.
        device_budget_gb: what memories hold on the GPU, a quarter of it for the index, the rest for keys and values;
            None means half of what the model leaves free.
        disk_budget_gb: stored memories are evicted beyond this, least recently used first.
    """

    home: Path | None = None
    model: str = str(SHIPPED_MODEL)
    adapter: str | None = None
    download: bool = False
    policy: str = "keep-all"
    h2o: str | None = None
    memory_cap_mb: int | None = None
    budget_tokens: int | None = None
    kv_codec: str = "raw"
    reselect_every: int | None = None
    draft_tokens: int | None = None
    lookup: str | None = None
    weights: str = "auto"
    device: str = "auto"
    threads: int | None = None
    host_budget_gb: float | None = None
    device_budget_gb: float | None = None
    disk_budget_gb: float = 50.0

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ConfigError(f"--policy {self.policy}: not known; choose one of {', '.join(POLICIES)}")
        if self.h2o is not None and self.h2o not in H2O_PRESETS:
            raise ConfigError(f"--h2o {self.h2o}: not known; choose one of {', '.join(H2O_PRESETS)}")
        if self.memory_cap_mb is not None and self.memory_cap_mb < 1:
            raise ConfigError(f"--memory-cap {self.memory_cap_mb}: must be at least 1 MB")
        if self.weights not in WEIGHTS:
            raise ConfigError(f"--weights {self.weights}: not known; choose one of {', '.join(WEIGHTS)}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"--device {self.device}: not known; choose auto, cpu or cuda")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"--threads {self.threads}: must be at least 1")
        if self.budget_tokens is not None and self.budget_tokens < 1:
            raise ConfigError(f"budget_tokens = {self.budget_tokens}: must be positive")
        if self.kv_codec not in KV_CODECS:
            raise ConfigError(f"--kv-codec {self.kv_codec}: not known; choose one of {', '.join(KV_CODECS)}")
        if self.reselect_every is not None and self.reselect_every < 1:
            raise ConfigError(f"reselect_every = {self.reselect_every}: must be at least 1")
        if self.draft_tokens is not None and self.draft_tokens < 0:
            raise ConfigError(f"draft_tokens = {self.draft_tokens}: must be 0 or more")
        if self.lookup is not None and self.lookup not in LOOKUPS:
            raise ConfigError(f"--lookup {self.lookup}: not known; choose one of {', '.join(LOOKUPS)}")
        for name in ("host_budget_gb", "device_budget_gb", "disk_budget_gb"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:  # nan too
                raise ConfigError(f"{name} = {value}: must be positive and finite")

    @property
    def folder(self) -> Path:
        """The data folder, absolute."""
        return (self.home or default_home()).expanduser().absolute()

    @property
    def model_name(self) -> str:
        """How the model is called: by its folder or hub id, and its adapter."""
        adapter = f" + {Path(self.adapter).name}" if self.adapter else ""
        return whole(Path(self.model).name.removesuffix(".gguf") + adapter)


def _convert(kind: Any, text: str, name: str) -> Any:
    """Turn the text of an environment variable into a field's type."""
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(k for k in get_args(kind) if k is not type(None))
    try:
        if kind is bool:
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
        return kind(text)
    except (KeyError, ValueError) as error:
        wanted = {int: "a whole number", float: "a number", bool: "yes or no"}[kind]
        raise ConfigError(f"{name}={text}: is not {wanted}") from error


def fill(
    kind: type[T],
    *,
    toml: Path | None = None,
    environment: Mapping[str, str] | None = None,
    prefix: str = "LECTERN_",
    flags: Mapping[str, Any] | None = None,
) -> T:
    """Build a configuration dataclass.

    Args:
        kind: a dataclass; its defaults come first.
        toml: a file of top-level keys; unknown keys are errors.
        environment: variables named prefix + FIELD; os.environ when None.
        flags: values from the command line; None values count as not given.

    Raises:
        ConfigError: unknown key, wrong type or a value that the dataclass refuses.
    """
    hints = get_type_hints(kind)
    names = [f.name for f in fields(kind)]
    values: dict[str, Any] = {}
    variables: dict[str, str] = {}
    if toml is not None:
        try:
            values.update(tomllib.loads(toml.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{toml}: cannot be read as TOML: {error}") from error
    for name in names:
        text = (os.environ if environment is None else environment).get(prefix + name.upper())
        if text:
            text = text if name in FILES else whole(text)
            values[name] = _convert(hints[name], text, prefix + name.upper())
            variables[name] = f"{prefix}{name.upper()}={text}"
    for name, value in (flags or {}).items():
        if value is not None:
            values[name] = value
            variables.pop(name, None)
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise ConfigError(f"unknown setting {', '.join(unknown)}; known are {', '.join(names)}")
    if "home" in values:
        values["home"] = Path(values["home"])
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(_naming_variables(str(error), variables)) from error


def _naming_variables(message: str, variables: Mapping[str, str]) -> str:
    """A message about a flag or field, about the variable instead when the value came from one."""
    subject, colon, rest = message.partition(": ")
    for name, variable in variables.items():
        if subject.startswith((f"--{name.replace('_', '-')} ", f"{name} = ")):
            return f"{variable}{colon}{rest}"
    return message
