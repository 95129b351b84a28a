"""Attention over a row of readings, by dense blocks of what may be seen: see app/train/reading_layout.py."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from app.train.reading_layout import Runs, branch_bias, causal_bias, runs_of

CHUNK_TOKENS = 192  # of branches that are attended together: the keys of others among them are computed in vain
LONG_PART = 640  # tokens from which causal attention by halves pays
ASKING = 2  # first tokens of each answer whose queries the region loss looks at
MOST_ASKING = 24  # of one reading


@dataclass(frozen=True)
class _Block:
    """Queries of one stretch of the row, and the stretches whose keys they see.

    Attributes:
        rows: (start, stop) in the row.
        keys: stretches, in order; the last is `rows` itself.
        bias: [rows * heads of a KV head, keys]; None: causal.
    """

    rows: tuple[int, int]
    keys: tuple[tuple[int, int], ...]
    bias: Tensor | None


class ReadingAttention:
    """The blocks of one step's row, for all layers."""

    def __init__(self, row: dict[str, Tensor], heads: int) -> None:
        """Args: heads: query heads of each KV head."""
        self.readings = runs_of(row["kinds"], row["runs"], row["documents"])
        self.positions, self.heads = row["positions"][0], heads
        self.asking = [_asking(row["weights"][0], reading) for reading in self.readings]
        self.blocks = [block for reading in self.readings for block in self._blocks(reading)]

    def _blocks(self, reading: Runs) -> Sequence[_Block]:
        first, *others = reading.parts
        size = first[1] - first[0]
        yield _Block(first, (first,), self._folded(causal_bias(size, 0)) if size < LONG_PART else None)
        for part in others:
            yield _Block(part, (first, part), self._folded(causal_bias(part[1] - part[0], size)))
        begin = first[0]
        if reading.trunk[1] > reading.trunk[0]:
            start, stop = reading.trunk
            bias = self._folded(causal_bias(stop - start, start - begin))
            yield _Block(reading.trunk, ((begin, start), (start, stop)), bias)
        context = reading.context
        for spans in _chunks(reading.branches):
            rows = (spans[0][0], spans[-1][1])
            yield _Block(rows, (context, rows), self._folded(branch_bias(spans, context[1] - context[0])))

    def _folded(self, bias: Tensor) -> Tensor:
        return bias.repeat(self.heads, 1)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """q [1, Hq, T, D] and k, v [1, Hkv, T, D] of the row, q and k rotated -> [1, Hq, T, D]."""
        edges = sorted({edge for block in self.blocks for edge in (*block.rows, *(e for s in block.keys for e in s))})
        lengths = [b - a for a, b in zip(edges, edges[1:], strict=False)]
        at = {edge: i for i, edge in enumerate(edges)}
        kv = k.shape[1]
        qs, ks, vs = (x.split(lengths, dim=2) for x in (q, k, v))

        def stretch(pieces: Sequence[Tensor], spans: Sequence[tuple[int, int]]) -> Tensor:
            chosen = [piece for a, b in spans for piece in pieces[at[a] : at[b]]]
            return chosen[0] if len(chosen) == 1 else torch.cat(chosen, dim=2)

        out = []
        for block in self.blocks:
            rows = stretch(qs, [block.rows])
            keys, values = stretch(ks, block.keys), stretch(vs, block.keys)
            if block.bias is None:
                done = F.scaled_dot_product_attention(rows, keys, values, is_causal=True, scale=scale, enable_gqa=True)
                out.append(done)
                continue
            folded = rows.unflatten(1, (kv, self.heads)).flatten(2, 3)
            done = F.scaled_dot_product_attention(folded, keys, values, attn_mask=block.bias, scale=scale)
            out.append(done.unflatten(2, (self.heads, -1)).flatten(1, 2))
        return torch.cat(out, dim=2)


def _chunks(branches: Sequence[tuple[int, int]]) -> Sequence[list[tuple[int, int]]]:
    """Neighbouring branches of about CHUNK_TOKENS tokens together."""
    chunks: list[list[tuple[int, int]]] = []
    for span in branches:
        if chunks and span[1] - chunks[-1][0][0] <= CHUNK_TOKENS:
            chunks[-1].append(span)
        else:
            chunks.append([span])
    return chunks


def _asking(weights: Tensor, reading: Runs) -> Tensor:
    """Places of the row whose queries predict the beginnings of a reading's answers."""
    if not reading.branches:
        return torch.empty(0, dtype=torch.int64)
    start, stop = reading.branches[0][0], reading.branches[-1][1]
    learnt = weights[start:stop] > 0
    begins = learnt & ~torch.cat([torch.zeros(1, dtype=torch.bool), learnt[:-1]])
    first = start + begins.nonzero()[:, 0] - 1
    return torch.cat([first + i for i in range(ASKING)])[:MOST_ASKING]
