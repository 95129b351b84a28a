"""Attention inside groups, for tuning at a length whose full attention costs too much: S2-Attn, SF-Attn, and between.

A text is cut into groups. Some heads see groups that are moved by half a group, so that what one head cuts another
joins. The published S2-Attn (LongLoRA) moves by rolling the text, and its first half group then reads the last one: the
future. SF-Attn (SinkLoRA) leaves the two ends as groups of their own and lets every query see the first tokens (sinks).
Its text leaves details open; the family here has a name for each of our readings. Inference never uses these patterns.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from app.errors import ConfigError
from app.kernels.backend import flash_varlen

WRAPS = ("split", "wrap")


@dataclass(frozen=True)
class GroupPattern:
    """A member of the family; with `split` a query sees nothing later than itself.

    Attributes:
        shift_fraction: share of the heads (the last ones) whose groups are moved by half a group.
        return_ratio: share of those that is put back again; 1 leaves fixed windows.
        wrap: `split` leaves the half group at the start and the rest at the end as groups of their own; `wrap` joins
            them as rolling does, so that the first half group sees the last group, its future.
        sinks: first tokens that every later query sees, at most half a group of them.
        groups: how many a text is cut into; the last may be shorter. A group of N / 4 is LongLoRA's.
        group_tokens: tokens of a group instead, whatever the text's length; 0 goes by `groups`.
    """

    shift_fraction: float = 0.5
    return_ratio: float = 0.0
    wrap: str = "split"
    sinks: int = 4
    groups: int = 4
    group_tokens: int = 0

    def __post_init__(self) -> None:
        for name in ("shift_fraction", "return_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: must lie between 0 and 1")
        for name, least in (("sinks", 0), ("groups", 1), ("group_tokens", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name} = {value!r}: must be a whole number of at least {least}")
        if self.wrap not in WRAPS:
            raise ConfigError(f"wrap = {self.wrap!r}: not known; choose one of {', '.join(WRAPS)}")

    def group_for(self, tokens: int) -> int:
        """Tokens of one group in a text of so many."""
        return self.group_tokens or max(1, -(-tokens // self.groups))

    def sinks_for(self, tokens: int) -> int:
        """Sinks of a text of so many tokens: they lie inside the first group of every head."""
        return min(self.sinks, self.group_for(tokens) // 2)

    def shifted_heads(self, heads: int) -> int:
        """How many of so many heads are moved: the last ones."""
        return math.floor(heads * self.shift_fraction * (1 - self.return_ratio) + 0.5)

    @property
    def looks_ahead(self) -> bool:
        """Whether some queries see their future."""
        return self.wrap == "wrap" and self.shift_fraction > 0 and self.return_ratio < 1


PATTERNS = {
    "block": GroupPattern(return_ratio=1.0, sinks=0),
    "s2_published": GroupPattern(wrap="wrap", sinks=0),
    "s2_wrap_sink": GroupPattern(wrap="wrap"),
    "s2": GroupPattern(sinks=0),
    "sf": GroupPattern(),
    "sf_fixed": GroupPattern(return_ratio=1.0),
}


def boundaries(pattern: GroupPattern, tokens: int, *, shifted: bool) -> list[int]:
    """Where the groups of one head begin, and the end of the text, ascending. A text of one group stays whole."""
    group = pattern.group_for(tokens)
    if tokens <= group:
        return [0, tokens]
    offset = group // 2 if shifted else 0
    return [0, *range(offset or group, tokens, group), tokens]


def allowed(pattern: GroupPattern, tokens: int, head: int, heads: int) -> Tensor:
    """Which keys each query of one head sees: the definition as a matrix, [T, T] bool, query by key.

    For tests and pictures; `sf_attention` never makes it.
    """
    shifted = head >= heads - pattern.shifted_heads(heads)
    starts = boundaries(pattern, tokens, shifted=shifted)
    places = torch.arange(tokens)
    group = torch.bucketize(places, torch.tensor(starts[1:-1], dtype=torch.int64), right=True)
    sinks = pattern.sinks_for(tokens) if len(starts) > 2 else 0
    seen = (group[:, None] == group) | (places < sinks)
    seen &= places <= places[:, None]
    if shifted and pattern.wrap == "wrap" and _is_moved(pattern, tokens):
        seen |= (group[:, None] == 0) & (group == group[-1])
    return seen


def sf_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, pattern: GroupPattern, valid: Tensor | None = None
) -> Tensor:
    """Attention inside the groups of a pattern, SinkLoRA's section on SF-Attn; differentiable.

    Causality comes from the order of the tokens alone, so no mask is made: memory grows with the text's length, and
    fused attention does each group.

    Args:
        q: [B, Hq, T, D] rotated queries. k, v: [B, Hkv, T, D], k rotated. Any T and B, Hq a multiple of Hkv.
        valid: [B, T] bool, False for padding, which is neither read nor written (its output is 0). A text is what is
            left of its row: it comes out as if it stood alone.

    Returns:
        Like q.
    """
    if valid is None:
        return _texts(q, k, v, scale, pattern)
    order = (~valid).to(torch.uint8).argsort(dim=1, stable=True)  # padding last
    lengths = valid.sum(1).tolist()
    out = torch.zeros_like(q)
    for length in sorted(set(lengths) - {0}):
        rows = torch.tensor([i for i, x in enumerate(lengths) if x == length], device=q.device)
        places = order[rows, None, :length]  # [b, 1, length]
        at = (rows[:, None, None], torch.arange(q.shape[1], device=q.device)[:, None], places)
        at_kv = (rows[:, None, None], torch.arange(k.shape[1], device=q.device)[:, None], places)
        out = out.index_put(at, _texts(q[at], k[at_kv], v[at_kv], scale, pattern))
    return out


def _is_moved(pattern: GroupPattern, tokens: int) -> bool:
    """Whether shifted heads see other groups than the rest in a text of so many tokens."""
    group = pattern.group_for(tokens)
    return tokens > group > 1


def _texts(q: Tensor, k: Tensor, v: Tensor, scale: float, pattern: GroupPattern) -> Tensor:
    """The same for whole rows: unmoved heads, then moved ones."""
    heads, tokens = q.shape[1:3]
    if q.numel() == 0:
        return torch.zeros_like(q)
    moved = pattern.shifted_heads(heads) if _is_moved(pattern, tokens) else 0
    parts = []
    for first, last, shifted in ((0, heads - moved, False), (heads - moved, heads, True)):
        if first < last:
            keys, values = (_heads_of(x, first, last, heads) for x in (k, v))
            starts = boundaries(pattern, tokens, shifted=shifted)
            flash = None if shifted and pattern.wrap == "wrap" else _flash(q, values)
            if flash:
                sinks = pattern.sinks_for(tokens)
                parts.append(_by_lengths(flash, q[:, first:last], keys, values, scale, starts, sinks))
            else:
                parts.append(_in_groups(q[:, first:last], keys, values, scale, pattern, starts, shifted))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _heads_of(x: Tensor, first: int, last: int, heads: int) -> Tensor:
    """Keys or values [B, Hkv, T, D] for the query heads `first` to `last` of `heads`, repeated where a head is cut."""
    share = heads // x.shape[1]
    if first % share == 0 and last % share == 0:
        return x[:, first // share : last // share]
    return x[:, torch.arange(first, last, device=x.device) // share]


def _in_groups(
    q: Tensor, k: Tensor, v: Tensor, scale: float, pattern: GroupPattern, starts: list[int], shifted: bool
) -> Tensor:
    """Heads with the same groups: the first, which holds the sinks, and all others at once behind a copy of them."""
    tokens, first = q.shape[2], starts[1]
    head = _causal(q[:, :, :first], k[:, :, :first], v[:, :, :first], scale)
    if first == tokens:
        return head
    if shifted and pattern.wrap == "wrap":
        last = slice(starts[-2], tokens)
        order = [torch.cat([x[:, :, last], x[:, :, :first]], dim=2) for x in (q, k, v)]
        head = _causal(*order, scale)[:, :, tokens - last.start :]
    group, sinks = pattern.group_for(tokens), pattern.sinks_for(tokens)
    rest = [_behind_sinks(x, first, group, sinks) for x in (q, k, v)]
    out = _causal(*rest, scale)[:, :, sinks:]  # [B * G, Hq, group, D]; the sinks' own rows are not wanted
    out = out.unflatten(0, (q.shape[0], -1)).transpose(1, 2).flatten(2, 3)
    return torch.cat([head, out[:, :, : tokens - first]], dim=2)


def _flash(q: Tensor, v: Tensor) -> Callable[..., Tensor] | None:
    """flash-attn's attention over texts of several lengths, where it is installed and takes such tensors."""
    fits = q.device.type == "cuda" and q.dtype == v.dtype and q.dtype in (torch.float16, torch.bfloat16)
    return flash_varlen() if fits and q.shape[-1] <= 256 else None


