"""int8 codes of key means: what they score, against the means themselves."""

import pytest
import torch

from app.kernels import codes
from app.kernels.codes import Basis, TextCodes
from app.kernels.layout import BLOCK
from app.kernels.regions import region_scores


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("axes", [8, 33, 128])
@pytest.mark.parametrize("rows", [1, 5])
def test_products_are_exact_whole_numbers_on_either_path(axes, rows):
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randint(-127, 128, (n, axes), dtype=torch.int8, generator=generator) for n in (rows, 1000))
    wanted = q.long() @ k.long().T
    assert torch.equal(codes.products(q, k).long(), wanted)
    assert torch.equal(codes.products_reference(q, k).long(), wanted)


def filled(means, basis, pieces):
    """Text codes of means [Hkv, R, F, D], put in pieces that end at these regions."""
    held = TextCodes.room(means.shape[1], means.shape[0], means.shape[2], basis.axes.shape[-1], means.device)
    first = 0
    for end in pieces:
        held.put(first, basis.of_keys(means[:, first:end].flatten(1, 2)).unflatten(1, (-1, means.shape[2])))
        first = end
    return held


@pytest.mark.parametrize("stop", [1, 100, BLOCK, BLOCK + 1, 700])
def test_a_scan_is_near_the_scores_by_the_means(stop):
    means, queries = random(2, 700, 4, 32), random(2, 3, 32, seed=1)
    basis = Basis.of(means.flatten(1, 2)[:, :300])
    turned, shift = basis.of_queries(queries)
    found = filled(means, basis, [100, BLOCK, 2 * BLOCK, 700]).scan(turned, stop) + shift[..., None]
    exact = region_scores(queries, means[:, :stop])
    assert found.shape == exact.shape
    torch.testing.assert_close(found, exact, atol=0.02 * float(exact.abs().max()), rtol=0)


def test_half_the_axes_suffice_for_keys_in_a_plane():
    """And none of 32 are left out: real keys need no more than half of theirs, random ones need all."""
    plane = random(2, 40, 128)
    means = (random(2, 900 * 4, 40, seed=1) @ plane + 30).unflatten(1, (-1, 4))
    queries = random(2, 3, 128, seed=2)
    basis = Basis.of(means.flatten(1, 2)[:, :300])
    assert basis.axes.shape == (2, 128, 64) and Basis.of(random(1, 50, 40)).axes.shape == (1, 40, 32)
    turned, shift = basis.of_queries(queries)
    found = filled(means, basis, [BLOCK, 2 * BLOCK, 3 * BLOCK, 900]).scan(turned, 900) + shift[..., None]
    exact = region_scores(queries, means)
    spread = float((exact - exact.mean(-1, keepdim=True)).abs().max())
    torch.testing.assert_close(found, exact, atol=0.02 * spread, rtol=0)


@pytest.mark.parametrize("queries, axes, stop", [(1, 32, 600), (4, 40, 1), (4, 40, 300), (8, 64, 63)])
def test_kernel_finds_the_very_same_scores(stop, queries, axes, device, poisoned):
    from app.kernels.codes_triton import scan

    text = TextCodes.room(600, 2, 4, axes, torch.device("cpu"))
    text.codes.fill_(127)  # beyond the end anything may lie
    text.scales.fill_(float("nan"))
    for first, end in ((0, BLOCK), (BLOCK, 2 * BLOCK), (2 * BLOCK, 600)):
        text.put(first, random(2, end - first, 4, axes, seed=first))
    asked, units = codes.encode_queries(random(2, queries, axes, seed=1))
    found = scan(*(x.to(device) for x in (asked, units, *text.tensors())), stop)
    assert torch.equal(found.cpu(), text.scan_reference(asked, units, stop))
