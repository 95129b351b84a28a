"""Packed int8 and int4 keys and values, channel by channel.

Keys have channels that are large for every token, so scales follow the channel (KIVI, arXiv 2402.02750, section 3).
KIVI's scales of values follow the token; here they follow the channel too, since values can stand far from 0 in a
channel for every token alike (docs/experiments.md, "Values by channel"). int8 has one scale for a row, a channel of a
group of tokens; int4 one scale and one offset for every 32 values of it.
"""

import torch
from torch import Tensor

from app.kernels.backend import use_triton
from app.kernels.layout import GROUP, Codec, packed_bytes

MOST = torch.finfo(torch.float16).max  # of a scale


def quantize(x: Tensor, codec: Codec) -> Tensor:
    """Pack; the same values give the same bytes everywhere.

    Args:
        x: [N, T, D], any floating dtype; NaN counts as 0 and infinities as the largest number.

    Returns:
        [N, packed_bytes], uint8: codes, then float16 scales, then for int4 float16 offsets.

    Raises:
        ValueError: unknown codec, or nothing to pack.
    """
    _check(codec, x.shape[-2], x.shape[-1])
    if use_triton(x):
        from app.kernels.quant_triton import pack

        return pack(x, codec)
    return quantize_reference(x, codec)


def quantize_reference(x: Tensor, codec: Codec) -> Tensor:
    """The same in plain PyTorch."""
    rows = torch.nan_to_num(x.float()).transpose(-1, -2)  # [N, D, T]
    if codec == "int8":
        scale = _half(rows.abs().amax(-1, keepdim=True) / _number(127, rows))
        codes = (rows / _divisor(scale)).round().clamp(-127, 127).to(torch.int8)
        return torch.cat([_bytes(codes), _bytes(scale)], dim=1)
    length = rows.shape[-1]
    if length % GROUP:  # repeated ends change no smallest or largest value
        rows = torch.cat([rows, rows[..., -1:].expand(*rows.shape[:-1], -length % GROUP)], dim=-1)
    groups = rows.unflatten(-1, (-1, GROUP))  # [N, D, T / 32, 32]
    low = _half(groups.amin(-1, keepdim=True))
    scale = _half((groups.amax(-1, keepdim=True) - low.float()) / _number(15, rows))
    codes = ((groups - low.float()) / _divisor(scale)).round().clamp(0, 15).to(torch.uint8)
    packed = codes[..., ::2] | codes[..., 1::2] << 4
    return torch.cat([_bytes(packed), _bytes(scale), _bytes(low)], dim=1)


def dequantize(data: Tensor, codec: Codec, tokens: int, dim: int) -> Tensor:
    """What `quantize` packed, float32.

    Args:
        data: [N, packed_bytes], uint8.

    Returns:
        [N, tokens, dim]. An int8 value is off by at most half its scale, 1/254 of its row's largest, an int4 value by
        1/30 of the range of its 32; both plus float16's rounding of the scale, 1/1024 of that largest.

    Raises:
        ValueError: unknown codec, or `data` has another size.
    """
    _check(codec, tokens, dim)
    if data.shape[-1] != packed_bytes(codec, tokens, dim):
        raise ValueError(f"{data.shape[-1]} bytes, expected {packed_bytes(codec, tokens, dim)}")
    if use_triton(data):
        from app.kernels.quant_triton import unpack

        return unpack(data, codec, tokens, dim)
    return dequantize_reference(data, codec, tokens, dim)


def dequantize_reference(data: Tensor, codec: Codec, tokens: int, dim: int) -> Tensor:
    """The same in plain PyTorch."""
    if codec == "int8":
        codes, scale = data.split([dim * tokens, 2 * dim], dim=1)
        rows = codes.contiguous().view(torch.int8).view(-1, dim, tokens).float() * _halves(scale, dim, 1)
    else:
        groups = -(-tokens // GROUP)
        codes, scale, low = data.split([dim * groups * GROUP // 2, 2 * dim * groups, 2 * dim * groups], dim=1)
        both = torch.stack([codes & 15, codes >> 4], dim=-1).view(-1, dim, groups, GROUP)
        rows = both.float() * _halves(scale, dim, groups, 1) + _halves(low, dim, groups, 1)
        rows = rows.flatten(2)[..., :tokens]
    return rows.transpose(-1, -2)


def _check(codec: str, tokens: int, dim: int) -> None:
    if codec not in ("int8", "int4") or tokens < 1 or dim < 1:
        raise ValueError(f"codec {codec!r}, {tokens} tokens of {dim} channels: cannot be packed")


def _number(value: float, like: Tensor) -> Tensor:
    """A divisor on the device: CUDA multiplies by the inverse of a plain number, which can give another last bit."""
    return torch.full((), value, dtype=torch.float32, device=like.device)


def _half(x: Tensor) -> Tensor:
    return (x.clamp(-MOST, MOST) + 0.0).half()  # never -0: of 0 and -0 either may be found to be the smallest


def _divisor(scale: Tensor) -> Tensor:
    """A scale of 0 belongs to values that are all alike, or too small for float16: their codes are 0."""
    return scale.float().masked_fill(scale == 0, float("inf"))


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().view(x.shape[0], -1).view(torch.uint8)


def _halves(data: Tensor, *shape: int) -> Tensor:
    return data.contiguous().view(torch.float16).view(-1, *shape).float()
