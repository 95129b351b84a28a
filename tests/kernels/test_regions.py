import math

import pytest
import torch

from app.kernels.regions import (
    best_regions,
    group_votes,
    region_scores,
    region_scores_reference,
    sub_means,
    sub_means_reference,
)
from tests.kernels.paged import relative

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sub", [1, 4, 64])
@pytest.mark.parametrize("tokens", [1, 63, 100, 1000])
def test_sub_means_equal_a_loop(tokens, sub, dtype):
    x = random(2, tokens, 8, dtype=dtype)
    expected = torch.stack([x[:, i : i + sub].float().mean(1) for i in range(0, tokens, sub)], dim=1)
    means = sub_means(x, sub)
    assert means.dtype == torch.float32
    torch.testing.assert_close(means, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("tokens", "sub"), [(0, 4), (5, 0), (5, -1)])
def test_sub_means_of_nothing_are_refused(tokens, sub):
    with pytest.raises(ValueError, match=f"got {sub}, {tokens}"):
        sub_means(torch.zeros(1, tokens, 4), sub)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("regions", [1, 63, 100])
def test_region_scores_equal_a_loop(regions, dtype):
    queries, fine = random(2, 6, 8, dtype=dtype), random(2, regions, 4, 8, seed=1, dtype=dtype)
    scores = region_scores(queries, fine)
    assert scores.dtype == torch.float32 and scores.shape == (2, 6, regions)
    expected = torch.empty(2, 6, regions)
    for h in range(2):
        for i in range(6):
            for r in range(regions):
                expected[h, i, r] = max(float(queries[h, i].float() @ key.float()) for key in fine[h, r])
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(scores, expected, atol=tolerance, rtol=tolerance)


def naive_votes(scores, eligible, heads, per_region):
    """Step 4 of MSA-1 for one KV head, in plain numbers: {region: vote}."""
    votes = dict.fromkeys(eligible, 0.0)
    for rows in scores.reshape(heads, -1, scores.shape[-1]).tolist():
        for first in range(0, len(rows), per_region):
            best = dict.fromkeys(eligible, 0.0)
            for row in rows[first : first + per_region]:
                total = sum(math.exp(row[r]) for r in eligible)
                best = {r: max(best[r], math.exp(row[r]) / total) for r in eligible}
            votes = {r: votes[r] + best[r] for r in eligible}
    return votes


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("representatives", [1, 4, 5, 8])
def test_votes_equal_a_loop(representatives, heads):
    scores = 3 * random(2, heads * representatives, 12)
    eligible = [1, 2, 4, 5, 9]
    mask = torch.tensor([r in eligible for r in range(12)])
    votes = group_votes(scores, mask, heads, per_region=4)
    for h in range(2):
        expected = naive_votes(scores[h], eligible, heads, 4)
        torch.testing.assert_close(votes[h, eligible].exp(), torch.tensor([expected[r] for r in eligible]))
        assert (votes[h, ~mask] == float("-inf")).all()


def test_votes_without_an_eligible_region_are_no_numbers_to_fear():
    votes = group_votes(random(1, 4, 3), torch.zeros(3, dtype=torch.bool), 1, 4)
    assert (votes == float("-inf")).all()


def test_faint_votes_stay_ordered():
    scores = torch.tensor([[[300.0, 0.0, 100.0]]])
    votes = group_votes(scores, torch.ones(3, dtype=torch.bool), 1, 1)
    assert best_regions(votes, 2).tolist() == [[0, 2]]


def test_one_sharp_query_is_not_drowned():
    """Nine queries lean to region 0, one needs region 1: the largest vote counts, not the mean score."""
    scores = torch.tensor([[[1.0, 0.0, 0.9]] * 9 + [[0.0, 8.0, 0.0]]])
    votes = group_votes(scores, torch.ones(3, dtype=torch.bool), 1, 10)
    assert best_regions(votes, 1).tolist() == [[1]]