def _by_lengths(
    flash: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, scale: float, starts: list[int], sinks: int
) -> Tensor:
    """Each group as a text of its own, its keys behind those of the sinks, without padding: as `_in_groups`."""
    batch, _, tokens, _ = q.shape
    extra = sinks if len(starts) > 2 else 0
    if extra:
        places = torch.arange(tokens, device=q.device)
        later = [torch.cat([places[:extra], places[a:b]]) for a, b in pairwise(starts[1:])]
        places = torch.cat([places[: starts[1]], *later])
        k, v = k[:, :, places], v[:, :, places]
    ends = torch.tensor(starts, dtype=torch.int32, device=q.device)
    key_ends = ends + extra * torch.arange(-1, len(starts) - 1, device=q.device).clamp(min=0)
    row = torch.arange(batch, dtype=torch.int32, device=q.device)[:, None]
    cumulated = [
        torch.cat([(row * each[-1] + each[:-1]).flatten(), batch * each[-1:]]).int() for each in (ends, key_ends)
    ]
    longest = max(b - a for a, b in pairwise(starts))
    flat = [x.transpose(1, 2).flatten(0, 1) for x in (q, k, v)]  # [B * T, H, D]; a group's last query sees its last key
    out = flash(*flat, *cumulated, longest, longest + extra, softmax_scale=scale, causal=True)
    return out.unflatten(0, (batch, tokens)).transpose(1, 2)


def _behind_sinks(x: Tensor, first: int, group: int, sinks: int) -> Tensor:
    """Groups from token `first` on, each behind the sinks: [B, H, T, D] -> [B * G, H, sinks + group, D].

    The last is filled up at its end, where nothing that counts can see it.
    """
    rest = F.pad(x[:, :, first:], (0, 0, 0, (first - x.shape[2]) % group))
    groups = rest.unflatten(2, (-1, group)).transpose(1, 2)  # [B, G, H, group, D]
    if sinks:
        before = x[:, None, :, :sinks].expand(-1, groups.shape[1], -1, -1, -1)
        groups = torch.cat([before, groups], dim=3)
    return groups.flatten(0, 1)


def _causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
