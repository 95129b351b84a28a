"""Cases of prefill and training: attention over selected regions, and how they are found."""

from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from app.kernels.layout import BlockLists
from app.kernels.regions import region_scores, region_scores_reference, sub_means, sub_means_reference
from app.kernels.rope import rope_table
from app.kernels.selected import lists_of_texts, selected_attention, selected_reference
from app.kernels.sf_attn import PATTERNS, boundaries, sf_attention
from benchmarks.cases import Case, Operation, Outputs, Shape, Way, randn

REGION, GROUP = 64, 128
FLEX_TOKENS = 32768  # it is compiled anew for each length


def _inputs(
    shape: Shape, tokens: int, dtype: torch.dtype, device: str
) -> tuple[list[Tensor], BlockLists, list[Tensor]]:
    """([q, k, v] [B, H, T, D], lists, [cos, sin]) of the groups behind the budget: random regions and the own ones."""
    first, own = min(shape.budget, tokens // 2) // GROUP * GROUP, GROUP // REGION
    listed = first // REGION
    groups, held = (tokens - first) // GROUP, tokens // REGION
    begins = first + GROUP * torch.arange(groups, device=device)
    generator = torch.Generator(device).manual_seed(3)
    noise = torch.rand(1, groups, shape.kv_heads, held, generator=generator, device=device)
    index = torch.arange(held, device=device)
    last = begins[:, None, None] // REGION + own
    noise = noise.masked_fill(index >= last, -1.0) + 2.0 * ((index >= last - own) & (index < last))
    regions = noise.topk(listed, dim=-1).indices.sort(-1).values
    q = randn(1, shape.heads, groups * GROUP, shape.dim, dtype=dtype, device=device, seed=0)
    k, v = (randn(1, shape.kv_heads, tokens, shape.dim, dtype=dtype, device=device, seed=i) for i in (1, 2))
    lists = lists_of_texts(regions, held, REGION, begins, own=own, compact=True)
    inv_freq = 1e4 ** -(torch.arange(0, shape.dim, 2, device=device) / shape.dim)
    return [q, k, v], lists, list(rope_table(inv_freq, listed * REGION, 1.0, dtype))


def _walk(function: Callable, inputs: list[Tensor], lists: BlockLists, table: list[Tensor], scale: float) -> Outputs:
    q, k, v = inputs
    blocks = (x.reshape(-1, REGION, x.shape[-1]) for x in (k, v))
    return function(q, *blocks, lists, *table, scale=scale)


def _with_gradients(run: Callable[[list[Tensor]], Tensor], inputs: list[Tensor]) -> Outputs:
    """Output and gradients of a sum with fixed weights."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = run(leaves)
    weight = randn(*out.shape, dtype=out.dtype, device=str(out.device), seed=9)
    return out, *torch.autograd.grad(out, leaves, weight)


def _flops(shape: Shape, lists: BlockLists) -> float:
    """Of both products over every listed key."""
    groups, listed = lists.blocks.shape[1], lists.blocks.shape[3]
    return 4.0 * shape.heads * groups * GROUP * listed * REGION * shape.dim


def _dense(shape: Shape, tokens: int, dtype: torch.dtype, device: str) -> tuple[list[Tensor], Callable]:
    """([q, k, v], function of them): causal attention of a whole text."""
    kinds = (shape.heads, shape.kv_heads, shape.kv_heads)
    inputs = [randn(1, n, tokens, shape.dim, dtype=dtype, device=device, seed=i) for i, n in enumerate(kinds)]
    grouped = shape.heads != shape.kv_heads
    return inputs, lambda x: F.scaled_dot_product_attention(*x, is_causal=True, scale=shape.scale, enable_gqa=grouped)


@cache
def _compiled_flex() -> Callable:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _flex(shape: Shape, inputs: list[Tensor], lists: BlockLists) -> Callable[[list[Tensor]], Tensor]:
    """FlexAttention over the same lists. It cannot rotate keys by list, so it leaves them raw: less work than ours."""
    from torch.nn.attention.flex_attention import BlockMask

    blocks, heads = (lists.places // REGION).transpose(1, 2), shape.heads // shape.kv_heads  # [B, Hkv, G, K]
    held = inputs[1].shape[2] // REGION
    index = torch.zeros(*blocks.shape[:3], held, dtype=torch.int32, device=blocks.device)
    index[..., : blocks.shape[-1]] = blocks
    index = index.repeat_interleave(heads, dim=1).contiguous()
    counts = torch.full(index.shape[:3], blocks.shape[-1], dtype=torch.int32, device=index.device)
    begin = int(lists.begins[0])
    mask = BlockMask.from_kv_blocks(
        counts, index, BLOCK_SIZE=(GROUP, REGION), mask_mod=lambda b, h, q, k: k <= q + begin,
        seq_lengths=(inputs[0].shape[2], inputs[1].shape[2]),
    )  # fmt: skip
    run = _compiled_flex()
    return lambda x: run(*x, block_mask=mask, scale=shape.scale, enable_gqa=heads > 1)


def _prefill(shape: Shape, tokens: int, dtype: torch.dtype, device: str) -> Case:
    inputs, lists, table = _inputs(shape, tokens, dtype, device)
    exact = [x.double() for x in inputs], lists, [x.double() for x in table]
    peers = {}
    if device == "cuda":
        dense, attend = _dense(shape, tokens, dtype, device)
        peers["dense SDPA"] = Way(lambda: attend(dense), 2.0 * shape.heads * shape.dim * tokens**2)
    if device == "cuda" and tokens == FLEX_TOKENS:
        flex = _flex(shape, inputs, lists)
        peers["FlexAttention, keys not rotated"] = Way(lambda: flex(inputs), _flops(shape, lists))
    return Case(
        kernel=lambda: _walk(selected_attention, inputs, lists, table, shape.scale),
        exact=lambda: _walk(selected_reference, *exact, shape.scale),
        flops=_flops(shape, lists),
        peers=peers,
    )


def _training(shape: Shape, tokens: int, dtype: torch.dtype, device: str) -> Case:
    """Forward and backward; backward is five products of the size of forward's two."""
    inputs, lists, table = _inputs(shape, tokens, dtype, device)
    exact = [x.double() for x in inputs], [x.double() for x in table]
    peers = {}
    if device == "cuda":
        dense, attend = _dense(shape, tokens, dtype, device)
        peers["dense SDPA"] = Way(partial(_with_gradients, attend, dense), 7.0 * shape.heads * shape.dim * tokens**2)
    if device == "cuda" and tokens == FLEX_TOKENS:
        flex, flops = _flex(shape, inputs, lists), 3.5 * _flops(shape, lists)
        peers["FlexAttention, keys not rotated"] = Way(partial(_with_gradients, flex, inputs), flops)
    return Case(
        kernel=lambda: _with_gradients(lambda x: _walk(selected_attention, x, lists, table, shape.scale)[0], inputs),
        exact=lambda: _with_gradients(
            lambda x: _walk(selected_reference, x, lists, exact[1], shape.scale)[0], exact[0]
        ),
        flops=3.5 * _flops(shape, lists),
        peers=peers,
    )


def _scores(shape: Shape, tokens: int, dtype: torch.dtype, device: str) -> Case:
    """A segment of 2,048 queries by means of 4, against all regions by means of 4 keys."""
    heads, queries = shape.heads // shape.kv_heads, min(tokens, 2048) // 4
    q = randn(shape.kv_heads, heads * queries, shape.dim, dtype=dtype, device=device, seed=0)
    fine = randn(shape.kv_heads, tokens // REGION, REGION // 4, shape.dim, dtype=dtype, device=device, seed=1)
    flops = 2.0 * q.numel() * (tokens // 4)
    peers = {} if device == "cpu" else {"PyTorch": Way(lambda: region_scores_reference(q, fine), flops)}
    return Case(
        kernel=lambda: (region_scores(q, fine),),
        exact=lambda: (region_scores_reference(q.double(), fine.double()).double(),),
        flops=flops,
        peers=peers,
    )


def _means(shape: Shape, tokens: int, dtype: torch.dtype, device: str) -> Case:
    """Means of every 4 keys of a text."""
    k = randn(shape.kv_heads, tokens, shape.dim, dtype=dtype, device=device, seed=0)
    moved = float(k.nbytes + 4 * k.numel() // 4)
    peers = {} if device == "cpu" else {"PyTorch": Way(lambda: sub_means_reference(k, 4), bytes=moved)}
    return Case(
        kernel=lambda: (sub_means(k, 4),),
        exact=lambda: (k.double().unflatten(1, (-1, 4)).mean(2),),
        bytes=moved,
        peers=peers,
    )


def _flex_groups(shape: Shape, tokens: int, device: str) -> Callable[[list[Tensor]], Tensor]:
    """FlexAttention with the masks of SF-Attn: one for the heads that are moved, one for the others."""
    from torch.nn.attention.flex_attention import create_block_mask

    pattern, heads = PATTERNS["sf"], shape.heads
    moved, share = pattern.shifted_heads(heads), shape.heads // shape.kv_heads

    def mask(shifted: bool):
        inner = torch.tensor(boundaries(pattern, tokens, shifted=shifted)[1:-1], device=device)
        group = torch.bucketize(torch.arange(tokens, device=device), inner, right=True)
        sinks = pattern.sinks_for(tokens)

        def seen(b, h, q, k):
            return ((group[q] == group[k]) | (k < sinks)) & (k <= q)

        return create_block_mask(seen, None, None, tokens, tokens, device=device, _compile=device == "cuda")

    masks, run = [mask(shifted) for shifted in (False, True)], _compiled_flex()
    spans = (slice(0, heads - moved), slice(heads - moved, heads))

    def attend(x: list[Tensor]) -> Tensor:
        parts = []
        for block_mask, span in zip(masks, spans, strict=True):
            at = slice(span.start // share, span.stop // share)
            parts.append(
                run(x[0][:, span], x[1][:, at], x[2][:, at], block_mask=block_mask, scale=shape.scale, enable_gqa=True)
            )
        return torch.cat(parts, dim=1)

    return attend


def _sf(shape: Shape, tokens: int, dtype: torch.dtype, device: str) -> Case:
    """SF-Attn, forward and backward: no kernel of ours, so this tells which way to take."""
    inputs, dense = _dense(shape, tokens, dtype, device)
    group = PATTERNS["sf"].group_for(tokens)
    flops = 7.0 * shape.heads * shape.dim * tokens * group
    attend = partial(_sf_attention, shape.scale)
    peers = {"dense SDPA": Way(partial(_with_gradients, dense, inputs), 7.0 * shape.heads * shape.dim * tokens**2)}
    if tokens == FLEX_TOKENS:
        flex = _flex_groups(shape, tokens, device)
        peers["FlexAttention"] = Way(partial(_with_gradients, flex, inputs), flops)
    return Case(
        kernel=lambda: _with_gradients(attend, inputs),
        exact=lambda: _with_gradients(attend, [x.double() for x in inputs]),
        flops=flops,
        peers=peers,
    )


def _sf_attention(scale: float, x: list[Tensor]) -> Tensor:
    return sf_attention(*x, scale=scale, pattern=PATTERNS["sf"])


OPERATIONS = (
    Operation("selected prefill", _prefill),
    Operation("selected training", _training, tokens=(8192, 32768), check_tokens=4096),
    Operation("SF-Attn training", _sf, tokens=(8192, 32768), check_tokens=2048, dtypes=()),
    Operation("region scores", _scores, tokens=(131072,)),
    Operation("key means", _means, "bytes", tokens=(131072,)),
)
