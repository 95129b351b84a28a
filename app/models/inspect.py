"""Say what a model's folder holds and whether the app can use it. Reads headers and JSON, never weights."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from app.errors import LecternError, ModelError
from app.models.adapter import (
    HEAD,
    TOKEN_ROWS,
    TRAINABLE_FILE,
    Adapter,
    check_adapter,
    check_base,
    find_base,
    read_adapter,
)
from app.models.files import Stored, expected_shapes, heads_of, is_gguf, read_json
from app.models.folder import ARCHITECTURES, highest_id, read_config, stored_weights, weight_files
from app.models.rope import applied, stated_rope
from app.settings import Settings
from app.system import size_text

Kind = Literal["checkpoint", "adapter", "longlora", "unknown"]
DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
HASHED_BYTES = 100_000_000  # a larger base is compared with an adapter's fingerprint when it is loaded
NOTHING = "holds no config.json of a checkpoint and no adapter_config.json of an adapter"


@dataclass(frozen=True)
class Inspection:
    """What a folder is.

    Attributes:
        facts: what was found, in the order to show it.
        usable: whether the app can load it, an adapter together with `base`.
        reasons: why not.
        base: the folder of an adapter's base, when it is on this machine.
    """

    path: Path
    kind: Kind
    facts: dict[str, str] = field(default_factory=dict)
    usable: bool = False
    reasons: tuple[str, ...] = ()
    base: Path | None = None


class _Findings:
    """Collects facts and reasons; what cannot be found out becomes a reason."""

    def __init__(self) -> None:
        self.facts: dict[str, str] = {}
        self.reasons: list[str] = []

    def run(self, look: Callable[..., Any], *args: Any) -> Any:
        """The result of `look`, or None with a reason noted."""
        try:
            return look(*args)
        except LecternError as error:
            reason = str(error)
        except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {error}; copy or download the folder again"
        if reason not in self.reasons:
            self.reasons.append(reason)
        return None


def inspect(path: str | Path, base: str | Path | None = None) -> Inspection:
    """Say what a folder or a GGUF file is. Never raises for what is wrong with it.

    Args:
        base: folder of the checkpoint that an adapter belongs to; None means the one that the adapter names.
    """
    folder = Path(path).expanduser().absolute()
    seen = _Findings()
    kind: Kind = "unknown"
    found: Path | None = None
    try:
        if (folder / "adapter_config.json").exists():
            kind = "longlora" if (folder / TRAINABLE_FILE).exists() else "adapter"
            found = seen.run(_inspect_adapter, folder, base, seen)
        elif (folder / "config.json").exists():
            kind = "checkpoint"
            seen.run(_inspect_checkpoint, folder, seen)
        elif is_gguf(folder):
            kind = "checkpoint"
            seen.run(_inspect_gguf, folder, seen)
        else:
            seen.reasons.append(f"{folder}: {NOTHING if folder.is_dir() else 'no such folder'}")
        if kind != "unknown" and folder.is_dir():
            seen.facts["size on disk"] = size_text(sum(p.stat().st_size for p in folder.iterdir() if p.is_file()))
    except OSError as error:
        seen.reasons.append(f"{folder}: cannot be read ({error.strerror}); look at its rights")
    return Inspection(folder, kind, seen.facts, not seen.reasons, tuple(seen.reasons), found)


def _inspect_gguf(file: Path, seen: _Findings) -> None:
    """Note what a GGUF file's header says; vocabulary and weights are looked at when it is loaded."""
    from app.models import gguf
    from app.models.gguf_header import parts_of, read_header

    parts = parts_of(file)
    header = gguf.joined([read_header(part) for part in parts])
    values, tensors = header.metadata, header.tensors
    arch = values.get("general.architecture", "")
    if reason := gguf.refusal(header):
        raise ModelError(f"{file}: {reason}")
    kinds = Counter()
    for shape, kind in tensors.values():
        kinds[kind] += math.prod(shape)
    parts_text = f", {len(parts)} parts" if len(parts) > 1 else ""
    seen.facts["architecture"] = f"{gguf.CLASSES[gguf.ARCHITECTURES[arch]]} ({arch}), GGUF{parts_text}"
    seen.facts["parameters"] = f"{sum(kinds.values()):,}"
    seen.facts["dtype"] = ", ".join(kind for kind, _ in kinds.most_common())
    seen.facts["layers"] = str(values.get(f"{arch}.block_count"))
    seen.facts["vocabulary"] = f"{tensors['token_embd.weight'][0][0]:,} ids"
    if length := values.get(f"{arch}.context_length"):
        seen.facts["trained length"] = f"{length:,} tokens"
    template = "yes" if values.get("tokenizer.chat_template") else "no: turns are put as plain text"
    seen.facts["chat template"] = template
    seen.facts["size on disk"] = size_text(sum(part.stat().st_size for part in parts))


