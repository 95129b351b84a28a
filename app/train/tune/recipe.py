"""The recipe of a tuning run: a TOML file as checked dataclasses. Names and values of mistakes are told.

A recipe with a [pretrain] table belongs to app/train/cli.py's other half and is read there.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from app.errors import ConfigError
from app.kernels.sf_attn import PATTERNS, GroupPattern
from app.memory.config import AttentionConfig, DecodeConfig
from app.models.rope import PositionConfig

ATTENTION = ("full", *PATTERNS, "ms")
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
DTYPES = ("auto", "bfloat16", "float32")
PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")

T = TypeVar("T")


def _refuse(name: str, value: object, wanted: str) -> None:
    raise ConfigError(f"{name} = {value!r}: must be {wanted}")


def _check_numbers(config: object, least: Mapping[str, float]) -> None:
    for name, bound in least.items():
        value = getattr(config, name)
        if not bound <= value < float("inf"):  # nan too
            _refuse(name, value, f"at least {bound}")


@dataclass(frozen=True)
class TuneConfig:
    """What a recipe's [tune] table holds.

    Attributes:
        base: folder of the checkpoint that is tuned (relative to the recipe), or a hub id that is on this machine.
        tokens: length of each sequence.
        steps: optimizer steps.
        attention: of the training, one of ATTENTION; the tuned model is read with full or MS attention.
        batch: sequences of one process in one pass.
        accumulation: passes in one step.
        learning_rate, warmup_steps, schedule, weight_decay: AdamW; the defaults are LongLoRA's.
        save_steps: a stopped run goes on from the last multiple of it.
        kept: checkpoints that stay, the newest ones.
        checkpointing: keep only each layer's input for the backward pass; slower by a third, much less memory.
        dtype: of frozen weights and arithmetic; what is trained is float32 always. `auto`: bfloat16 where it is fast.
        region_loss: weight of the loss on region scores (app/train/region_loss.py); with `full` and readings alone.
        stored: data type of what learnt in the adapter's file; `bfloat16` takes half the room and rounds.
        start: folder of an adapter of the same shape, or a checkpoint of its run, to go on from; empty: from nothing.
        out: folder for the adapter (relative to the recipe); empty: `adapter` in the run's folder.
    """

    base: str
    tokens: int
    steps: int
    attention: str = "sf_fixed"
    batch: int = 1
    accumulation: int = 1
    learning_rate: float = 2e-5
    warmup_steps: int = 20
    schedule: str = "constant"
    weight_decay: float = 0.0
    seed: int = 0
    save_steps: int = 100
    kept: int = 2
    checkpointing: bool = True
    dtype: str = "auto"
    region_loss: float = 0.0
    stored: str = "float32"
    start: str = ""
    out: str = ""

    def __post_init__(self) -> None:
        if not self.base:
            _refuse("base", self.base, "the folder of a checkpoint")
        least = dict.fromkeys(("steps", "batch", "accumulation", "save_steps", "kept"), 1) | {"tokens": 2}
        _check_numbers(self, {**least, **dict.fromkeys(("warmup_steps", "seed", "weight_decay", "learning_rate"), 0)})
        if self.learning_rate == 0:
            _refuse("learning_rate", self.learning_rate, "above 0")
        for name, known in {
            "attention": ATTENTION,
            "schedule": tuple(SCHEDULES),
            "dtype": DTYPES,
            "stored": DTYPES[1:],
        }.items():
            if getattr(self, name) not in known:
                _refuse(name, getattr(self, name), f"one of {', '.join(known)}")


@dataclass(frozen=True)
class LoraRecipe:
    """What a recipe's [lora] table holds: which weights learn.

    Attributes:
        targets: attention projections with low-rank adapters, letters of `qkvo` (`ko` is reduced LongLoRA); `all` adds
            the feed-forward ones; `none` leaves only embeddings, norms or token rows.
        rank, alpha, dropout: of the adapters; their product is scaled by alpha / rank.
        embeddings: train the input embeddings whole; tied output embeddings stay tied.
        norms: train the norms of the residual stream.
        token_rows: token ids whose embeddings are trained alone, in place of `embeddings`.
        full: train every weight, without adapter; a plain checkpoint comes out.
        first_layer: layers below it have no adapters, and cost no backward pass where nothing else in them learns.
    """

    targets: str = "qkvo"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    embeddings: bool = True
    norms: bool = True
    token_rows: tuple[int, ...] = ()
    full: bool = False
    first_layer: int = 0

    def __post_init__(self) -> None:
        letters = self.targets
        if letters not in ("all", "none"):
            if not letters or not set(letters) <= set(PROJECTIONS):
                _refuse("targets", letters, "letters of qkvo such as ko, or all, or none")
            if len(set(letters)) < len(letters):
                _refuse("targets", letters, "different letters")
        _check_numbers(self, {"rank": 1, "alpha": 0, "dropout": 0, "first_layer": 0})
        if self.dropout >= 1:
            _refuse("dropout", self.dropout, "below 1")
        if self.embeddings and self.token_rows:
            _refuse("token_rows", list(self.token_rows), "left out where embeddings = true; set embeddings = false")
        if letters == "none" and not (self.full or self.embeddings or self.norms or self.token_rows):
            _refuse("targets", letters, "given where neither embeddings, norms nor token_rows are trained")

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the projections with adapters."""
        if self.targets == "none":
            return ()
        if self.targets == "all":
            return (*PROJECTIONS.values(), *FEED_FORWARD)
        return tuple(PROJECTIONS[letter] for letter in self.targets)


