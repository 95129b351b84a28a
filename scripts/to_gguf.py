"""Write a Llama checkpoint with a tokenizer of ours as GGUF: `python scripts/to_gguf.py MODEL OUT.gguf --check`.

For models/lectern-small, what `train` makes from nothing, lectern-reader, and what `merge` makes of their tunes. Other
tokenizers and architectures are the business of llama.cpp's own converter, which reads what `merge` writes.

Needs the package gguf; --check needs xllamacpp too, llama.cpp in a wheel of 33 MB: `pip install gguf xllamacpp`. It
compares with stock transformers in float32: the ids of 20 texts, and what follows 10 prompts greedily. A place where
the two likeliest tokens are closer than rounding is no difference.
"""

import argparse
import os
import sys
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app.errors import LecternError, ModelError  # noqa: E402
from app.models.adapter import EMBEDDINGS, HEAD  # noqa: E402
from app.models.files import expected_shapes, heads_of, read_json  # noqa: E402
from app.models.folder import read_config, stored_weights, weight_files  # noqa: E402
from app.models.merging import read_tensors  # noqa: E402
from app.models.rope import stated_rope  # noqa: E402
from app.train.pretrain.tokenizer import SPLIT  # noqa: E402
from scripts.llama_cpp import LlamaCpp  # noqa: E402

SMOLLM = (
    r"\p{N}",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
)
SPLITS = {
    (SPLIT,): "qwen2",
    SMOLLM: "smollm",
}  # split rules, ours and that of lectern-reader's base, as llama.cpp names them
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GLOBAL = {EMBEDDINGS: "token_embd.weight", "model.norm.weight": "output_norm.weight", HEAD: "output.weight"}
NEW_TOKENS = 64
NEAR = 1e-3  # of logits: closer than this, rounding decides


def main() -> int:
    args = arguments()
    try:
        convert(args.model, args.out, args.dtype)
        print(f"{args.out}: {args.out.stat().st_size:,} bytes")
        return check(args.model, args.out) if args.check else 0
    except (LecternError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a checkpoint")
    parser.add_argument("out", type=Path, help="GGUF file to write")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="of matrices")
    parser.add_argument("--check", action="store_true", help="compare ids and greedy text with llama.cpp's")
    return parser.parse_args()


