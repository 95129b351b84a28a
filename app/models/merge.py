"""`merge ADAPTER --out FOLDER`: an adapter and its base become one plain checkpoint, checked before it takes its name.

The checkpoint loads in stock transformers; `lectern.json` beside it says how it wants to be read and whence it came.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file
from torch import Tensor

from app import __version__
from app.models.stock import transformers
from app.errors import ConfigError, InputError, ModelError
from app.models.adapter import EMBEDDINGS, HEAD, Adapter, check_base, check_fit, find_base, read_adapter
from app.models.checkpoint import read_recipe
from app.models.files import Stored, heads_of, read_json, whole_folder
from app.models.folder import fingerprint, highest_id, read_config, stored_weights, weight_files
from app.models.inspect import inspect
from app.models.merge_check import Check, compare
from app.models.merging import AdapterWeights, base_tensors
from app.models.rope import PositionConfig, applied, rope_entry, stated_rope
from app.settings import Settings
from app.system import size_text

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
SHARD_BYTES = 4_000_000_000
PAD = "[PAD]"
MARGIN_BYTES = 50_000_000  # tokenizer, JSON, and what a full disk should keep
TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class Merged:
    """What merging made.

    Attributes:
        rows: of the embeddings.
        check: how it compares with the adapter's model; None where memory did not suffice, see `notes`.
        notes: what a user should know.
    """

    folder: Path
    base: Path
    parameters: int
    size_bytes: int
    dtype: str
    rows: int
    tied: bool
    check: Check | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before a weight is read.

    Attributes:
        config, stored: config.json of the base, and its weights by name.
        rope: the `rope` entry of lectern.json where the adapter changes positions, else None.
        rows: of the embeddings of the result.
    """

    adapter: Adapter
    base: Path
    config: dict[str, Any]
    stored: dict[str, Stored]
    dtype: torch.dtype
    rope: dict[str, Any] | None
    trained_tokens: int
    rows: int

    @property
    def tied(self) -> bool:
        """Whether the base's output embeddings are its input embeddings."""
        return bool(self.config.get("tie_word_embeddings", False))

    @property
    def rope_parameters(self) -> dict[str, Any] | None:
        """For config.json, where they change."""
        return applied(self.rope, self.config) if self.rope else None

    def size_bytes(self) -> int:
        """At most what the weights take on the disk."""
        grown = (self.rows - self.stored[EMBEDDINGS].shape[0]) * self.config["hidden_size"]
        embeddings = math.prod(self.stored[EMBEDDINGS].shape) if self.tied else 0
        count = sum(math.prod(stored.shape) for stored in self.stored.values()) + 2 * grown + embeddings
        return count * self.dtype.itemsize


def merge(
    adapter: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    dtype: str | None = None,
    trained_tokens: int | None = None,
    force: bool = False,
    threads: int | None = None,
    on_step: Callable[[str], None] | None = None,
) -> Merged:
    """Merge an adapter into its base and write a plain checkpoint, whole or not at all.

    Args:
        base: folder of the base; None means the one that the adapter names.
        dtype: of the weights; None means the base's.
        trained_tokens: length that an adapter without lectern.json was trained on; positions beyond the base's own
            length are interpolated linearly, as LongLoRA does.
        force: replace a checkpoint in `out`.
        threads: CPU threads of torch from now on; None leaves them.
        on_step: told in words what begins.

    Raises:
        ModelError, ConfigError, InputError: what does not fit, before anything is written; or the result is not the
            adapter's model, and nothing stays.
    """
    say = on_step or (lambda step: None)
    out = Path(out).expanduser().absolute()
    if out.exists() and not force:
        raise InputError(f"--out {out}: is there already; choose another folder, or add --force to replace it")
    if threads:
        torch.set_num_threads(threads)
    say("looking at adapter and base")
    plan = make_plan(adapter, base, dtype, trained_tokens)
    _check_place(plan, out)
    with whole_folder(out, force=force) as new:
        notes = _write_tokenizer(plan, new)
        say(f"merging into {plan.base.name}")
        weights = AdapterWeights(plan.adapter)
        _write_weights(new, merged_tensors(plan, weights), plan.dtype)
        stored = stored_weights(new)
        tied = plan.tied and HEAD not in stored
        if plan.tied and not tied:
            notes.append(
                "the adapter was trained with its embeddings parted from the head, so they are not tied any more"
            )
        _write_config(plan, new, tied)
        for file in weight_files(new):
            shutil.copymode(new / "config.json", file)  # safetensors writes for its owner alone
        refused = inspect(new).reasons
        if refused:
            raise ModelError(refused[0].replace(str(new), str(out)))
        say("comparing it with the adapter's model")
        check, note = compare(plan.adapter, plan.base, new, plan.rope_parameters, plan.dtype)
        parameters = sum(math.prod(entry.shape) for entry in stored.values())
    return Merged(
        folder=out,
        base=plan.base,
        parameters=parameters,
        size_bytes=sum(file.stat().st_size for file in weight_files(out)),
        dtype=str(plan.dtype).removeprefix("torch."),
        rows=plan.rows,
        tied=tied,
        check=check,
        notes=(*notes, *([note] if note else [])),
    )


