"""Load a checkpoint, with every reason to refuse it checked before anything is allocated."""

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from app.errors import ConfigError, ModelError
from app.memory.config import AttentionConfig, DecodeConfig
from app.models.adapter import read_adapter
from app.models.files import first_line, read_json
from app.models.fits import ROOM
from app.models.folder import stored_weights
from app.models.merging import load_stock, merge_into
from app.models.rope import MOST_POSITIONS, applied, range_tokens, refusal
from app.settings import Settings

RECIPE_KEYS = {"format", "demonstration", "trained_tokens", "attention", "decode", "rope", "training"}
RECIPE_KEYS |= {"system_prompt", "document_start"}
RECIPE_KEYS |= {"base", "merged_from", "tuning", "versions"}  # how it was made; reading does not need them
ADAPTER_KEYS = ("trained_tokens", "attention", "rope", "system_prompt", "document_start")  # change how a base is read
DEFAULT_BUDGET = 4096
SHARED_TOKENS = 8  # tokens of an answer that share a choice of regions, where no recipe says otherwise
ANSWER_FROM_TEXT = "Answer the question from the text."  # told to models without a recipe


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint wants to be read: `lectern.json`, or what its config implies.

    Attributes:
        system_prompt: what a chat begins with, where it has no system message of its own.
        document_start: the token with which a document begins; None finds one, see `app.models.turns`.
        rope: `rope_parameters` that an adapter brings with it; None leaves those of config.json.
    """

    attention: AttentionConfig
    trained_tokens: int
    demonstration: bool = False
    system_prompt: str = ""
    document_start: str | None = None
    rope: dict[str, Any] | None = None
    decode: DecodeConfig = DecodeConfig()


def read_recipe(folder: Path, config: dict[str, Any], settings: Settings) -> Recipe:
    """The reading recipe of a checkpoint, with its adapter's and the user's budget put in.

    Raises:
        ModelError: `lectern.json` has keys that this version does not know, or contradicts config.json.
        ConfigError: the budget does not fit.
    """
    path = folder / "lectern.json"
    recipe = read_json(path) if path.exists() else {}
    tuned = _read_adapter_recipe(settings.adapter)
    _check_rope(path, recipe.get("rope", {}), config)
    recipe = {**recipe, **tuned}
    attention, decode = (_table(path, recipe, name) for name in ("attention", "decode"))
    unknown = set(recipe) - RECIPE_KEYS
    for table, kind in ((attention, AttentionConfig), (decode, DecodeConfig)):
        unknown |= set(table) - {f.name for f in fields(kind)}
    if unknown or recipe.get("format", 1) != 1:
        names = ", ".join(sorted(unknown)) or "format"
        raise ModelError(f"{path}: {names} is not known to this version; update Lectern")
    trained = recipe.get("trained_tokens", config.get("max_position_embeddings", 2048))
    kinds = {f.name: type(f.default) for f in fields(AttentionConfig)}
    for name, value in {"trained_tokens": trained, **attention}.items():
        if type(value) is not kinds.get(name, int):
            kind = "a word" if kinds.get(name) is str else "a whole number"
            raise ModelError(f"{path if path.exists() else folder}: {name} = {value!r}: must be {kind}")
    rope = recipe.get("rope", {})
    limit = min(trained, _window(config) or trained, range_tokens(rope) or trained)
    group = AttentionConfig().group_tokens
    budget = settings.budget_tokens or attention.get("budget_tokens") or min(DEFAULT_BUDGET, limit // group * group)
    if budget > limit:
        raise ConfigError(f"budget_tokens = {budget}: the model was trained to attend to {limit}; choose at most that")
    if budget > MOST_POSITIONS:
        raise ConfigError(
            f"budget_tokens = {budget}: no token is placed beyond position {MOST_POSITIONS}; choose at most that"
        )
    return Recipe(
        attention=AttentionConfig(**{**attention, "budget_tokens": budget}),
        trained_tokens=trained,
        demonstration=bool(recipe.get("demonstration", False)),
        **told_before(recipe),
        rope=applied(rope, config) if "rope" in tuned else None,
        decode=_decode(path, decode, config, settings),
    )


def told_before(recipe: dict[str, Any]) -> dict[str, Any]:
    """What a document and a chat begin with, as lectern.json has it; {} is the recipe of a model that has none."""
    prompt = recipe.get("system_prompt", "" if recipe else ANSWER_FROM_TEXT)
    return {"system_prompt": str(prompt), "document_start": recipe.get("document_start")}


def _table(path: Path, recipe: dict[str, Any], name: str) -> dict[str, Any]:
    table = recipe.get(name, {})
    if not isinstance(table, dict):
        raise ModelError(f"{path}: {name} is not a table; copy or download it again")
    return table


def _decode(path: Path, table: dict[str, Any], config: dict[str, Any], settings: Settings) -> DecodeConfig:
    """How answers choose regions, as the checkpoint says and as the user told otherwise."""
    try:
        decode = DecodeConfig(**{"reselect_every": SHARED_TOKENS, **table})
    except ConfigError as error:
        raise ModelError(f"{path}: {error}; copy or download it again") from error
    every, layers = decode.reselect_every, config.get("num_hidden_layers", 0)
    if isinstance(every, tuple) and len(every) != layers:
        named = f"reselect_every = {list(every)}: has {len(every)} numbers, the model {layers} layers"
        raise ModelError(f"{path}: {named}; copy or download it again")
    told = {name: getattr(settings, name) for name in ("reselect_every", "draft_tokens", "lookup")}
    return replace(decode, **{name: value for name, value in told.items() if value is not None})


def _check_rope(path: Path, entry: Any, config: dict[str, Any] | None) -> None:
    reason = refusal(entry, config)
    if reason:
        raise ModelError(f"{path}: {reason}; copy or download the folder again, or update Lectern")


def _read_adapter_recipe(adapter: str | None) -> dict[str, Any]:
    """What an adapter's own `lectern.json` changes in how its base is read; {} without one."""
    path = Path(adapter).expanduser() / "lectern.json" if adapter else None
    if path is None or not path.exists():
        return {}
    recipe = read_json(path)
    if recipe.get("format", 1) != 1:
        raise ModelError(f"{path}: format is not known to this version; update Lectern")
    _check_rope(path, recipe.get("rope", {}), None)
    return {key: recipe[key] for key in ADAPTER_KEYS if key in recipe}