@dataclass(frozen=True)
class DataConfig:
    """What a recipe's [data] table holds.

    Attributes:
        files: texts, instruction files, folders or archives, relative to the recipe.
        kinds: of each file, `text`, `code` or `instructions`; empty: found by looking.
        shares: of each file in the rows; empty: by size.
        validation: share of the texts that is kept back; the loss on them is told at the end.
        validation_files: files to validate with instead.
        prompt_weight, document_weight: what predicting questions, and the documents they are about, counts beside
            answers.
    """

    files: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    validation: float = 0.0
    validation_files: tuple[str, ...] = ()
    prompt_weight: float = 0.0
    document_weight: float = 0.0

    def __post_init__(self) -> None:
        for name in ("kinds", "shares"):
            values = getattr(self, name)
            if values and len(values) != len(self.files):
                _refuse(name, list(values), f"as many as files, {len(self.files)}")
        _check_numbers(self, {"validation": 0, "prompt_weight": 0, "document_weight": 0})
        if self.validation >= 1:
            _refuse("validation", self.validation, "below 1")
        if self.validation and self.validation_files:
            _refuse("validation", self.validation, "left out where validation_files are given")


@dataclass(frozen=True)
class ReadingsConfig:
    """What a recipe's [readings] table holds: rows of texts with many questions each (app/train/readings).

    Attributes:
        shares: of each kind of reading among those drawn.
        late_shares: the same for the steps from `late_from` on, a share of all; empty: as before.
        context: most tokens of passages that stand side by side.
        late_context: the same of the late steps.
        absent: of readings with a question that another text answers.
        unanswerable: of a passage's questions, those that its set says it does not answer.
    """

    shares: dict[str, float] = field(default_factory=dict)
    late_shares: dict[str, float] = field(default_factory=dict)
    late_from: float = 1.0
    context: int = 1000
    late_context: int = 1000
    absent: float = 0.3
    unanswerable: float = 0.35
    seed: int = 0


@dataclass(frozen=True)
class TuningRecipe:
    """A whole tuning recipe.

    Attributes:
        selection: how `ms` chooses; None for the other kinds.
        pattern: changes to the groups of the segmented kinds, by the names of GroupPattern.
        attention, decode: how the result is read and answers choose regions; None: as the base is.
    """

    tune: TuneConfig
    lora: LoraRecipe = LoraRecipe()
    readings: ReadingsConfig | None = None
    data: DataConfig = DataConfig()
    selection: AttentionConfig | None = None
    pattern: dict[str, Any] = field(default_factory=dict)
    positions: PositionConfig = PositionConfig()
    attention: AttentionConfig | None = None
    decode: DecodeConfig | None = None

    def __post_init__(self) -> None:
        kind, tokens = self.tune.attention, self.tune.tokens
        if self.pattern and kind not in PATTERNS:
            raise ConfigError(f"[pattern]: belongs to the segmented kinds, not to attention = {kind!r}; leave it out")
        group = self.groups.group_tokens if self.groups else 0
        if group >= tokens:
            raise ConfigError(f"[pattern] group_tokens = {group}: must be below tokens = {tokens}; make it smaller")
        if self.groups and self.groups.group_for(tokens) < 2:
            raise ConfigError(f"tokens = {tokens}: too few for {self.groups.groups} groups; train longer texts")
        if kind != "ms" and self.selection is not None:
            raise ConfigError(f"[selection]: belongs to attention = 'ms', not to {kind!r}; leave the table out")
        if kind == "ms" and self.selection is None:
            raise ConfigError("attention = 'ms': needs a table [selection] with budget_tokens, below tokens")
        if self.selection and self.selection.budget_tokens >= tokens:
            raise ConfigError(
                f"[selection] budget_tokens = {self.selection.budget_tokens}: with tokens = {tokens} nothing would "
                "be left out; make it smaller, train longer texts, or choose attention = 'full'"
            )

    @property
    def groups(self) -> GroupPattern | None:
        """The groups of a segmented kind; None for `full` and `ms`."""
        known = PATTERNS.get(self.tune.attention)
        if not known or not self.pattern:
            return known
        return table(GroupPattern, {**asdict(known), **self.pattern}, "[pattern]")

    def plain(self) -> dict[str, Any]:
        """As JSON keeps it; tables that say nothing are left out."""
        return {name: value for name, value in asdict(self).items() if value}