def make_plan(
    adapter: str | Path, base: str | Path | None = None, dtype: str | None = None, trained_tokens: int | None = None
) -> Plan:
    """Check adapter and base against each other and decide what comes out; arguments as `merge`.

    Raises:
        ModelError, ConfigError: what does not fit.
    """
    place = Path(adapter).expanduser()
    if (place / "config.json").exists() and not (place / "adapter_config.json").exists():
        raise ModelError(f"{adapter}: is a checkpoint already; there is nothing to merge")
    found = read_adapter(place)
    folder = find_base(found, base)
    config, stored = read_config(folder), stored_weights(folder)
    check_fit(found, stored, folder.name)
    check_base(found, folder, {})
    read_recipe(folder, config, Settings(model=str(folder), adapter=str(found.folder)))
    rope, tokens = _positions(found, folder, config, trained_tokens)
    if dtype is None:
        kinds = [entry.dtype for entry in stored.values()]
        dtype = DTYPES.get(max(set(kinds), key=kinds.count), "float32")
    return Plan(
        adapter=found,
        base=folder,
        config=config,
        stored=stored,
        dtype=getattr(torch, dtype),
        rope=rope,
        trained_tokens=tokens,
        rows=found.rows or stored[EMBEDDINGS].shape[0],
    )


def _positions(
    adapter: Adapter, folder: Path, config: dict[str, Any], trained_tokens: int | None
) -> tuple[dict[str, Any] | None, int]:
    """(`rope` entry where positions change, trained length)."""
    stated, own = adapter.recipe, config.get("max_position_embeddings", 2048)
    if trained_tokens is not None and "trained_tokens" in stated:
        raise ConfigError(
            f"--trained-tokens {trained_tokens}: {adapter.folder} says itself that it was trained on "
            f"{stated['trained_tokens']}; leave the flag out"
        )
    if "rope" in stated:
        return stated["rope"], stated.get("trained_tokens", own)
    if trained_tokens is None and adapter.is_longlora:
        raise ConfigError(
            f"{adapter.folder}: LongLoRA's folders do not say on which length they were trained, and positions are "
            "stretched by it; give it with --trained-tokens, such as 32768"
        )
    before = _lectern_json(folder).get("trained_tokens", own)
    tokens = trained_tokens or stated.get("trained_tokens", before)
    if trained_tokens is None or trained_tokens <= own:
        return None, tokens
    stretched = PositionConfig("linear", (float(math.ceil(trained_tokens / own)),), own)
    return rope_entry(stretched, stated_rope(config), heads_of(config)[2]), tokens


def _lectern_json(folder: Path) -> dict[str, Any]:
    return read_json(folder / "lectern.json") if (folder / "lectern.json").exists() else {}


def _check_place(plan: Plan, out: Path) -> None:
    """Refuse a place that would destroy what is read, or a disk too full."""
    for source in (plan.base, plan.adapter.folder):
        if out.resolve() in (source.resolve(), *source.resolve().parents):
            raise InputError(f"--out {out}: holds {source}, which is read; choose another folder")
    parent = next(place for place in out.parents if place.exists())
    need, free = plan.size_bytes() + MARGIN_BYTES, shutil.disk_usage(parent).free
    if need > free:
        raise InputError(
            f"--out {out}: needs about {size_text(need)}, {size_text(free)} are free at {parent}; free some room or "
            "choose another disk"
        )


def _write_tokenizer(plan: Plan, new: Path) -> list[str]:
    """Copy the adapter's own tokenizer, else the base's with the tokens that LongLoRA's scripts add.

    Returns:
        What a user should know.

    Raises:
        ModelError: tokenizer and embeddings do not fit.
    """
    notes: list[str] = []
    own = plan.adapter.folder
    source = own if (own / "tokenizer.json").exists() else plan.base
    for name in TOKENIZER:
        if (source / name).exists():
            shutil.copyfile(source / name, new / name)
    if (plan.base / "generation_config.json").exists():
        shutil.copyfile(plan.base / "generation_config.json", new / "generation_config.json")
    if source == plan.base and plan.rows > plan.stored[EMBEDDINGS].shape[0]:
        notes.append(_add_tokens(plan, new))
    if (new / "tokenizer.json").exists():
        most = highest_id(read_json(new / "tokenizer.json"))
        if most >= plan.rows:
            raise ModelError(
                f"{source}: the tokenizer has {most + 1:,} ids, the embeddings {plan.rows:,} rows; take the tokenizer "
                "that the adapter was trained with"
            )
    return notes


