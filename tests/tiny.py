"""A two-layer random model and a byte tokenizer: everything the runtime tests need, built in a moment."""

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from app.memory.config import AttentionConfig
from app.models.checkpoint import Recipe
from app.runtime.engine import Engine

MARKERS = ("<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SMALL = AttentionConfig(budget_tokens=64, region_tokens=8, merge=2, query_sub=2, key_sub=2, coarse_sub=4)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*MARKERS, *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(m, special=True, normalized=False) for m in MARKERS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        chat_template=TEMPLATE,
    )


def model(seed: int = 0, layers: int = 2) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=262,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def engine(
    attention: AttentionConfig = SMALL,
    *,
    policy: str = "keep-all",
    kv_dtype: torch.dtype = torch.float32,
    seed: int = 0,
    codec: str = "raw",
    hot_groups: int | None = None,
) -> Engine:
    """`hot_groups`: most groups of keys and values in RAM, fewer than settings would allow."""
    recipe = Recipe(attention=attention, trained_tokens=attention.budget_tokens)
    made = Engine(
        model(seed),
        byte_tokenizer(),
        recipe,
        policy=policy,
        name="tiny",
        weights=f"tiny-{seed}",
        kv_dtype=kv_dtype,
        codec=codec,
    )
    for pool in (*made.shape.tiers.hot, *made.shape.tiers.packed):
        pool.limit = hot_groups
    made.segment_tokens = made.most_segment_tokens = 4 * attention.group_tokens
    return made


def token_ids(count: int, seed: int = 0) -> list[int]:
    """BOS and random bytes."""
    generator = torch.Generator().manual_seed(seed)
    return [1, *torch.randint(6, 262, (count - 1,), generator=generator).tolist()]
