"""Packed keys and values: error bounds, edges, bytes."""

import pytest
import torch

from app.kernels.layout import packed_bytes
from app.kernels.quant import dequantize, dequantize_reference, quantize, quantize_reference

CODECS = ("int8", "int4")


def bounds(x, codec):
    """Largest error that dequantize's docstring allows, [N, T, D]."""
    rows = x.float().transpose(-1, -2)
    if codec == "int8":
        largest = rows.abs().amax(-1, keepdim=True).expand_as(rows)
        out = largest / 254 + largest / 1024
    else:
        parts = []
        for part in rows.split(32, dim=-1):
            low, high = part.amin(-1, keepdim=True), part.amax(-1, keepdim=True)
            largest = torch.maximum(part.abs().amax(-1, keepdim=True), high - low)
            parts.append(((high - low) / 30 + largest / 1024).expand_as(part))
        out = torch.cat(parts, -1)
    return out.transpose(-1, -2) + 1e-6


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("tokens, dim", [(1, 8), (63, 16), (100, 33), (128, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_is_bounded(codec, tokens, dim, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, tokens, dim, generator=generator) * torch.linspace(0.01, 30, dim) + 2
    x = x.to(dtype)
    data = quantize(x, codec)
    assert data.shape == (3, packed_bytes(codec, tokens, dim)) and data.dtype == torch.uint8
    back = dequantize(data, codec, tokens, dim)
    assert ((back - x.float()).abs() <= bounds(x, codec)).all()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value", [0.0, 3.0, -7.25, 1e-9, 6e4])
def test_constant_rows(codec, value):
    x = torch.full((1, 64, 64), value)
    back = dequantize(quantize(x, codec), codec, 64, 64)
    torch.testing.assert_close(back, x, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("codec", CODECS)
def test_nothing_but_numbers_comes_back(codec):
    x = torch.zeros(1, 64, 64)
    x[0, 3, 5], x[0, 4, 5], x[0, 5, 6] = float("nan"), float("inf"), float("-inf")
    x[0, 7, 7], x[0, 8, 8] = 3e38, -3e38
    assert dequantize(quantize(x, codec), codec, 64, 64).isfinite().all()


@pytest.mark.parametrize("codec", CODECS)
def test_bytes_do_not_depend_on_the_batch_or_the_layout(codec):
    x = torch.randn(4, 48, 32, generator=torch.Generator().manual_seed(1))
    whole = quantize(x, codec)
    single = torch.cat([quantize(part, codec) for part in x.split(1)])
    turned = quantize(x.transpose(1, 2).contiguous().transpose(1, 2), codec)
    assert torch.equal(whole, single) and torch.equal(whole, turned)


@pytest.mark.parametrize("codec", CODECS)
def test_a_channel_that_is_large_or_far_from_zero_costs_the_others_nothing(codec):
    x = torch.randn(1, 128, 64, generator=torch.Generator().manual_seed(2))
    odd = x.clone()
    odd[..., 7], odd[..., 9] = 100 * x[..., 7], 100 + x[..., 9]
    back, alone = (dequantize(quantize(part, codec), codec, 128, 64) for part in (odd, x))
    assert torch.equal(back[..., :7], alone[..., :7]) and torch.equal(back[..., 10:], alone[..., 10:])
    if codec == "int4":  # which has an offset
        assert (back - odd)[..., 9].abs().max() < 0.4


@pytest.mark.parametrize("codec, size", [("int8", 0.54), ("int4", 0.32)])
def test_size_against_bfloat16(codec, size):
    assert packed_bytes(codec, 128, 64) / (2 * 128 * 64) < size


def test_refusals():
    with pytest.raises(ValueError, match="int2"):
        quantize(torch.zeros(1, 4, 4), "int2")
    with pytest.raises(ValueError, match="expected"):
        dequantize(torch.zeros(1, 5, dtype=torch.uint8), "int8", 4, 4)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), -1e30])
def test_a_row_of_huge_numbers_stays_numbers(value):
    """Where nothing of 32 values was above -65504, the int4 scale became -inf, and the row NaN."""
    x = torch.full((1, 1, 8), value)
    back = dequantize(quantize(x, "int4"), "int4", 1, 8)
    assert back.isfinite().all() and ((back > 0) == (x > 0)).all()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "tokens, dim, dtype",
    [(1, 8, torch.float32), (63, 17, torch.float16), (100, 33, torch.float32), (128, 64, torch.float32)],
)
def test_kernels_give_the_same_bytes_and_numbers(codec, dtype, tokens, dim, device, poisoned):
    from app.kernels.quant_triton import pack, unpack

    x = torch.randn(3, tokens, dim, generator=torch.Generator().manual_seed(tokens)) * torch.linspace(0.01, 30, dim) + 2
    x[0, 0, :3] = torch.tensor([float("nan"), float("inf"), float("-inf")])
    x[2] *= 1e-7
    x[2, :, 0], x[2, :, 1], x[2, 0, 1] = 0, 0.0, -0.0
    x = x.to(dtype)
    packed = quantize_reference(x, codec)
    assert torch.equal(pack(x.to(device), codec).cpu(), packed)
    turned = x.transpose(1, 2).contiguous().transpose(1, 2).to(device)
    assert torch.equal(pack(turned, codec).cpu(), packed)
    inside = torch.cat([packed, packed], dim=1).to(device)[:, : packed.shape[1]]  # the part of a larger row
    back = unpack(inside, codec, tokens, dim).cpu()
    assert torch.equal(back, dequantize_reference(packed, codec, tokens, dim))