def convert(folder: Path, out: Path, dtype: str = "float32", context: int | None = None) -> None:
    """Write the GGUF file, whole or not at all.

    Args:
        dtype: of matrices; norms are float32 in any case.
        context: length to state, beyond which llama.cpp's server reads nothing; None means what config.json states.

    Raises:
        ModelError: architecture, positions or tokenizer are not ours.
    """
    import gguf

    config = read_config(folder)
    if config["model_type"] != "llama":
        raise ModelError(f"{folder}: is a {config['model_type']}; take llama.cpp's convert_hf_to_gguf.py for it")
    missing = set(expected_shapes(config)) - set(stored_weights(folder))
    if missing:
        raise ModelError(f"{folder}: lacks {sorted(missing)[0]}; see `launch.py inspect`")
    new = out.with_name(f".{out.name}.new")
    writer = gguf.GGUFWriter(new, "llama")
    try:
        _write_facts(writer, config | ({"max_position_embeddings": context} if context else {}), dtype)
        _write_tokenizer(writer, folder, config["vocab_size"])
        _write_weights(writer, folder, config, dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(new, out)
    finally:
        new.unlink(missing_ok=True)


def _write_facts(writer: Any, config: dict[str, Any], dtype: str) -> None:
    import gguf

    heads, kv_heads, size = heads_of(config)
    rope = stated_rope(config)
    if rope["rope_type"] not in ("default", "linear"):
        raise ModelError(
            f"positions of type {rope['rope_type']}: take llama.cpp's convert_hf_to_gguf.py for this model"
        )
    types = gguf.LlamaFileType
    kinds = {"float32": types.ALL_F32, "float16": types.MOSTLY_F16, "bfloat16": types.MOSTLY_BF16}
    writer.add_file_type(kinds[dtype])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _write_tokenizer(writer: Any, folder: Path, rows: int) -> None:
    """Byte-level BPE: ids, kinds, merges, the name of the split rule, and which ids are markers."""
    from gguf import TokenType
    from transformers import AutoTokenizer

    stated = read_json(folder / "tokenizer.json")
    try:
        steps = stated["pre_tokenizer"]["pretokenizers"]
        rule = SPLITS[tuple(step["pattern"]["Regex"] for step in steps if step["type"] == "Split")]
    except (KeyError, TypeError, IndexError) as error:
        raise ModelError(
            f"{folder}: its tokenizer is not one of ours; take llama.cpp's convert_hf_to_gguf.py for this model"
        ) from error
    added = {token["id"]: token for token in stated["added_tokens"]}
    tokens = {id: token for token, id in stated["model"]["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    kinds = [
        TokenType.UNUSED if id not in tokens else TokenType.NORMAL if id not in added
        else TokenType.CONTROL if added[id]["special"] else TokenType.USER_DEFINED
        for id in range(rows)
    ]  # fmt: skip
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in stated["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list([tokens.get(id, f"[PAD{id}]") for id in range(rows)])
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for id, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
        if id is not None:
            add(id)
    writer.add_add_bos_token(False)  # as the tokenizer itself; the chat template has none either
    writer.add_add_eos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _write_weights(writer: Any, folder: Path, config: dict[str, Any], dtype: str) -> None:
    import gguf

    heads, kv_heads, _ = heads_of(config)
    turned = {"self_attn.q_proj": heads, "self_attn.k_proj": kv_heads}
    kinds = gguf.GGMLQuantizationType
    for file in weight_files(folder):
        for name, tensor in read_tensors(file):
            if name.endswith("rotary_emb.inv_freq") or (name == HEAD and config.get("tie_word_embeddings")):
                continue
            values = tensor.float().numpy()
            _, _, rest = name.partition("model.layers.")
            number, _, module = rest.removesuffix(".weight").partition(".")
            if module in turned:
                values = interleaved(values, turned[module])
            place = GLOBAL.get(name) or f"blk.{number}.{NAMES[module]}.weight"
            if values.ndim > 1 and dtype == "float16":
                values = values.astype(np.float16)
            if values.ndim > 1 and dtype == "bfloat16":
                raw = gguf.quants.quantize(values, kinds.BF16)
                writer.add_tensor(place, raw, raw_dtype=kinds.BF16)
            else:
                writer.add_tensor(place, np.ascontiguousarray(values))


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys as llama.cpp rotates them: pairs side by side, not half a head apart.

    Args:
        weight: [heads * D, hidden].
    """
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


# --- the comparison with llama.cpp

SAMPLES = (ROOT / "samples", ROOT / "tests" / "data")
ODD_TEXTS = (
    "It's 12,345.678 or 2026-11-20; I'LL say we've 007 o'clocks, they're 99% sure.",
    "def f(x):\n\tif x >= 10:\r\n        return {'a': [1, 2.5e-3]}  # 25 degrees\n\n\n",
    "Grüße, naïve café, Привет мир, 你好世界, こんにちは, مرحبا, 😀👍🏽, ½ ² ③ ٣",
    "   three spaces,\ttab\n\n  \n and trailing   ",
    "<|user|>What is the value of amber?<|assistant|>12345<|end|>",
    "'S 'T 'Re 'vE ''s x's\u2019s don\u2019t",
)


def pieces(count: int) -> list[str]:
    """Pieces of the sample book, 400 characters each."""
    book = next(path for folder in SAMPLES for path in sorted(folder.glob("*.txt"))).read_text(encoding="utf-8")
    step = len(book) // (count + 1)
    return [book[i * step : i * step + 400] for i in range(count)]


def texts() -> list[str]:
    """20 texts: odd ones, and pieces of the sample book."""
    return [*ODD_TEXTS, *pieces(20 - len(ODD_TEXTS))]


def prompts() -> list[str]:
    """10 prompts: texts to go on with, and questions about a number in them, as the app asks them."""
    told = [f"{piece}\nThe value of amber{i} is {10007 * (i + 2)}.\n{piece}" for i, piece in enumerate(pieces(4))]
    asked = [f"{t}<|user|>What is the value of amber{i}?<|assistant|>" for i, t in enumerate(told)]
    return [f"<|bos|>{text}" for text in [*pieces(6), *asked]]


def check(folder: Path, path: Path) -> int:
    """Compare ids and greedy text with stock transformers in float32; prints what differs.

    Returns:
        0 when all is equal, else 1.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    other, all_texts = LlamaCpp(path), texts()
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in all_texts]
    wrong = [text for text, mine in zip(all_texts, ids, strict=True) if other.encode(text) != mine]
    for text in wrong:
        print(f"other ids for {text!r}:\n  {tokenizer(text)['input_ids']}\n  {other.encode(text)}")
    print(f"ids: {len(all_texts) - len(wrong)} of {len(all_texts)} texts equal, {sum(map(len, ids)):,} tokens")
    equal = 0
    for prompt in prompts():
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        mine, gaps = greedy(model, prompt_ids, tokenizer.eos_token_id)
        theirs = other.go_on(prompt_ids, NEW_TOKENS)
        first = next((i for i, pair in enumerate(zip_longest(mine, theirs)) if pair[0] != pair[1]), None)
        equal += first is None or gaps[first] < NEAR
        if first is not None:
            print(
                f"after {prompt[-40:]!r} token {first} is another, where the two likeliest are {gaps[first]:.1e} apart:"
            )
            print(f"  {tokenizer.decode(mine)!r}\n  {tokenizer.decode(theirs)!r}")
    print(f"greedy text: {equal} of 10 prompts equal, up to {NEW_TOKENS} tokens each")
    return 0 if not wrong and equal == 10 else 1


def greedy(model: Any, ids: list[int], end: int) -> tuple[list[int], list[float]]:
    """What follows greedily, to the end marker, and by how much each likeliest token led the second."""
    import torch

    made, gaps, cache, fresh = [], [], None, torch.tensor([ids])
    with torch.inference_mode():
        for _ in range(NEW_TOKENS):
            answer = model(fresh, past_key_values=cache, use_cache=True)
            best = answer.logits[0, -1].topk(2)
            gaps.append(float(best.values[0] - best.values[1]))
            made.append(int(best.indices[0]))
            if made[-1] == end:
                break
            cache, fresh = answer.past_key_values, best.indices[None, :1]
    return made, gaps


if __name__ == "__main__":
    sys.exit(main())
