"""Merge an adapter into the weights of its base, one weight at a time, in float32."""

import math
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from app.models.stock import transformers
from app.errors import ModelError
from app.models.adapter import EMBEDDINGS, HEAD, TOKEN_ROWS, TRAINABLE_FILE, Adapter, base_name, part_of
from app.models.files import GGUF_LIST, first_line
from app.models.folder import weight_files


def read_tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a file of weights, each read when its turn comes.

    Raises:
        ModelError: the file is damaged, or holds more than weights.
    """
    from safetensors import SafetensorError, safe_open

    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as data:
                for name in data.keys():
                    yield name, data.get_tensor(name)
        else:
            yield from torch.load(file, map_location="cpu", mmap=True, weights_only=True).items()
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError) as error:
        raise ModelError(f"{file}: cannot be read: {first_line(error)}; copy or download it again") from error


def base_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a checkpoint, or of the GGUF file that a folder describes, each read when its turn comes.

    Raises:
        ModelError: a file is damaged, or holds more than weights.
    """
    if (folder / GGUF_LIST).exists():
        from app.models.gguf import open_gguf

        model = open_gguf(weight_files(folder)[0])
        yield from ((name, torch.from_numpy(values)) for name, values in model.weights())
        return
    for file in weight_files(folder):
        yield from read_tensors(file)


def load_stock(folder: Path, dtype: torch.dtype, **options: Any) -> Any:
    """The stock model of a checkpoint, or of the GGUF file that a folder describes; options as `from_pretrained`.

    Raises:
        ModelError: a file is damaged.
    """
    if not (folder / GGUF_LIST).exists():
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
    changed = {"rope_parameters": options.pop("rope_parameters")} if "rope_parameters" in options else {}
    config = transformers.AutoConfig.from_pretrained(folder, **changed)
    weights = {name: tensor.to(dtype) for name, tensor in base_tensors(folder)}
    kind = getattr(transformers, config.architectures[0])
    loaded = kind.from_pretrained(None, config=config, state_dict=weights, dtype=dtype, **options)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    model.name_or_path = model.config.name_or_path = str(weight_files(folder)[0])  # what an adapter names as its base
    return loaded


class AdapterWeights:
    """What an adapter makes of the weights of its base. LoRA as peft defines it: W + alpha / rank * B A.

    Attributes:
        rows: of its own embeddings, None when it has none.
        unties: the output embeddings of a tied base part from the input embeddings, see `head`.
    """

    def __init__(self, adapter: Adapter) -> None:
        """Reads the adapter's tensors; those of the base are given to `merged`, one at a time."""
        self.rows = adapter.rows
        self._folder, self._config = adapter.folder, adapter.config
        self._parts: dict[str, dict[str, Tensor]] = {}
        copied = False
        for file in adapter.files:
            for stored, tensor in read_tensors(file):
                name = base_name(stored)
                if name is None:
                    continue
                target, part = part_of(name) or (name, "")
                self._parts.setdefault(target, {})[part] = tensor
                if target == EMBEDDINGS and part != TOKEN_ROWS:
                    copied = file.name != TRAINABLE_FILE
        self.unties = HEAD in self._parts or (copied and not self._config.get("ensure_weight_tying"))

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """A weight of the base as the adapter has it: float32 where anything changes, else `weight` itself.

        Args:
            name: of the weight in the base.
            weight: any shape and dtype. The output embeddings grow to `rows` by the mean of what is there, as
                LongLoRA's scripts make room for a padding token.

        Raises:
            ModelError: the result holds values that are not numbers.
        """
        parts = self._parts.get(name, {})
        grows = name == HEAD and "" not in parts and self.rows is not None and self.rows > len(weight)
        if not parts and not grows:
            return weight
        made = parts[""].float() if "" in parts else weight.float()
        if grows:
            made = torch.cat([made, made.mean(0, keepdim=True).expand(self.rows - len(made), -1)])
        if TOKEN_ROWS in parts:
            made = made.index_copy(0, torch.tensor(self._token_ids(name)), parts[TOKEN_ROWS].float())
        if ".lora_A.weight" in parts:
            a, b = parts[".lora_A.weight"].float(), parts[".lora_B.weight"].float()  # [r, in], [out, r]
            made = made + (b @ a) * self._scale(name, len(a))
        if ".lora_embedding_A" in parts:
            a, b = parts[".lora_embedding_A"].float(), parts[".lora_embedding_B"].float()  # [r, V], [H, r]
            made = made + (b @ a).T * self._scale(name, len(a))
        if ".lora_magnitude_vector" in parts:  # DoRA: rows keep the direction, their lengths are trained
            made = made * (parts[".lora_magnitude_vector"].float() / made.norm(dim=1))[:, None]
        if not torch.isfinite(made).all():
            raise ModelError(
                f"{self._folder}: merged, {name} holds values that are not numbers; the adapter or its base is "
                "damaged, copy it again or take an earlier checkpoint of the run"
            )
        return made

    def head(self, embeddings: Tensor) -> Tensor | None:
        """Output embeddings of a base that has them tied, where the adapter parts the two; None while they stay tied.

        peft trains a copy of embeddings that it saves whole. Unless told to keep the tie, it leaves the base's in the
        head: the merged model must then hold both, or it would not be the model that was trained.

        Args:
            embeddings: [V, H] of the base.
        """
        if not self.unties:
            return None
        head = self.merged(HEAD, embeddings)
        return None if torch.equal(head.float(), self.merged(EMBEDDINGS, embeddings).float()) else head

    def _token_ids(self, name: str) -> list[int]:
        given = self._config.get("trainable_token_indices")
        if isinstance(given, dict):
            module = name.removesuffix(".weight")
            given = next((ids for key, ids in given.items() if module == key or module.endswith(f".{key}")), None)
        if not given:
            raise ModelError(f"{self._folder}: adapter_config.json does not say which token rows of {name} it holds")
        return given

    def _scale(self, name: str, rank: int) -> float:
        module, config = name.removesuffix(".weight"), self._config
        patterns = config.get("alpha_pattern") or {}
        alpha = next((patterns[key] for key in patterns if re.match(rf"(.*\.)?({key})$", module)), None)
        alpha = config.get("lora_alpha", 8) if alpha is None else alpha
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def merge_into(model: nn.Module, adapter: Adapter, dtype: torch.dtype) -> None:
    """Merge an adapter into a loaded model in float32, then cast its weights; rotary frequencies stay exact.

    Raises:
        ModelError: the result holds values that are not numbers.
    """
    weights = AdapterWeights(adapter)
    head = weights.head(model.get_input_embeddings().weight.data) if model.config.tie_word_embeddings else None
    if head is not None:
        model.lm_head.weight = nn.Parameter(head)
        model.config.tie_word_embeddings = False
    for name, parameter in model.named_parameters():
        parted = name == HEAD and head is not None
        parameter.data = (parameter.data if parted else weights.merged(name, parameter.data)).to(dtype)
