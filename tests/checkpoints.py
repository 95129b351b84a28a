"""Small checkpoints and adapters on the disk, and how to damage them."""

import json
import shutil

import peft
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests import tiny

SIZES = {
    "vocab_size": 262,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def save(folder, config, *, shard_size="1GB"):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size=shard_size)
    tiny.byte_tokenizer().save_pretrained(folder)
    return folder


def adapter(folder, base, **changes):
    """A LoRA adapter that changes something, of the model in `base`."""
    torch.manual_seed(1)
    wanted = {"r": 4, "target_modules": ["q_proj", "k_proj", "o_proj"], "task_type": "CAUSAL_LM", **changes}
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(**wanted))
    for name, parameter in model.named_parameters():
        trained = ("lora_B", "lora_embedding_B", "modules_to_save", "trainable_tokens_delta", ".bias")
        still = parameter.requires_grad and not parameter.any()  # such as A of MiCA
        if still or (parameter.requires_grad and any(part in name for part in trained)):
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return folder


def longlora(folder, made):
    """The adapter in `made` as LongLoRA's scripts leave it: pickled, embeddings and norms in a file of their own."""
    folder.mkdir()
    tensors = load_file(made / "adapter_model.safetensors")
    torch.save({name: w for name, w in tensors.items() if ".lora_" in name}, folder / "adapter_model.bin")
    rest = {name.removeprefix("base_model.model."): w for name, w in tensors.items() if ".lora_" not in name}
    torch.save(rest, folder / "trainable_params.bin")
    shutil.copy(made / "adapter_config.json", folder)
    rewrite(folder / "adapter_config.json", modules_to_save=None)
    return folder


def rewrite(file, **changes):
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**values, **changes}))


def cut(file, share):
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
