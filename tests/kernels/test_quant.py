"""Packed keys and values: error bounds, edges, bytes."""

import pytest
import torch

from app.kernels.quant import dequantize, dequantize_reference, packed_bytes, quantize, quantize_reference

CASES = [(codec, axis) for codec in ("int8", "int4") for axis in ("channel", "token")]


def bounds(x, codec, axis):
    """Largest error that dequantize's docstring allows, [N, T, D]."""
    rows = x.float().transpose(-1, -2) if axis == "channel" else x.float()
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
    return (out.transpose(-1, -2) if axis == "channel" else out) + 1e-6


@pytest.mark.parametrize("codec, axis", CASES)
@pytest.mark.parametrize("tokens, dim", [(1, 8), (63, 16), (100, 33), (128, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_is_bounded(codec, axis, tokens, dim, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, tokens, dim, generator=generator) * torch.linspace(0.01, 30, dim) + 2
    x = x.to(dtype)
    data = quantize(x, codec, axis)
    assert data.shape == (3, packed_bytes(codec, axis, tokens, dim)) and data.dtype == torch.uint8
    back = dequantize(data, codec, axis, tokens, dim)
    assert ((back - x.float()).abs() <= bounds(x, codec, axis)).all()


@pytest.mark.parametrize("codec, axis", CASES)
@pytest.mark.parametrize("value", [0.0, 3.0, -7.25, 1e-9, 6e4])
def test_constant_rows(codec, axis, value):
    x = torch.full((1, 64, 64), value)
    back = dequantize(quantize(x, codec, axis), codec, axis, 64, 64)
    torch.testing.assert_close(back, x, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("codec, axis", CASES)
def test_nothing_but_numbers_comes_back(codec, axis):
    x = torch.zeros(1, 64, 64)
    x[0, 3, 5], x[0, 4, 5], x[0, 5, 6] = float("nan"), float("inf"), float("-inf")
    x[0, 7, 7], x[0, 8, 8] = 3e38, -3e38
    assert dequantize(quantize(x, codec, axis), codec, axis, 64, 64).isfinite().all()


@pytest.mark.parametrize("codec, axis", CASES)
def test_bytes_do_not_depend_on_the_batch_or_the_layout(codec, axis):
    x = torch.randn(4, 48, 32, generator=torch.Generator().manual_seed(1))
    whole = quantize(x, codec, axis)
    single = torch.cat([quantize(part, codec, axis) for part in x.split(1)])
    turned = quantize(x.transpose(1, 2).contiguous().transpose(1, 2), codec, axis)
    assert torch.equal(whole, single) and torch.equal(whole, turned)


def test_keys_with_a_large_channel_need_scales_per_channel():
    x = torch.randn(1, 128, 64, generator=torch.Generator().manual_seed(2))
    x[..., 7] *= 100

    def error(axis):
        back = dequantize(quantize(x, "int8", axis), "int8", axis, 128, 64)
        return (back - x)[..., :7].abs().mean()

    assert error("channel") < error("token") / 10


@pytest.mark.parametrize("codec, size", [("int8", 0.54), ("int4", 0.32)])
def test_size_against_bfloat16(codec, size):
    both = packed_bytes(codec, "channel", 128, 64) + packed_bytes(codec, "token", 128, 64)
    assert both / (2 * 2 * 128 * 64) < size


def test_refusals():
    with pytest.raises(ValueError, match="int2"):
        quantize(torch.zeros(1, 4, 4), "int2", "token")
    with pytest.raises(ValueError, match="expected"):
        dequantize(torch.zeros(1, 5, dtype=torch.uint8), "int8", "token", 4, 4)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), -1e30])
def test_a_row_of_huge_numbers_stays_numbers(value):
    """Where nothing of 32 values was above -65504, the int4 scale became -inf, and the row NaN."""
    x = torch.full((1, 1, 8), value)
    back = dequantize(quantize(x, "int4", "channel"), "int4", "channel", 1, 8)
    assert back.isfinite().all() and ((back > 0) == (x > 0)).all()


@pytest.mark.parametrize("codec, axis", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("tokens, dim", [(1, 8), (63, 17), (100, 33), (128, 64)])
def test_kernels_give_the_same_bytes_and_numbers(codec, axis, dtype, tokens, dim, device, poisoned):
    from app.kernels.quant_triton import pack, unpack

    x = torch.randn(3, tokens, dim, generator=torch.Generator().manual_seed(tokens)) * torch.linspace(0.01, 30, dim) + 2
    x[0, 0, :3] = torch.tensor([float("nan"), float("inf"), float("-inf")])
    x[2] *= 1e-7
    x[2, :, 0], x[2, :, 1], x[2, 0, 1] = 0, 0.0, -0.0
    x = x.to(dtype)
    packed = quantize_reference(x, codec, axis)
    assert torch.equal(pack(x.to(device), codec, axis).cpu(), packed)
    turned = x.transpose(1, 2).contiguous().transpose(1, 2).to(device)
    assert torch.equal(pack(turned, codec, axis).cpu(), packed)
    inside = torch.cat([packed, packed], dim=1).to(device)[:, : packed.shape[1]]  # the part of a larger row
    back = unpack(inside, codec, axis, tokens, dim).cpu()
    assert torch.equal(back, dequantize_reference(packed, codec, axis, tokens, dim))