def _inspect_checkpoint(folder: Path, seen: _Findings) -> None:
    config = seen.run(read_json, folder / "config.json")
    if config is None:
        return
    seen.run(read_config, folder)
    recipe = seen.run(_lectern_json, folder) or {}
    weights = seen.run(stored_weights, folder) if seen.run(_complete, folder) else None
    seen.run(_model_facts, config, weights or {}, seen.facts)
    seen.run(_reading_facts, config, recipe, seen.facts)
    seen.run(_tokenizer_facts, folder, config, seen)
    if config.get("model_type") in ARCHITECTURES:
        seen.run(_try_recipe, folder, config)
        if weights:
            seen.run(_check_weights, folder, config, weights)


def _complete(folder: Path) -> bool:
    files = weight_files(folder)
    return bool(files) and all(file.exists() for file in files)


def _lectern_json(folder: Path) -> dict[str, Any]:
    return read_json(folder / "lectern.json") if (folder / "lectern.json").exists() else {}


def _try_recipe(folder: Path, config: dict[str, Any], adapter: str | None = None) -> None:
    from app.models.checkpoint import read_recipe

    read_recipe(folder, config, Settings(model=str(folder), adapter=adapter))


def _model_facts(config: Mapping[str, Any], weights: Mapping[str, Stored], facts: dict[str, str]) -> None:
    names = config.get("architectures") or ["unnamed"]
    facts["architecture"] = f"{names[0]} ({config.get('model_type')})"
    if weights:
        facts["parameters"] = f"{sum(math.prod(w.shape) for w in weights.values()):,}"
        kinds = Counter()
        for stored in weights.values():
            kinds[stored.dtype] += math.prod(stored.shape)
        facts["dtype"] = ", ".join(DTYPES.get(name, name) for name, _ in kinds.most_common())
    facts["layers"] = str(config["num_hidden_layers"])
    heads, kv_heads, size = heads_of(config)
    facts["heads"] = f"{heads} for queries, {kv_heads} for keys and values, {size} wide"
    facts["KV per token"] = f"{2 * 2 * config['num_hidden_layers'] * kv_heads * size:,} bytes in 16 bits"
    tied = ", embeddings tied" if config.get("tie_word_embeddings") else ""
    facts["vocabulary"] = f"{config['vocab_size']:,} ids{tied}"


def _reading_facts(config: Mapping[str, Any], recipe: Mapping[str, Any], facts: dict[str, str]) -> None:
    """Trained length, positions and attention: of lectern.json, else of config.json."""
    stated = recipe.get("trained_tokens", config.get("max_position_embeddings"))
    if stated:
        facts["trained length"] = f"{stated:,} tokens"
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    if window:
        facts["sliding window"] = f"{window:,} tokens"
    rope = stated_rope(config)
    entry = recipe.get("rope") or {}
    factor = rope.get("factor") or entry.get("factor")
    method = entry.get("method", "none")
    facts["positions"] = f"{rope['rope_type']}, base {rope['rope_theta']:,.0f}" + (
        f", factor {factor:g}" if factor else ""
    )
    if method != "none":
        facts["positions"] += f", stretched by {method}"
    attention = recipe.get("attention") or {}
    facts["attention"] = (
        f"MS-Attn, budget {attention['budget_tokens']:,} tokens, regions of {attention.get('region_tokens', 64)}"
        if "budget_tokens" in attention
        else "no recipe; MS-Attn as Lectern sets it"
    )
    training = recipe.get("training") or {}
    if training.get("tokens"):
        facts["trained here on"] = f"{training['tokens']:,} tokens"
    made_of = recipe.get("merged_from") or {}
    if made_of:
        facts["merged from"] = f"{made_of.get('name')} on {(recipe.get('base') or {}).get('name')}"
    if recipe.get("demonstration"):
        facts["demonstration"] = "yes: not meant for work"