def _convert(kind: Any, value: Any, name: str) -> Any:
    """A TOML value as a field's type; whole numbers pass as numbers, lists become tuples."""
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            _refuse(name, value, "a list in square brackets")
        return tuple(_convert(get_args(kind)[0], item, name) for item in value)
    wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "a word in quotes"}
    if kind is float and type(value) is int:
        return float(value)
    if kind in wanted and type(value) is not kind:
        _refuse(name, value, wanted[kind])
    return value


def table(kind: type[T], values: Any, where: str) -> T:
    """Build a dataclass from one table of a recipe.

    Raises:
        ConfigError: unknown or missing keys, wrong types, values that the dataclass refuses; `where` goes before them.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: must be a table")
    hints, known = get_type_hints(kind), [f.name for f in fields(kind)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ConfigError(f"{where}: unknown key {', '.join(unknown)}; known are {', '.join(known)}")
    try:
        converted = {name: _convert(hints[name], value, name) for name, value in values.items()}
        return kind(**converted)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except TypeError as error:  # a field without default
        missing = str(error).partition("argument")[2].lstrip("s: ")
        raise ConfigError(f"{where}: {missing} must be given") from error


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a recipe file.

    Raises:
        ConfigError: the file is missing or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a recipe: {error}") from error


def read_tuning(path: Path) -> TuningRecipe:
    """Read a recipe with a [tune] table; paths in it become absolute.

    Raises:
        ConfigError: what is wrong, by table, name and value.
    """
    tables = read_toml(path)
    kinds = {
        "tune": TuneConfig,
        "lora": LoraRecipe,
        "data": DataConfig,
        "readings": ReadingsConfig,
        "selection": AttentionConfig,
        "attention": AttentionConfig,
        "decode": DecodeConfig,
        "positions": PositionConfig,
    }
    unknown = sorted(set(tables) - {*kinds, "pattern"})
    if unknown:
        raise ConfigError(f"{path}: unknown table {', '.join(unknown)}; known are {', '.join([*kinds, 'pattern'])}")
    values = {name: dict(content) if isinstance(content, dict) else content for name, content in tables.items()}
    _absolute(values, path.absolute().parent)
    built = {name: table(kind, values[name], f"{path} [{name}]") for name, kind in kinds.items() if name in values}
    if "tune" not in built:
        raise ConfigError(f"{path}: no table [tune] (or [pretrain]); give one with base, tokens and steps")
    try:
        return TuningRecipe(**built, pattern=values.get("pattern", {}))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _absolute(tables: dict[str, Any], folder: Path) -> None:
    """Paths are meant from the recipe's folder; a hub id stays what it is."""
    tune, data = tables.get("tune", {}), tables.get("data", {})
    for name in ("base", "out", "start"):
        value = tune.get(name) if isinstance(tune, dict) else None
        if isinstance(value, str) and value and (name != "base" or (folder / value).exists()):
            tune[name] = str((folder / value).resolve())
    for name in ("files", "validation_files"):
        value = data.get(name) if isinstance(data, dict) else None
        if isinstance(value, list):
            data[name] = [str((folder / item).resolve()) if isinstance(item, str) else item for item in value]
