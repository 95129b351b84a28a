import math

import pytest
import torch

from app.kernels.h2o import attention_mass


def naive(queries, keys, seen, scale):
    """Column sums of softmax rows, number by number."""
    mass = [0.0] * len(keys)
    for i, q in enumerate(queries):
        logits = {j: float(q @ k) * scale for j, k in enumerate(keys) if seen[i][j]}
        total = sum(math.exp(x) for x in logits.values())
        for j, logit in logits.items():
            mass[j] += math.exp(logit) / total
    return torch.tensor(mass)


@pytest.mark.parametrize("keys", [1, 63, 100, 1000])
def test_equals_sums_of_rows(keys):
    generator = torch.Generator().manual_seed(keys)
    q, k = torch.randn(5, 8, generator=generator), torch.randn(keys, 8, generator=generator)
    mask = torch.arange(keys) <= torch.arange(keys - 5, keys).clamp(min=0)[:, None]
    torch.testing.assert_close(attention_mass(q, k, mask, 0.3), naive(q, k, mask, 0.3), atol=1e-5, rtol=1e-4)
    everything = torch.ones_like(mask)
    torch.testing.assert_close(attention_mass(q, k, None, 0.3), naive(q, k, everything, 0.3), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sums_in_float32(dtype):
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 3, 600, 8, generator=generator), torch.randn(2, 3, 100, 8, generator=generator)
    mass = attention_mass(q.to(dtype), k.to(dtype), None, 0.3)
    assert mass.dtype == torch.float32 and mass.shape == (2, 3, 100)
    torch.testing.assert_close(mass.sum(-1), torch.full((2, 3), 600.0), atol=0.01, rtol=0)
    torch.testing.assert_close(mass, attention_mass(q, k, None, 0.3), atol=0.1, rtol=0.02)


def test_masked_keys_receive_nothing():
    q, k = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([True, False, True, False]).expand(4, 4)
    mass = attention_mass(q, k, mask, 1.0)
    assert mass[1] == mass[3] == 0
    torch.testing.assert_close(mass.sum(), torch.tensor(4.0))
