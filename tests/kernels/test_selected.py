"""Attention over listed blocks: the reference by definition, the kernels against it in float64, gradients too."""

from dataclasses import replace

import pytest
import torch

from app.kernels.rope import rotate
from app.kernels.selected import selected_attention, selected_mass_reference, selected_reference
from tests.kernels.blocks import Sizes, make
from tests.kernels.paged import relative

WORST = {torch.float32: 1e-5, torch.float16: 2e-3}
SIZES = {
    "grouped heads": Sizes(),
    "one query": Sizes(rows=1, heads=4, listed=2),
    "odd everything": Sizes(kv_heads=1, heads=3, dim=40, length=24, rows=63, listed=5, groups=1, held=7),
    "100 rows of batch 2": Sizes(kv_heads=1, heads=1, dim=32, length=64, rows=100, listed=4, groups=1, batch=2, held=5),
    "130 rows in long blocks": Sizes(kv_heads=1, heads=1, dim=64, length=128, rows=130, listed=3, groups=1, held=4),
    "short blocks": Sizes(kv_heads=1, length=8, rows=16, listed=4, groups=2, held=9),
}


def attend(function, inputs, scale=0.3):
    """(out, lse, gradients of q, k, v) of a weighted sum of the outputs."""
    out, lse = function(*inputs.arguments, scale)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out)
    return out, lse, *torch.autograd.grad((out * weight).sum(), inputs.leaves)


def reference(q, k, v, lists, cos, sin, scale):
    return selected_reference(q, k, v, lists, cos, sin, scale=scale)


def test_reference_is_the_definition():
    """Query by query and key by key."""
    s = Sizes(kv_heads=2, heads=2, rows=5, groups=2)
    inputs = make(s, torch.float64, "cpu")
    out, lse = selected_reference(*inputs.arguments, scale=0.3)
    q, k, v, lists, cos, sin = inputs.arguments
    for g, head, row in torch.cartesian_prod(torch.arange(s.groups), torch.arange(4), torch.arange(s.rows)).tolist():
        logits, values = [], []
        for block, place, offset in zip(
            *(x[0, g, head // s.heads].tolist() for x in (lists.blocks, lists.places, lists.offsets)), strict=True
        ):
            for t in range(s.length):
                if place + t <= int(lists.begins[g]) + row:
                    key = rotate(k[block, t], cos[offset + t], sin[offset + t])
                    logits.append(q[0, head, g * s.rows + row] @ key * 0.3)
                    values.append(v[block, t])
        logits = torch.stack(logits)
        torch.testing.assert_close(lse[0, head, g * s.rows + row], logits.logsumexp(0))
        torch.testing.assert_close(out[0, head, g * s.rows + row], logits.softmax(0) @ torch.stack(values))


@pytest.mark.parametrize(
    "name, dtype",
    [*((name, torch.float32) for name in SIZES), ("odd everything", torch.float16), ("short blocks", torch.float16)],
)
def test_kernels(name, dtype, device, poisoned):
    from app.kernels.selected_grad_triton import SelectedAttention

    inputs = make(SIZES[name], dtype, device)
    exact = attend(reference, inputs.to(torch.float64))
    found = attend(SelectedAttention.apply, inputs.to(dtype))
    assert found[0].dtype == dtype
    for mine, theirs in zip(found, exact, strict=True):
        assert relative(mine, theirs) <= WORST[dtype]


@pytest.mark.parametrize(
    "name, last, dtype",
    [("grouped heads", 8, torch.float32), ("odd everything", 3, torch.float16), ("one query", 1, torch.float32)],
)
def test_mass_kernel(name, last, dtype, device, poisoned):
    from app.kernels.selected_triton import mass

    inputs = make(SIZES[name], dtype, device)
    q, k, v, *rest = inputs.to(torch.float64).arguments
    lse = selected_reference(q, k, v, *rest, scale=0.3)[1]
    exact = selected_mass_reference(q, k, *rest, lse, scale=0.3, last=last)
    q, k, _, lists, cos, sin = inputs.arguments
    found = mass(q, k, lists, cos, sin, lse.float(), 0.3, last)
    assert relative(found, exact) <= WORST[dtype]
    heads = SIZES[name].heads
    torch.testing.assert_close(exact.sum((3, 4)), torch.full_like(exact[..., 0, 0], float(heads * last)))


def test_kernels_leave_blocks_out_and_read_strided_rows(device, poisoned):
    """As a cache asks for it: short lengths, a block listed twice that counts once, heads inside of tokens."""
    from app.kernels.selected_grad_triton import SelectedAttention

    inputs = make(replace(SIZES["grouped heads"], listed=5), torch.float32, device)
    lists = inputs.lists
    blocks, lengths = lists.blocks.clone(), lists.lengths.clone()
    lengths[..., 0], lengths[..., 1], blocks[..., 1] = 3, 0, blocks[..., 0]
    inputs = replace(inputs, lists=replace(lists, blocks=blocks, lengths=lengths, past=0))
    exact = attend(reference, inputs.to(torch.float64))
    strided = inputs.to(torch.float32)
    q = torch.nn.functional.pad(strided.q.detach(), (0, 8)).transpose(1, 2).contiguous().transpose(1, 2)
    q = q[..., :-8].requires_grad_()
    assert q.stride()[:3] != torch.empty_like(q).stride()[:3]
    found = attend(SelectedAttention.apply, replace(strided, q=q))
    for mine, theirs in zip(found, exact, strict=True):
        assert relative(mine, theirs) <= 1e-5


def test_kernels_give_the_future_no_gradient(device, poisoned):
    from app.kernels.selected_grad_triton import SelectedAttention

    s = Sizes(kv_heads=1, heads=1, rows=9, groups=1, listed=3, held=3)
    inputs = make(s, torch.float32, device).to(torch.float32)
    out, _ = SelectedAttention.apply(*inputs.arguments, 0.3)
    begin = int(inputs.lists.begins[0])
    for row in range(s.rows):
        dq, *pair = torch.autograd.grad(out[0, 0, row].sum(), inputs.leaves, retain_graph=True)
        assert (dq[0, 0, :row] == 0).all() and (dq[0, 0, row + 1 :] == 0).all() and dq[0, 0, row].abs().sum() > 0
        for grad in pair:
            places = grad.flatten(0, 1)
            assert (places[begin + row + 1 :] == 0).all() and places[begin + row].abs().sum() > 0


def test_inputs_that_do_not_fit_are_refused():
    inputs = make(Sizes(), torch.float32, "cpu")
    with pytest.raises(ValueError, match="differ"):
        selected_attention(inputs.q.double(), *inputs.arguments[1:], scale=1.0)
    with pytest.raises(ValueError, match="groups"):
        selected_attention(inputs.q[:, :, 1:], *inputs.arguments[1:], scale=1.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("heads, dim", [(1, 128), (4, 128), (2, 64)])
def test_kernels_at_the_size_they_are_made_for(heads, dim, dtype):
    from app.kernels.selected_grad_triton import SelectedAttention

    s = Sizes(kv_heads=4, heads=heads, dim=dim, length=64, listed=16, rows=128, groups=8, batch=2, held=64)
    inputs = make(s, dtype, "cuda")
    exact = attend(reference, inputs.to(torch.float64))
    found = attend(SelectedAttention.apply, inputs.to(dtype))
    for mine, theirs in zip(found, exact, strict=True):
        assert relative(mine, theirs) <= (2e-3 if dtype == torch.float16 else 1.6e-2)  # 11 bits against 8