def _add_tokens(plan: Plan, new: Path) -> str:
    """Add to the base's tokenizer what `added_tokens.json` of the adapter names, or one padding token."""
    tokenizer, own = transformers.AutoTokenizer.from_pretrained(plan.base), plan.adapter.folder
    stated = own / "added_tokens.json"
    named = read_json(stated) if stated.exists() else {PAD: plan.rows - 1}
    added = [
        token for token, _ in sorted(named.items(), key=lambda item: item[1]) if token not in tokenizer.get_vocab()
    ]
    before = len(tokenizer)
    if before + len(added) != plan.rows:
        raise ModelError(
            f"{own}: was trained with {plan.rows:,} token ids, the tokenizer of {plan.base.name} has {before:,}; copy "
            "the tokenizer.json that it was trained with into the adapter's folder"
        )
    tokenizer.add_tokens(added, special_tokens=True)
    if PAD in added:
        tokenizer.pad_token = PAD
    tokenizer.save_pretrained(new)
    return f"{', '.join(added)} was added to the tokenizer as id {before:,}, as LongLoRA's scripts do"


def merged_tensors(plan: Plan, weights: AdapterWeights) -> Iterator[tuple[str, Tensor]]:
    """Names and weights of the merged model, one at a time; float32 where the adapter changed them."""
    for name, tensor in base_tensors(plan.base):
        if name.endswith("rotary_emb.inv_freq") or (name == HEAD and plan.tied):
            continue
        if name == EMBEDDINGS and plan.tied:
            head = weights.head(tensor)
            if head is not None:
                yield HEAD, head
        yield name, weights.merged(name, tensor)


def _write_weights(
    new: Path, tensors: Iterator[tuple[str, Tensor]], dtype: torch.dtype, shard_bytes: int | None = None
) -> None:
    """Write weights in shards no larger than memory allows.

    Raises:
        ModelError: a weight holds values that are not numbers, or too large for `dtype`.
    """
    limit = shard_bytes or min(SHARD_BYTES, psutil.virtual_memory().available // 4)
    shards: list[list[str]] = []
    waiting: dict[str, Tensor] = {}
    total = held = 0

    def write() -> None:
        save_file(waiting, new / f"{len(shards)}.part", metadata={"format": "pt"})
        shards.append(list(waiting))
        waiting.clear()

    for name, tensor in tensors:
        stored = tensor.to(dtype).contiguous()
        if not torch.isfinite(stored).all():
            raise ModelError(
                f"{name}: holds values that are not numbers, or too large for {str(dtype).removeprefix('torch.')}; "
                "choose --dtype float32, or look at the base"
            )
        size = stored.numel() * stored.itemsize
        if waiting and held + size > limit:
            write()
            held = 0
        waiting[name] = stored
        held, total = held + size, total + size
    write()
    if len(shards) == 1:
        (new / "0.part").rename(new / "model.safetensors")
        return
    places = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        (new / f"{i}.part").rename(new / file)
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (new / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_config(plan: Plan, new: Path, tied: bool) -> None:
    config = {name: value for name, value in plan.config.items() if name != "torch_dtype"}
    config["dtype"] = str(plan.dtype).removeprefix("torch.")
    config["vocab_size"], config["tie_word_embeddings"] = plan.rows, tied
    if plan.rope_parameters:
        config = {name: value for name, value in config.items() if name not in ("rope_scaling", "rope_theta")}
        config["rope_parameters"] = plan.rope_parameters
        config["max_position_embeddings"] = max(config.get("max_position_embeddings", 0), plan.trained_tokens)
    (new / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (new / "lectern.json").write_text(json.dumps(_lectern(plan), indent=2) + "\n", encoding="utf-8")


def _lectern(plan: Plan) -> dict[str, Any]:
    """How the merged model wants to be read, and of what it was made."""
    before, adapter = _lectern_json(plan.base), plan.adapter
    rope = plan.rope or before.get("rope")
    return {
        **before,
        **adapter.recipe,
        "format": 1,
        "trained_tokens": plan.trained_tokens,
        **({"rope": rope} if rope else {}),
        "base": {"name": plan.base.name, "fingerprint": fingerprint(weight_files(plan.base), {})},
        "merged_from": {
            "name": adapter.folder.name,
            "fingerprint": fingerprint(list(adapter.files), {}),
            "layout": "longlora" if adapter.is_longlora else "peft",
        },
        "versions": {"lectern": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }
