"""A start that can already look back.

Copying what followed an earlier occurrence takes two heads that need each other (an induction circuit), and a small
model finds them only after millions of tokens. Here they are laid down before training, which refines them: layer 0
writes into each token what stood before it; layer 1 looks for a token that had the current one before it and copies it.
"""

import math

import torch
from torch import Tensor

from app.errors import ConfigError

TOKEN_STD = 0.0625  # of embeddings: as large against what the layers add as a trained model's
CONSTANT = 0.5  # first coordinate of every embedding: what position alone is computed from
PREVIOUS_PAIRS = 6  # fastest rotary pairs, which tell neighbours apart
PREVIOUS_SHARPNESS = 4.0  # logits per pair
MATCH_LOGIT = 20.0
WRITE, COPY = 1.0, 6.0


@torch.no_grad()
def lay_down_induction(model, generator: torch.Generator) -> None:
    """Initialise a fresh Llama of at least two layers in place.

    Args:
        model: LlamaForCausalLM of at least two layers, hidden size at least 3 D, head dimension D at least 16.

    Raises:
        ConfigError: the model is too small for it.
    """
    config = model.config
    hidden, dim = config.hidden_size, config.hidden_size // config.num_attention_heads
    if config.num_hidden_layers < 2 or hidden < 3 * dim or dim < 16:
        raise ConfigError(
            f"induction = true needs 2 layers, 3 heads and a head dimension of 16; the recipe has "
            f"{config.num_hidden_layers} layers, {config.num_attention_heads} heads of {dim}. Set induction = false"
        )
    heads = config.num_attention_heads // config.num_key_value_heads
    embedding = model.model.embed_tokens.weight
    embedding.normal_(0, TOKEN_STD, generator=generator)
    embedding[:, 0] = CONSTANT
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for matrix in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            matrix.weight.normal_(0, 0.03, generator=generator)
        for matrix in (attention.o_proj, mlp.down_proj):
            matrix.weight.normal_(0, 0.005, generator=generator)
    basis = torch.linalg.qr(torch.randn(hidden - 1, hidden - 1, generator=generator))[0]
    basis = torch.cat([torch.zeros(hidden - 1, 1), basis], dim=1)  # rows are orthonormal and leave the constant out
    seen, noted = basis[:dim], basis[dim : 2 * dim]  # directions read from a token, and written for its successor
    norm = math.sqrt(hidden / ((hidden - 1) * TOKEN_STD**2 + CONSTANT**2))  # RMSNorm's factor on an embedding
    constant = CONSTANT * norm
    _previous_token_head(model, seen, noted, constant)
    token_length = norm * TOKEN_STD * math.sqrt(dim / 2)  # of a token seen through half of `seen`
    for kv_head in range(config.num_key_value_heads):
        copied = basis[(2 + kv_head) * dim % (hidden - dim) :][:dim]
        _matching_head(model, kv_head, kv_head * heads, seen, noted, copied, token_length)


def _previous_token_head(model, seen: Tensor, noted: Tensor, constant: float) -> None:
    """Layer 0, head 0: attend to the token before, and write what it was into `noted`."""
    attention, dim = model.model.layers[0].self_attn, seen.shape[0]
    half = dim // 2
    angle = model.model.rotary_emb.inv_freq[:PREVIOUS_PAIRS].float()
    scale = math.sqrt(PREVIOUS_SHARPNESS * math.sqrt(dim)) / constant
    key, query = torch.zeros(dim), torch.zeros(dim)
    key[:PREVIOUS_PAIRS] = scale
    query[:PREVIOUS_PAIRS] = scale * angle.cos()  # the key turned back by one place
    query[half : half + PREVIOUS_PAIRS] = -scale * angle.sin()
    attention.k_proj.weight[:dim] = 0
    attention.q_proj.weight[:dim] = 0
    attention.k_proj.weight[:dim, 0] = key
    attention.q_proj.weight[:dim, 0] = query
    attention.v_proj.weight[:dim] = seen
    attention.o_proj.weight[:, :dim] = WRITE * TOKEN_STD * noted.T


def _matching_head(
    model, kv_head: int, head: int, seen: Tensor, noted: Tensor, copied: Tensor, token_length: float
) -> None:
    """Layer 1: attend where `noted` names the current token, and copy the token there through `copied`."""
    attention, dim = model.model.layers[1].self_attn, seen.shape[0]
    quarter, half = dim // 4, dim // 2
    slow = torch.cat([torch.arange(quarter, half), torch.arange(half + quarter, dim)])  # slow pairs survive distance
    scale = math.sqrt(MATCH_LOGIT * math.sqrt(dim)) / token_length
    keys, queries = slice(kv_head * dim, (kv_head + 1) * dim), slice(head * dim, (head + 1) * dim)
    attention.k_proj.weight[keys] = 0
    attention.q_proj.weight[queries] = 0
    attention.k_proj.weight[kv_head * dim + slow] = scale * noted[:half]
    attention.q_proj.weight[head * dim + slow] = scale * seen[:half]
    attention.v_proj.weight[keys] = copied
    attention.o_proj.weight[:, queries] = COPY * TOKEN_STD * copied.T
