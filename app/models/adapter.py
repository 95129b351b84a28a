"""A folder that holds an adapter: what is in it, and whether it belongs to a checkpoint. Reads no weights.

Old LongLoRA folders count: a LoRA adapter, and `trainable_params.bin` with the embeddings and norms beside it.
"""

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import ModelError
from app.models.files import Stored, read_json
from app.models.folder import find_folder, fingerprint, read_config, stored_tensors, stored_weights, weight_files

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
TRAINABLE_FILE = "trainable_params.bin"
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TOKEN_ROWS = ".token_adapter.trainable_tokens_delta"
# What may stand after a module's name; everything else that peft can train is refused.
PARTS = (
    ".lora_A.weight",
    ".lora_B.weight",
    ".lora_embedding_A",
    ".lora_embedding_B",
    ".lora_magnitude_vector",
    TOKEN_ROWS,
)


@dataclass(frozen=True)
class Adapter:
    """What an adapter folder says of itself.

    Attributes:
        config: adapter_config.json.
        recipe: lectern.json; empty without one.
        files: its weights, later ones win.
        tensors: by the base's names, see `base_name`.
    """

    folder: Path
    config: dict[str, Any]
    recipe: dict[str, Any]
    files: tuple[Path, ...]
    tensors: dict[str, Stored]

    @property
    def is_longlora(self) -> bool:
        """Whether embeddings and norms lie in a file of their own, as LongLoRA's scripts leave them."""
        return self.files[-1].name == TRAINABLE_FILE

    @property
    def rows(self) -> int | None:
        """Rows of its own embeddings: the vocabulary that it was trained with; None when they are the base's."""
        stored = self.tensors.get(EMBEDDINGS)
        return stored.shape[0] if stored else None

    @property
    def modules(self) -> dict[str, int]:
        """LoRA modules by their last name, such as q_proj, with the rank of each."""
        return {
            name.removesuffix(".lora_A.weight").rpartition(".")[2]: stored.shape[0]
            for name, stored in self.tensors.items()
            if name.endswith(".lora_A.weight")
        }

    @property
    def replaced(self) -> list[str]:
        """Weights of the base that the adapter replaces whole."""
        return [name for name in self.tensors if not part_of(name)]


def base_name(name: str) -> str | None:
    """A stored name as the base would say it; None for what is no weight of its own.

    peft puts `base_model.model.` before every name, DeepSpeed `module.`; LongLoRA's scripts take the first one off.
    """
    name = name.removeprefix("module.").removeprefix("base_model.model.")
    name = name.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".").replace(".default.", ".")
    name = name.replace(".base_layer.bias", ".bias")  # the weight beside it is a copy of the base's
    copies = (".base_layer.", ".original_module.")
    return None if name.endswith("rotary_emb.inv_freq") or any(copy in name for copy in copies) else name


def part_of(name: str) -> tuple[str, str] | None:
    """(name of the base's weight, part) of a tensor that changes a weight; None for one that replaces it."""
    part = next((part for part in PARTS if name.endswith(part)), None)
    return (name.removesuffix(part) + ".weight", part) if part else None


