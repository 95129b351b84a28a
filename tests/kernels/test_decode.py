"""One query over regions in pages: the reference by definition, and the kernel against it in float64."""

from dataclasses import replace

import pytest
import torch

from app.kernels.decode import decode_attention, decode_reference
from app.kernels.layout import UNTURNED, Places
from app.kernels.rope import rotate
from tests.kernels.paged import Query, relative

WORST = {torch.float32: 1e-5, torch.float16: 2e-3}
SHAPES = [  # KV heads, query heads of each, D, tokens of a region, regions
    (2, 1, 32, 24, 5),
    (2, 2, 64, 63, 3),
    (1, 4, 128, 24, 9),
    (3, 8, 64, 8, 1),
    (1, 8, 32, 100, 3),
    (2, 3, 40, 16, 4),
]


def wanted(query):
    """Token by token, in float64: (out, lse, mass)."""
    (kv_heads, heads, dim), pages, places = query.q.shape, query.pages, query.places
    cos, sin = query.rope
    out, lse = torch.zeros_like(query.q), torch.zeros(kv_heads, heads, dtype=torch.float64)
    mass = torch.zeros(*places.lengths.shape, pages.region_tokens, dtype=torch.float64)
    flat = pages.data.view(-1)
    for g in range(kv_heads):
        keys, values, where = [], [], []
        asked = rotate(query.q[g], cos[places.query[g]], sin[places.query[g]])
        for r, length in enumerate(places.lengths[g].tolist()):
            for t in range(length):
                at = t * dim
                k, v = (flat[o[g, r] + at : o[g, r] + at + dim] for o in (pages.keys, pages.values))
                start = int(places.starts[g, r])
                keys.append(k if start == UNTURNED else rotate(k, cos[start + t], sin[start + t]))
                values.append(v)
                where.append((r, t))
        logits = asked @ torch.stack(keys).T * query.scale
        lse[g] = logits.logsumexp(-1)
        weights = logits.softmax(-1)
        out[g] = weights @ torch.stack(values)
        for (r, t), column in zip(where, weights.T, strict=True):
            mass[g, r, t] = column.sum()
    return out, lse, mass


@pytest.mark.parametrize("shape", SHAPES)
def test_reference_is_the_definition(shape):
    query = Query(*shape)
    found = decode_reference(*query.arguments(torch.float64, "cpu"), scale=query.scale)
    for mine, theirs in zip(found, wanted(query), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.mass.sum((1, 2)), torch.full((shape[0],), float(shape[1]), dtype=torch.float64))


@pytest.mark.parametrize(
    "shape, dtype, codec",
    [*((shape, torch.float32, "raw") for shape in SHAPES), *((SHAPES[i], torch.float16, "raw") for i in (1, 5))]
    + [(SHAPES[i], torch.float32, codec) for i in (0, 1, 5) for codec in ("int8", "int4")],
)
def test_kernel(shape, dtype, codec, device, poisoned):
    from app.kernels.decode_triton import decode

    query = Query(*shape, codec)
    reference = query.rounded(dtype)
    exact = decode_reference(*reference.arguments(torch.float64, "cpu"), scale=query.scale)
    found = decode(*query.arguments(dtype, device), query.scale)
    assert found[0].dtype == dtype
    for mine, theirs in zip(found, exact, strict=True):
        assert relative(mine, theirs) <= WORST[dtype]


@pytest.mark.parametrize("programs", [1, 3, 1000])
def test_kernel_splits_as_it_likes(programs, monkeypatch, device, poisoned):
    from app.kernels import decode_triton

    monkeypatch.setattr(decode_triton, "PROGRAMS", programs)
    query = Query(2, 2, 32, 16, 7)
    exact = decode_reference(*query.arguments(torch.float64, "cpu"), scale=query.scale)
    found = decode_triton.decode(*query.arguments(torch.float32, device), query.scale)
    for mine, theirs in zip(found, exact, strict=True):
        assert relative(mine, theirs) <= 1e-5


def test_kernel_reads_a_store_of_another_dtype(device, poisoned):
    from app.kernels.decode_triton import decode

    query = Query(2, 2, 64, 24, 5)
    reference = query.rounded(torch.float32, torch.float16)
    exact = decode_reference(*reference.arguments(torch.float64, "cpu"), scale=query.scale)
    arguments = query.arguments(torch.float32, device, store=torch.float16)
    for mine, theirs in zip(decode(*arguments, query.scale), exact, strict=True):
        assert relative(mine, theirs) <= 1e-5


def test_lists_that_do_not_fit_are_refused():
    query = Query(2, 2, 32, 16, 4)
    q, pages, places, rope = query.arguments(torch.float32, "cpu")
    with pytest.raises(ValueError, match="one shape"):
        decode_attention(q, pages, Places(places.lengths[:, 1:], places.starts, places.query), rope, scale=1.0)
    with pytest.raises(ValueError, match="each KV head"):
        decode_attention(q[:1], pages, places, rope, scale=1.0)
    with pytest.raises(ValueError, match="firsts"):
        decode_attention(q, replace(pages, codec="int8"), places, rope, scale=1.0)
