"""Small GGUF files of every shape that Lectern takes, written with the package gguf."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from app.models.gguf import GLOBAL, LAYER, ROPE_FACTORS
from app.models.gguf_tokenizer import BYTE, CONTROL, NORMAL, SPLITS, UNKNOWN
from tests import tiny

TEXTS = [
    "Who saw the sea in 1904?",
    "def f(x):\n\treturn  x  # 12",
    "| 1 | 22 |\n\n\n",
    "the sea, the light, the sea",
] * 9
CLASSES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
BLOCKS = {"Q4_K": (2, 2), "Q5_K": (2, 2), "Q6_K": (1, 0)}  # float16 scales in a block, and where; others are written


def model(arch: str = "llama", hidden: int = 32, vocab: int = 300, **changes: Any) -> torch.nn.Module:
    """A random model of one architecture, with queries wider than the hidden states for Qwen3."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{CLASSES[arch]}Config")(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 2 if arch == "qwen3" else hidden // 4,
        max_position_embeddings=1024,
        initializer_range=0.2,
        **changes,
    )
    made = getattr(transformers, f"{CLASSES[arch]}ForCausalLM")(config).eval()
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return made


def byte_pairs(rule: str, size: int = 300) -> dict[str, Any]:
    """Metadata of a byte-pair vocabulary that is split by a rule of llama.cpp's."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    tokens = [made.id_to_token(id) for id in range(made.get_vocab_size())]
    import json

    merges = [" ".join(pair) for pair in json.loads(made.to_str())["model"]["merges"]]
    assert rule in SPLITS and len(tokens) == size
    return {
        "model": "gpt2", "pre": rule, "tokens": tokens, "merges": merges,
        "kinds": [CONTROL] * 3 + [NORMAL] * (size - 3), "bos": 1, "eos": 2, "unk": 0,
    }  # fmt: skip


def sentence_pieces(size: int = 300) -> dict[str, Any]:
    """Metadata of a vocabulary of SentencePiece: scores, bytes, a blank before each text."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    made.train_from_iterator(["▁" + text.replace(" ", "▁") for text in TEXTS], trainer)
    tokens = [made.id_to_token(id) for id in range(made.get_vocab_size())]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (size - 259)]
    scores = [0.0] * 259 + [-float(i) for i in range(size - 259)]
    return {
        "model": "llama", "pre": "default", "tokens": tokens, "scores": scores, "kinds": kinds,
        "bos": 1, "eos": 2, "unk": 0,
    }  # fmt: skip


def write(
    path: Path,
    made: torch.nn.Module,
    words: dict[str, Any] | None = None,
    *,
    arch: str = "",
    kind: str = "F32",
    metadata: dict[str, Any] | None = None,
    without: tuple[str, ...] = (),
    rope_factors: np.ndarray | None = None,
    parts: int = 1,
) -> Path:
    """Write a model; returns the file, of several the first.

    Args:
        kind: quantization of the matrices.
        metadata: more of it, later ones win.
        without: tensors that are left out, by their names in the file.
    """
    config = made.config
    arch = arch or config.model_type
    extra = {"split_max_tensors": -(-27 // parts)} if parts > 1 else {}
    writer = gguf.GGUFWriter(path, arch, **extra)
    facts = {
        "block_count": config.num_hidden_layers, "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim if hasattr(config, "head_dim") else None,
        "rope.dimension_count": getattr(config, "head_dim", None),
    }  # fmt: skip
    for key, value in facts.items():
        if value is not None:
            writer.add_uint32(f"{arch}.{key}", value)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32(f"{arch}.rope.freq_base", config.rope_parameters["rope_theta"])
    for key, value in (metadata or {}).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](key, value)
    _write_words(writer, words or byte_pairs("smollm"))
    names = {v: k for k, v in GLOBAL.items()} | {v: k for k, v in LAYER.items()}
    for name, tensor in made.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        _, _, rest = name.partition("model.layers.")
        number, _, module = rest.rpartition(".")[0].partition(".")
        place = f"blk.{number}.{names[module]}" if rest else names[name.removesuffix(".weight")]
        place += "." + name.rpartition(".")[2]
        if place in without:
            continue
        values = tensor.float().numpy()
        if arch == "llama" and module in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = config.num_attention_heads if "q_proj" in module else config.num_key_value_heads
            values = values.reshape(heads, 2, len(values) // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)
        _add(writer, place, np.ascontiguousarray(values), kind if values.ndim > 1 else "F32")
    if rope_factors is not None:
        writer.add_tensor(ROPE_FACTORS, rope_factors.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if parts == 1 else path.with_name(f"{path.stem}-00001-of-{parts:05}.gguf")


def _add(writer: Any, place: str, values: np.ndarray, kind: str) -> None:
    known = gguf.GGMLQuantizationType[kind]
    if kind in BLOCKS:  # gguf only reads these: random blocks with small scales
        block, size = gguf.GGML_QUANT_SIZES[known]
        raw = np.random.default_rng(1).integers(0, 256, (values.size // block, size), np.uint8)
        count, start = BLOCKS[kind]
        at = 0 if start else size - 2 * count
        raw[:, at : at + 2 * count] = np.full((len(raw), count), 0.01, np.float16).view(np.uint8)
        writer.add_tensor(place, raw.reshape(len(values), -1), raw_dtype=known)
    elif kind == "F16":
        writer.add_tensor(place, values.astype(np.float16))
    elif kind == "F32":
        writer.add_tensor(place, values)
    else:
        writer.add_tensor(place, gguf.quants.quantize(values, known), raw_dtype=known)


def _write_words(writer: Any, words: dict[str, Any]) -> None:
    writer.add_tokenizer_model(words["model"])
    writer.add_tokenizer_pre(words["pre"])
    writer.add_token_list(words["tokens"])
    writer.add_token_types(words["kinds"])
    if "merges" in words:
        writer.add_token_merges(words["merges"])
    if "scores" in words:
        writer.add_token_scores(words["scores"])
    writer.add_bos_token_id(words["bos"])
    writer.add_eos_token_id(words["eos"])
    writer.add_unk_token_id(words["unk"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(words.get("template", tiny.TEMPLATE.replace("<|end|>", "<|im_end|>")))
