"""The tokenizer inside a GGUF file, written as tokenizer.json: the same ids as llama.cpp gives.

A GGUF file names the rule by which text is split before byte pairs are merged; the rules stand here, as the models'
own tokenizers have them. Vocabularies of SentencePiece carry scores instead of merges.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # kinds of tokens
MARKERS = ("bos", "eos", "eot", "unk", "pad")
KEYS = {"unk": ("unknown",), "pad": ("padding",)}  # where a marker's key is called otherwise

_CONTRACTIONS = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = rf"(?:{_CONTRACTIONS})|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"(?:{_CONTRACTIONS})|{_LETTERS}|\p{{N}}|{_REST}"
# llama.cpp's name of a rule -> the splits, one after the other.
SPLITS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "dbrx", "smaug-bpe"), (_LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2"), (_QWEN2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), (r"\p{N}", _GPT2)),
    **dict.fromkeys(("gpt-2", "olmo", "phi-2", "mpt"), (_GPT2,)),
    "tekken": (_TEKKEN,),
}
WHOLE_WORDS = ("llama3", "llama-v3", "llama-bpe", "falcon3", "tekken")  # a word in the vocabulary needs no merges
COMPOSED = ("qwen2",)  # whose own tokenizer composes characters first (NFC)


def marker_ids(metadata: Mapping[str, Any]) -> dict[str, int]:
    """Ids of the markers that a GGUF file names, by their short names."""
    found = {}
    for name in MARKERS:
        for key in (*KEYS.get(name, ()), name):
            id = metadata.get(f"tokenizer.ggml.{key}_token_id")
            if id is not None:
                found.setdefault(name, int(id))
    return found


def write(metadata: Mapping[str, Any], where: Path, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json and the chat template.

    Args:
        where: the GGUF file, for messages.

    Raises:
        ModelError: the tokenizer is of a kind, or has a rule, that is not known here.
    """
    kind = metadata.get("tokenizer.ggml.model")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if kind not in ("gpt2", "llama") or not tokens:
        raise ModelError(f"{where}: tokenizer {kind!r} is not supported; Lectern knows gpt2 (byte pairs) and llama")
    kinds = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    made = _byte_pairs(metadata, where, tokens) if kind == "gpt2" else _sentence_pieces(metadata, where, tokens, kinds)
    made.add_special_tokens(_added(tokens, kinds, (CONTROL, UNKNOWN), special=True))
    made.add_tokens(_added(tokens, kinds, (USER_DEFINED,), special=False))
    made.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1 << 30,
        **{f"{name}_token": tokens[id] for name, id in marker_ids(metadata).items() if name != "eot"},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    template = metadata.get("tokenizer.chat_template")
    if template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _added(tokens: Sequence[str], kinds: Sequence[int], wanted: tuple[int, ...], *, special: bool) -> list[Any]:
    from tokenizers import AddedToken

    return [
        AddedToken(token, special=special, normalized=False)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in wanted
    ]


def _byte_pairs(metadata: Mapping[str, Any], where: Path, tokens: Sequence[str]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    rule, merges = metadata.get("tokenizer.ggml.pre"), metadata.get("tokenizer.ggml.merges")
    if rule not in SPLITS:
        raise ModelError(f"{where}: splits its text by the rule {rule!r}; known are {', '.join(SPLITS)}")
    if not merges:
        raise ModelError(f"{where}: its tokenizer has no merges; convert the model again")
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=rule in WHOLE_WORDS))
    if rule in COMPOSED:
        made.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(split), behavior="isolated") for split in SPLITS[rule]]
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    return made


def _sentence_pieces(metadata: Mapping[str, Any], where: Path, tokens: Sequence[str], kinds: Sequence[int]) -> Any:
    """Byte pairs of SentencePiece: the pair that makes the piece of the highest score is merged first."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = metadata.get("tokenizer.ggml.scores")
    if not scores or len(scores) != len(tokens):
        raise ModelError(f"{where}: its tokenizer has no scores; convert the model again")
    ids = {token: id for id, token in enumerate(tokens)}
    pieces = [(scores[id], token) for token, id in ids.items() if kinds[id] in (NORMAL, USER_DEFINED)]
    merges = []
    for _, piece in sorted(pieces, key=lambda pair: -pair[0]):
        cuts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        merges += sorted(((a, b) for a, b in cuts if a in ids and b in ids), key=lambda p: (ids[p[0]], ids[p[1]]))
    unknown = marker_ids(metadata).get("unk")
    model = models.BPE(
        vocab=ids,
        merges=merges,
        byte_fallback=BYTE in kinds,
        fuse_unk=True,
        unk_token=None if unknown is None else tokens[unknown],
    )
    made = Tokenizer(model)
    blank, prefix = "▁", metadata.get("tokenizer.ggml.add_space_prefix", True)
    made.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend(blank)] if prefix else []), normalizers.Replace(" ", blank)]
    )
    steps = [decoders.Replace(blank, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return made