def _tokenizer_facts(folder: Path, config: Mapping[str, Any], seen: _Findings) -> None:
    stated = folder / "tokenizer_config.json"
    own = read_json(stated) if stated.exists() else {}
    template = own.get("chat_template") or (folder / "chat_template.jinja").exists()
    seen.facts["chat template"] = "yes" if template else "no: turns are put as plain text"
    if (folder / "tokenizer.json").exists():
        most = highest_id(read_json(folder / "tokenizer.json"))
        seen.facts["tokenizer"] = f"{most + 1:,} ids"
        if most >= config["vocab_size"]:
            seen.reasons.append(
                f"{folder}: the tokenizer has {most + 1:,} ids, the embeddings {config['vocab_size']:,} rows; "
                "copy the tokenizer that belongs to the weights"
            )


def _check_weights(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Stored]) -> None:
    """Refuse weights that do not belong to config.json, or that this machine cannot hold."""
    import psutil

    wrong = [
        name for name, shape in expected_shapes(config).items() if name not in weights or weights[name].shape != shape
    ]
    if wrong:
        raise ModelError(
            f"{folder}: weights do not belong to its config.json: {wrong[0]} (and {len(wrong) - 1} more) "
            "are missing or have another size; copy or download the folder again"
        )
    if 2 * sum(math.prod(stored.shape) for stored in weights.values()) > psutil.virtual_memory().total:
        from app.models import checkpoint

        device = checkpoint.pick_device("auto")
        checkpoint.check_memory(folder, device, checkpoint.pick_dtype(device))


def _inspect_adapter(folder: Path, base: str | Path | None, seen: _Findings) -> Path | None:
    """Note what an adapter is; returns the folder of its base."""
    adapter: Adapter | None = seen.run(read_adapter, folder)
    if adapter is None:
        return None
    named = str(adapter.config.get("base_model_name_or_path") or "")
    found = seen.run(find_base, adapter, base)
    seen.facts["type"] = "LoRA adapter" + (", embeddings and norms beside it (LongLoRA)" if adapter.is_longlora else "")
    here = "" if found is None else ", here" if str(found) == named else f", here: {found}"
    seen.facts["base"] = (named or "not named") + (here or ", not found here")
    seen.run(_adapter_facts, adapter, seen.facts)
    if found is not None:
        config = seen.run(read_config, found)
        if config and seen.run(check_adapter, folder, found):
            if sum(file.stat().st_size for file in weight_files(found)) < HASHED_BYTES:
                seen.run(check_base, adapter, found, {})
            recipe = {**(seen.run(_lectern_json, found) or {}), **adapter.recipe}
            rope = seen.run(applied, recipe.get("rope") or {}, config)
            seen.run(_reading_facts, {**config, "rope_parameters": rope}, recipe, seen.facts)
            seen.run(_try_recipe, found, config, str(folder))
    return found


def _adapter_facts(adapter: Adapter, facts: dict[str, str]) -> None:
    ranks = sorted(set(adapter.modules.values()))
    facts["targets"] = ", ".join(dict.fromkeys(adapter.modules)) or "none"
    facts["rank"] = ", ".join(map(str, ranks)) + f", alpha {adapter.config.get('lora_alpha')}"
    also = Counter("embeddings" if "embed" in n else "head" if n == HEAD else "norms" for n in adapter.replaced)
    if adapter.config.get("ensure_weight_tying"):
        del also["head"]  # a copy of the embeddings
    rows = [stored.shape[0] for name, stored in adapter.tensors.items() if name.endswith(TOKEN_ROWS)]
    also += Counter({"token rows": sum(rows)})
    facts["also trained"] = ", ".join(f"{name} ({count})" for name, count in also.items()) or "nothing"
    facts["parameters"] = f"{sum(math.prod(stored.shape) for stored in adapter.tensors.values()):,}"
    if adapter.rows:
        facts["vocabulary"] = f"{adapter.rows:,} ids"
