import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from app.kernels.rope import rope_table, rotate

DIM = 16
INV_FREQ = 10_000.0 ** -(torch.arange(0, DIM, 2) / DIM)


def turned(x, position, scaling=1.0):
    """One vector, pair by pair: (x[i], x[i + D/2]) turns by position x frequency i."""
    half = len(x) // 2
    out = [0.0] * len(x)
    for i in range(half):
        angle = position * float(INV_FREQ[i].double())
        c, s = math.cos(angle) * scaling, math.sin(angle) * scaling
        out[i] = float(x[i]) * c - float(x[i + half]) * s
        out[i + half] = float(x[i + half]) * c + float(x[i]) * s
    return torch.tensor(out)


@pytest.mark.parametrize("tokens", [1, 63, 100, 1000])
def test_equals_pair_by_pair_turning(tokens):
    x = torch.randn(tokens, DIM, generator=torch.Generator().manual_seed(tokens))
    cos, sin = rope_table(INV_FREQ, tokens, 1.25, torch.float32)
    expected = torch.stack([turned(row, t, 1.25) for t, row in enumerate(x)])
    torch.testing.assert_close(rotate(x, cos, sin), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_equals_transformers(dtype):
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=128)
    rotary = LlamaRotaryEmbedding(config)
    x = torch.randn(1, 4, 100, DIM, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected, _ = apply_rotary_pos_emb(x, x, *rotary(x, torch.arange(100)[None]))
    cos, sin = rope_table(rotary.inv_freq, 100, rotary.attention_scaling, dtype)
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    assert rotate(x, cos, sin).dtype == dtype
    torch.testing.assert_close(rotate(x, cos, sin), expected, atol=tolerance, rtol=tolerance)


def test_far_positions_are_exact():
    """In float32 the angle of position one million is off by 0.03."""
    cos, sin = rope_table(INV_FREQ, 1_000_001, 1.0, torch.float32)
    expected = turned(torch.ones(DIM), 1_000_000)
    torch.testing.assert_close(rotate(torch.ones(DIM), cos[-1], sin[-1]), expected, atol=1e-5, rtol=0)


def test_only_distances_matter():
    q, k = torch.randn(2, DIM, generator=torch.Generator().manual_seed(1))
    cos, sin = rope_table(INV_FREQ, 500, 1.0, torch.float32)
    near = rotate(q, cos[40], sin[40]) @ rotate(k, cos[7], sin[7])
    far = rotate(q, cos[440], sin[440]) @ rotate(k, cos[407], sin[407])
    torch.testing.assert_close(near, far, atol=1e-4, rtol=1e-4)
