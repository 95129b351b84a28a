import math

import pytest
import torch

from app.errors import ConfigError
from app.kernels.h2o import (
    PEAK_DECAY,
    PRESETS,
    H2OOptions,
    attention_mass,
    attention_mass_reference,
    causal_mass,
    evict,
    heaviest,
    peaks,
    published,
    scores,
)
from tests.kernels.paged import relative


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


@pytest.mark.parametrize("tile", [1, 7, 64])
def test_exact_sums_tile_by_tile(tile):
    generator = torch.Generator().manual_seed(2)
    q, k = torch.randn(2, 30, 8, generator=generator), torch.randn(2, 41, 8, generator=generator)
    ends = torch.arange(12, 42)
    mask = torch.arange(41) < ends[:, None]
    torch.testing.assert_close(causal_mass(q, k, ends, 0.3, tile=tile), attention_mass(q, k, mask, 0.3))
    weights = torch.rand(30, generator=generator)
    rows = torch.stack([attention_mass(q[:, [i]], k, mask[[i]], 0.3) for i in range(30)])
    expected = (rows * weights[:, None, None]).sum(0)
    torch.testing.assert_close(causal_mass(q, k, ends, 0.3, weights=weights, tile=tile), expected)


def test_heaviest_keeps_sinks_and_recent_and_breaks_ties_late():
    worth = torch.tensor([[0.0, 5, 1, 1, 1, 9, 0, 0]])
    assert heaviest(worth, 5, sinks=1, recent=2).tolist() == [[0, 1, 5, 6, 7]]
    assert heaviest(worth, 3).tolist() == [[1, 4, 5]]
    assert heaviest(worth, 20).tolist() == [list(range(8))]
    with pytest.raises(ValueError, match="keep 2"):
        heaviest(worth, 2, sinks=1, recent=2)
    assert published(torch.tensor([9.0, 0, 3, 1, 0, 0]), heavy=2, recent=2).tolist() == [0, 2, 4, 5]


def test_mean_scores_do_not_favour_the_old():
    """Equal attention from every row: sums grow with age, means do not."""
    rows = torch.tensor([8.0, 4, 2, 1])
    assert scores(rows, rows, "sum").argmax() == 0
    assert scores(rows, rows, "mean").unique().numel() == 1


def test_a_peak_fades_with_every_token_and_is_weighed_by_the_value():
    """Half of a mass now is worth as much as the whole 138 tokens ago, and twice the value doubles it."""
    faded = round(math.log(2) / -math.log(PEAK_DECAY))
    assert faded == 138
    mass = torch.tensor([1.0, 0.5, 0.5, 0.0])
    found = peaks(mass, torch.tensor([1000, 1000 + faded, 1000 + faded + 2, 5]))
    assert found[0] == pytest.approx(float(found[1]), abs=0.01) and found[2] > found[0] and 0 < found[3] < found[0]
    values = torch.tensor([2.0, 1.0, 1.0, 1.0])
    worth = scores(found, torch.ones(4), "peak", values)
    assert float(worth[0] - worth[1]) == pytest.approx(math.log(2), abs=0.01)
    assert peaks(torch.tensor([0.3]), 4_000_000) < peaks(torch.tensor([0.301]), 4_000_000)  # float32 tells them apart


def test_evicts_in_blocks_within_the_budget():
    options = H2OOptions(sinks=1, recent=4, block=16)
    mass = torch.rand(2, 64, generator=torch.Generator().manual_seed(0))
    kept = evict(mass, torch.ones_like(mass), 64, 1, options)
    assert kept.shape == (2, 48) and kept[:, 0].tolist() == [0, 0] and kept[:, -4:].tolist() == [[60, 61, 62, 63]] * 2
    assert not torch.equal(kept[0], kept[1])
    assert evict(mass, torch.ones_like(mass), 80, 16, options).shape == (2, 64)


def test_presets_and_refusals():
    assert PRESETS["published"].window(100) == 50 and H2OOptions(score="decay", recent=2).window(100) == 16
    with pytest.raises(ConfigError, match="score = 'best'"):
        H2OOptions(score="best")
    with pytest.raises(ConfigError, match="block = 0"):
        H2OOptions(block=0)


WORST = {torch.float32: 1e-5, torch.float16: 2e-3}


@pytest.mark.parametrize(
    "rows, keys, dim, dtype",
    [
        (1, 1, 32, torch.float32),
        (33, 100, 64, torch.float32),
        (8, 63, 128, torch.float16),
        (100, 130, 48, torch.float32),
    ],
)
def test_kernel(rows, keys, dim, dtype, device, poisoned):
    from app.kernels.h2o_triton import column_sums

    generator = torch.Generator().manual_seed(rows)
    q, k = (torch.randn(2, 3, n, dim, generator=generator).to(dtype) for n in (rows, keys))
    ends = torch.randint(1, keys + 1, (rows,), generator=generator)
    weights = torch.rand(rows, generator=generator)
    seen, scale = torch.arange(keys) < ends[:, None], dim**-0.5
    on = [x.to(device) for x in (q, k)]
    for mask in (None, seen, seen.expand(2, 1, rows, keys), torch.stack([seen, torch.ones_like(seen)])[:, None]):
        exact = attention_mass_reference(q.double(), k.double(), mask, scale)
        found = column_sums(*on, scale, mask=None if mask is None else mask.to(device))
        assert found.dtype == torch.float32 and relative(found, exact) <= WORST[dtype]
    logits = (q.double() @ k.double().transpose(-1, -2) * scale).masked_fill(~seen, float("-inf"))
    exact = (logits.softmax(-1) * weights[:, None]).sum(-2)
    assert relative(column_sums(*on, scale, ends=ends.to(device), weights=weights.to(device)), exact) <= WORST[dtype]
    told = column_sums(*on, scale, mask=seen.to(device), lse=logits.logsumexp(-1).float().to(device))
    assert relative(told, logits.softmax(-1).sum(-2)) <= WORST[dtype]


def test_the_log_sum_exp_may_be_told():
    q, k = (torch.randn(n, 16, generator=torch.Generator().manual_seed(n)) for n in (5, 40))
    mask = torch.arange(40) < torch.tensor([3, 40, 8, 1, 22])[:, None]
    lse = (q @ k.T * 0.25).masked_fill(~mask, float("-inf")).logsumexp(-1)
    torch.testing.assert_close(attention_mass(q, k, mask, 0.25, lse=lse), attention_mass(q, k, mask, 0.25))