def test_best_regions_break_ties_to_the_later_and_keep_text_order():
    votes = torch.tensor([[1.0, 1.0, 0.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert best_regions(votes, 3).tolist() == [[1, 3, 4], [2, 3, 4]]
    assert best_regions(votes, 5).tolist() == best_regions(votes, 9).tolist() == [[0, 1, 2, 3, 4]] * 2
    inf = float("inf")
    assert best_regions(torch.tensor([[-inf, 0.0, -inf, -inf]]), 3).tolist() == [[1, 2, 3]]


# Figure 2 of MS-Attn: the picks of each query region, best first, itself (unscored) at the end.
FIGURE_2 = {5: [3, 4, 2, 5], 6: [5, 4, 2, 6], 7: [3, 5, 4, 7], 8: [5, 4, 7, 8]}


@pytest.mark.parametrize(("pair", "expected"), [((6, 8), [4, 5, 6, 8]), ((5, 7), [3, 4, 5, 7])])
def test_figure_2(pair, expected):
    """Own regions take two of four slots, the best of the union of the picks the others."""
    scores = torch.full((1, 2, 9), float("-inf"))
    for row, region in enumerate(pair):
        for rank, pick in enumerate(FIGURE_2[region][:-1]):
            scores[0, row, pick] = 3.0 - rank
    free = torch.tensor([r not in pair for r in range(9)])
    votes = group_votes(scores, free, heads=1, per_region=1)
    picked = best_regions(votes, 4 - len(pair))[0].tolist()
    assert sorted([*picked, *pair]) == expected


WORST = {torch.float32: 1e-5, torch.float16: 2e-3}


@pytest.mark.parametrize(
    "tokens, sub, dim, dtype",
    [(1, 4, 8, torch.float32), (63, 4, 40, torch.float32), (100, 16, 32, torch.float16), (130, 64, 130, torch.float32)],
)
def test_means_kernel(tokens, sub, dim, dtype, kernels):
    x = random(2, 1, tokens, dim, dtype=dtype).to(kernels)
    means = sub_means(x, sub)
    assert means.dtype == torch.float32
    assert relative(means, sub_means_reference(x.double(), sub).double()) <= 1e-5


@pytest.mark.parametrize(
    "queries, regions, means, dim, dtype",
    [(1, 1, 1, 32, torch.float32), (63, 5, 16, 40, torch.float16), (100, 13, 4, 64, torch.float32)]
    + [(7, 3, 130, 128, torch.float32), (65, 70, 3, 8, torch.float16)],
)
def test_scores_kernel(queries, regions, means, dim, dtype, kernels):
    q, fine = random(2, queries, dim, dtype=dtype), random(2, regions, means, dim, seed=1, dtype=dtype)
    scores = region_scores(q.to(kernels), fine.to(kernels))
    assert scores.dtype == torch.float32 and scores.shape == (2, queries, regions)
    exact = (q.double() @ fine.double().flatten(1, 2).transpose(1, 2)).unflatten(-1, (regions, means)).amax(-1)
    assert relative(scores, exact) <= WORST[dtype]


def test_what_needs_gradients_runs_the_references(kernels):
    x, y = (random(1, 12, 16, seed=seed).to(kernels).requires_grad_() for seed in range(2))
    score = region_scores(sub_means(x, 4), sub_means(y, 4).unflatten(1, (1, 3)))
    wanted = region_scores_reference(sub_means_reference(x, 4), sub_means_reference(y, 4).unflatten(1, (1, 3)))
    for mine, theirs in zip(*(torch.autograd.grad(z.sum(), (x, y)) for z in (score, wanted)), strict=True):
        assert torch.equal(mine, theirs) and mine.abs().sum() > 0


def test_scores_kernel_of_groups_over_the_same_keys(kernels):
    """Several groups of queries, one set of key means: the kernel read beyond the means of the first group."""
    generator = torch.Generator().manual_seed(4)
    q, fine = torch.randn(3, 2, 5, 8, generator=generator), torch.randn(2, 6, 4, 8, generator=generator)
    expected = region_scores_reference(q.double(), fine.double())
    torch.testing.assert_close(
        region_scores(q.to(kernels), fine.to(kernels)).cpu().double(), expected.double(), atol=1e-5, rtol=1e-5
    )
    one = fine[:1].expand(2, -1, -1, -1)  # the same for all heads, which is not the same for the other axes
    expected = region_scores_reference(q.double(), one.double())
    found = region_scores(q.to(kernels), fine[:1].to(kernels))
    torch.testing.assert_close(found.cpu().double(), expected.double(), atol=1e-5, rtol=1e-5)