def read_adapter(path: str | Path) -> Adapter:
    """What an adapter folder holds.

    Raises:
        ModelError: it is no LoRA adapter, or damaged, or of a kind that cannot be merged.
    """
    folder = Path(path).expanduser().absolute()
    if not (folder / "adapter_config.json").exists():
        raise ModelError(f"{folder}: no adapter_config.json there; give the folder of a LoRA adapter")
    config = read_json(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{folder}: is of type {config.get('peft_type')}; only LoRA adapters can be merged")
    if reason := refusal(config):
        raise ModelError(f"{folder}: {reason}")
    weights = next((folder / name for name in ADAPTER_FILES if (folder / name).exists()), None)
    if weights is None:
        raise ModelError(f"{folder}: no {ADAPTER_FILES[0]} there; the folder is incomplete")
    files = (weights, *(file for file in [folder / TRAINABLE_FILE] if file.exists()))
    recipe = folder / "lectern.json"
    tensors = {
        known: stored
        for file in files
        for name, stored in stored_tensors(file).items()
        if (known := base_name(name)) is not None
    }
    if any(name.endswith("embed_tokens.lora_magnitude_vector") for name in tensors):
        raise ModelError(f"{folder}: use_dora on embeddings: merge it with peft and load the result")
    if not tensors:
        raise ModelError(f"{weights}: holds no weights; train the adapter again or copy it again")
    return Adapter(folder, config, read_json(recipe) if recipe.exists() else {}, files, tensors)


def check_adapter(path: str | Path, folder: Path) -> Adapter:
    """The adapter at `path`, refused when it cannot be loaded on the checkpoint in `folder`.

    Raises:
        ModelError: what is missing or does not fit.
    """
    adapter = read_adapter(path)
    check_fit(adapter, stored_weights(folder), folder.name)
    if adapter.is_longlora and "rope" not in adapter.recipe:
        raise ModelError(
            f"{adapter.folder}: does not say to which length its positions were stretched; merge it first, with "
            "`merge` and --trained-tokens, and load what that writes"
        )
    rows, have = adapter.rows, read_config(folder)["vocab_size"]
    if rows and rows > have:
        raise ModelError(
            f"{adapter.folder}: has {rows:,} token ids, {folder.name} has {have:,}; merge it first, with `merge`, "
            "and load what that writes"
        )
    return adapter


def check_fit(adapter: Adapter, base: Mapping[str, Stored], name: str) -> None:
    """Refuse an adapter of another model.

    Args:
        base: the tensors of the base, see `folder.stored_weights`.
        name: of the base, for the message.

    Raises:
        ModelError: with the first tensor that does not belong.
    """
    wrong = next(_misfits(adapter, base), None)
    if wrong is not None:
        raise ModelError(
            f"{adapter.folder}: was made for another model than {name}: {wrong} has the shape "
            f"{adapter.tensors[wrong].shape}; choose the model it was trained on"
        )


def check_base(adapter: Adapter, folder: Path, known: MutableMapping[str, str]) -> None:
    """Refuse a base with other weights than those that the adapter was trained on, where it says which they were.

    Args:
        known: see `folder.fingerprint`.

    Raises:
        ModelError: with the name of the right base.
    """
    base = adapter.recipe.get("base") or {}
    wanted = base.get("fingerprint")
    if wanted and wanted != fingerprint(weight_files(folder), known):
        raise ModelError(
            f"{adapter.folder}: was trained on {base.get('name')} (fingerprint {wanted[:12]}), and {folder} holds "
            "other weights of the same shapes; give the checkpoint that it was trained on"
        )


def find_base(adapter: Adapter, base: str | Path | None = None) -> Path:
    """The folder of an adapter's base: as given, else as the adapter names it, also beside the adapter.

    Raises:
        ModelError: it is not on this machine, or not named.
    """
    named = str(base or adapter.config.get("base_model_name_or_path") or "")
    if not named:
        raise ModelError(f"{adapter.folder}: does not name its base; give the folder of the checkpoint with --base")
    places = [Path(named).expanduser(), *([] if base else [adapter.folder / named, adapter.folder.parent / named])]
    place = next((place for place in places if (place / "config.json").exists()), None)
    if place is not None:
        return place if place.is_absolute() else place.resolve()
    try:
        return find_folder(named, download=False)
    except ModelError as error:
        if base:
            raise ModelError(f"--base {base}: no such folder; give the folder of the checkpoint") from error
        raise ModelError(
            f"{adapter.folder}: its base {named} is not on this machine; give the folder of it with --base"
        ) from error


def _misfits(adapter: Adapter, base: Mapping[str, Stored]) -> Iterator[str]:
    """Names of the tensors that the base has no place for."""
    token_ids = adapter.config.get("trainable_token_indices") or {}
    for name, stored in adapter.tensors.items():
        target, part = part_of(name) or (name, "")
        place = base.get(EMBEDDINGS if target == HEAD and HEAD not in base else target)
        rows, columns = place.shape if place and len(place.shape) == 2 else (0, 0)
        rank = stored.shape[:1] if part.endswith("A.weight") or part.endswith("_A") else stored.shape[-1:]
        wanted = {
            ".lora_A.weight": (*rank, columns),
            ".lora_B.weight": (rows, *rank),
            ".lora_embedding_A": (*rank, rows),
            ".lora_embedding_B": (columns, *rank),
            ".lora_magnitude_vector": (rows,),
            TOKEN_ROWS: (stored.shape[0] if token_ids else -1, columns),
            "": place.shape if place else (),
        }[part]
        grows = not part and target in (EMBEDDINGS, HEAD) and stored.shape[0] > rows and stored.shape[1:] == (columns,)
        if place is None or (stored.shape != wanted and not grows):
            yield name


# Of any value: they say where LoRA stands or how it was trained, or merging does what they say.
ACCEPTED = frozenset({
    "peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode",
    "r", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern",
    "lora_alpha", "alpha_pattern", "use_rslora", "use_dora", "lora_dropout", "bias", "modules_to_save",
    "trainable_token_indices", "ensure_weight_tying", "runtime_config", "megatron_core", "qalora_group_size",
    "fan_in_fan_out",  # peft turns it off for linear layers, and all of ours are
    "init_lora_weights", "eva_config", "corda_config", "lora_ga_config", "loftq_config",  # see STARTS
})  # fmt: skip

# Values of init_lora_weights that leave the base as it is. The others take a part out of it and train that.
STARTS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
OF_THE_BASE = (
    "starts from a part taken out of the base, which this folder does not hold; save it in peft with "
    "path_initial_model_for_weight_conversion, which makes a plain adapter of it"
)
OF_QUANTISED = "was trained on a quantised base; merge it with peft into that base and load the result"
MERGE_WITH_PEFT = "merge it with peft and load the result"

REFUSED = {
    "alora_invocation_tokens": "applies from certain tokens on, so no checkpoint equals it; choose another adapter",
    "arrow_config": "chooses an adapter for each token, so no checkpoint equals it; choose another adapter",
    "kasa_config": f"has singular values beside A and B; {MERGE_WITH_PEFT}",
    "layer_replication": f"has layers twice that the base has once; {MERGE_WITH_PEFT}",
    "lora_bias": f"adds biases that the base's layers do not have; {MERGE_WITH_PEFT}",
    "megatron_config": f"splits layers as Megatron does; {MERGE_WITH_PEFT}",
    "monteclora_config": f"mixes sampled adapters; {MERGE_WITH_PEFT}",
    "target_parameters": f"changes parameters outside linear layers; {MERGE_WITH_PEFT}",
    "use_bdlora": f"has A and B in blocks; {MERGE_WITH_PEFT}",
    "use_qalora": OF_QUANTISED,
    "velora_config": f"keeps compressed activations beside A and B; {MERGE_WITH_PEFT}",
}


def refusal(config: Mapping[str, Any]) -> str:
    """Why an adapter with this adapter_config.json is not loaded: option, value and what to do; "" when it can be."""
    start = config.get("init_lora_weights")
    if start not in STARTS:
        return f"init_lora_weights = {start!r}: {OF_QUANTISED if start == 'loftq' else OF_THE_BASE}"
    for name, value in config.items():
        if name in ACCEPTED or not value:
            continue
        reason = REFUSED.get(name, "is not known to this version of Lectern; update it, or merge the adapter with peft")
        return f"{name} = {_short(value)}: {reason}"
    return ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
