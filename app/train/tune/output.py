"""What a tuning run leaves: an adapter folder (a plain checkpoint where every weight learnt), with `lectern.json`."""

import json
import shutil
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from app import __version__
from app.errors import InputError, ModelError
from app.models import checkpoint
from app.models.files import whole_folder
from app.models.folder import find_folder, fingerprint, read_config, tokenizer_files, weight_files
from app.models.rope import applied, rope_entry, stated_rope
from app.settings import Settings
from app.train.tune.recipe import TuningRecipe


@dataclass(frozen=True)
class Base:
    """A checkpoint folder, looked at but not loaded.

    Attributes:
        config: config.json.
        recipe: lectern.json; {} without one.
    """

    folder: Path
    config: dict[str, Any]
    recipe: dict[str, Any]

    @property
    def trained_tokens(self) -> int:
        return self.recipe.get("trained_tokens") or self.config.get("max_position_embeddings", 2048)

    @property
    def told_before(self) -> dict[str, Any]:
        """What chats and documents begin with, as the app reads the base."""
        return checkpoint.told_before(self.recipe)

    def fingerprint(self) -> str:
        """SHA-256 over the files of weights: what an adapter belongs to."""
        return fingerprint(weight_files(self.folder), {})

    def load(self, dtype: torch.dtype) -> nn.Module:
        """The model on the CPU.

        Raises:
            ModelError: weights do not belong to the config.
        """
        return checkpoint.load_model(self.folder, Settings(model=str(self.folder)), torch.device("cpu"), dtype)


def read_base(base: str) -> Base:
    """Look at the checkpoint that a recipe names.

    Raises:
        ModelError: it is missing, incomplete or not supported.
    """
    try:
        folder = find_folder(base, download=False)
    except ModelError as error:
        raise ModelError(str(error).replace("--model", "[tune] base =", 1)) from error
    config, path = read_config(folder), folder / "lectern.json"
    return Base(folder, config, json.loads(path.read_text(encoding="utf-8")) if path.exists() else {})


BESIDE_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def is_finished(folder: Path, recipe: TuningRecipe) -> bool:
    """Whether a run of this recipe has left its result there.

    Raises:
        InputError: something else is there.
    """
    if not folder.exists():
        return False
    try:
        facts = json.loads((folder / "lectern.json").read_text(encoding="utf-8")).get("tuning")
    except (OSError, ValueError, AttributeError):
        facts = None
    if facts != tuning_facts(recipe):
        raise InputError(f"{folder}: is there already; delete it, or choose another folder with --out")
    return True


def write_output(
    folder: Path,
    model: nn.Module,
    recipe: TuningRecipe,
    base: Base,
    training: dict[str, Any],
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write what learnt, whole or not at all.

    Args:
        model: a PeftModel, or the causal model itself where every weight learnt.
        training: counts for `lectern.json`.
        weights: the model's, by name, where it does not hold them itself (FSDP, DeepSpeed).

    Raises:
        InputError: `folder` is there already, or cannot be written.
    """
    lectern = lectern_json(recipe, base, training)
    with whole_folder(folder) as new:
        if isinstance(model, PeftModel):
            _write_adapter(new, model, weights, getattr(torch, recipe.tune.stored))
        else:
            _write_checkpoint(new, model, base, lectern["rope"], weights)
        (new / "lectern.json").write_text(json.dumps(lectern, indent=2) + "\n", encoding="utf-8")


def _write_adapter(
    folder: Path, model: PeftModel, weights: dict[str, Tensor] | None, stored: torch.dtype = torch.float32
) -> None:
    """LoRA, embeddings, norms and token rows in one file; peft wants tied output embeddings there too."""
    tensors = get_peft_model_state_dict(model, state_dict=weights, save_embedding_layers=False)
    tensors = {name: tensor.detach().cpu().to(stored).contiguous().clone() for name, tensor in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = copy(model.peft_config["default"])
    config.inference_mode = True
    config.save_pretrained(folder)


def _write_checkpoint(
    folder: Path, model: nn.Module, base: Base, rope: dict[str, Any], weights: dict[str, Tensor] | None
) -> None:
    stored = getattr(torch, base.config.get("dtype") or base.config.get("torch_dtype") or "bfloat16")
    model.config.rope_parameters, model.config.dtype = applied(rope, base.config), stored
    cast = {name: tensor.to(stored) for name, tensor in (weights or model.state_dict()).items()}
    model.save_pretrained(folder, state_dict=cast)
    for path in [*tokenizer_files(base.folder), *(base.folder / name for name in BESIDE_TOKENIZER)]:
        if path.exists():
            shutil.copyfile(path, folder / path.name)


def lectern_json(recipe: TuningRecipe, base: Base, training: dict[str, Any]) -> dict[str, Any]:
    """How the tuned model wants to be read, and how it was made."""
    config, selection = base.config, recipe.selection
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    positions = recipe.positions.of_base(config.get("max_position_embeddings", 2048))
    told = recipe.attention or selection
    attention = asdict(told) if told else base.recipe.get("attention")
    decode = asdict(recipe.decode) if recipe.decode else base.recipe.get("decode")
    return {
        "format": 1,
        "trained_tokens": max(recipe.tune.tokens, base.trained_tokens),
        **{name: value for name, value in base.told_before.items() if value},
        **({"attention": attention} if attention else {}),
        **({"decode": decode} if decode else {}),
        "rope": rope_entry(positions, stated_rope(config), head_dim),
        "training": training,
        "base": {"name": base.folder.name, "fingerprint": base.fingerprint()},
        "tuning": tuning_facts(recipe),
        "versions": {"lectern": __version__, "torch": torch.__version__, "transformers": transformers.__version__,
                     "peft": peft.__version__},
    }  # fmt: skip


def tuning_facts(recipe: TuningRecipe) -> dict[str, Any]:
    """A recipe as JSON, of files and folders only the names."""
    facts = recipe.plain()
    facts["tune"] = {name: value for name, value in facts["tune"].items() if name not in ("base", "out")}
    if "data" in facts:
        named = {key: [Path(file).name for file in facts["data"][key]] for key in ("files", "validation_files")}
        facts["data"] = {**facts["data"], **named}
    return json.loads(json.dumps(facts))