def _window(config: dict[str, Any]) -> int | None:
    """Tokens that a model with a sliding window was trained to look back; None without one."""
    used = config.get("use_sliding_window", config["model_type"] == "mistral")
    return config.get("sliding_window") if used else None


def pick_device(name: str) -> torch.device:
    """`auto` takes CUDA when there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this PyTorch sees no CUDA device; use --device cpu, or see `doctor`")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def pick_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it faster than float32."""
    instructions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    native = (getattr(torch.cpu, name, lambda: False)() for name in instructions)
    return torch.bfloat16 if device.type == "cuda" or any(native) else torch.float32


def check_memory(folder: Path, device: torch.device, dtype: torch.dtype, *, merging: bool = False) -> None:
    """Refuse a model whose weights cannot fit. Merging an adapter takes float32 in the computer's memory first.

    Raises:
        ModelError: with the bytes needed and the bytes free.
    """
    import psutil

    size = sum(math.prod(stored.shape) for stored in stored_weights(folder).values()) * dtype.itemsize
    needs = {device.type: size}
    if merging:
        needs["cpu"] = size // dtype.itemsize * torch.float32.itemsize
    for place, need in needs.items():
        free = torch.cuda.mem_get_info()[0] if place == "cuda" else psutil.virtual_memory().available
        if need * ROOM > free:
            raise ModelError(
                f"{folder.name}: needs about {need / 2**30:.1f} GiB for its weights, {free / 2**30:.1f} GiB are free "
                f"on {place}; close other programs or choose a smaller model"
            )


def load_model(
    folder: Path,
    settings: Settings,
    device: torch.device,
    dtype: torch.dtype,
    rope: dict[str, Any] | None = None,
):
    """The model in evaluation mode, adapter merged.

    Args:
        rope: `rope_parameters` to use instead of those of config.json.

    Raises:
        ModelError: weights or adapter do not fit together.
    """
    from safetensors import SafetensorError
    from app.models.stock import transformers

    transformers.utils.logging.disable_progress_bar()  # the app shows its own state
    try:
        model, found = load_stock(
            folder,
            torch.float32 if settings.adapter else dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **({"rope_parameters": rope} if rope else {}),
        )
        wrong = sorted([*found["missing_keys"], *(str(key[0]) for key in found["mismatched_keys"])])
        if wrong:
            raise ModelError(
                f"{folder}: weights do not belong to its config.json: {wrong[0]} (and {len(wrong) - 1} more) "
                "are missing or have another size; copy or download the folder again"
            )
        if settings.adapter:
            merge_into(model, read_adapter(settings.adapter), dtype)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(f"{folder}: cannot be loaded: {first_line(error)}") from error
    return model.eval().requires_grad_(False).to(device)
