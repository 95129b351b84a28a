"""Memories whose keys and values stay in the store until they are selected."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from app.errors import LecternError, StoreError
from app.memory.groups import PagesLost
from app.memory.memory import RegionMemory
from app.memory.pages import KVPages
from app.runtime.cache import RegionCache

log = logging.getLogger(__name__)
MOST_GROUPS = 16  # read again together


def restore(
    cache: RegionCache,
    lost: PagesLost,
    forward: Callable[[RegionCache, Sequence[int]], Any],
    tried: set[tuple[KVPages, int]],
    cut_tokens: int = 0,
) -> None:
    """Read lost groups again; those of an attached memory that cannot be are left out, as if they were muted.

    Args:
        forward: as for `read_again`.
        cut_tokens: see `read_again`.
        tried: what was read again in this step of the model; what is lost once more cannot be had.

    Raises:
        StoreError: they belong to the text that is being read, which cannot go on without them.
    """
    now = {(lost.pages, group) for group in lost.groups}
    try:
        if now & tried:
            raise lost
        tried |= now
        read_again(cache, lost, forward, cut_tokens)
    except (PagesLost, LecternError, RuntimeError, MemoryError) as error:  # memory that runs out is a RuntimeError
        log.warning("groups %s are neither stored nor can they be read again: %s", lost.groups, error)
        if not any(memory.pages is lost.pages for memory in cache.memories):
            raise StoreError(
                f"the stored memory of groups {lost.groups} is damaged and cannot be made again ({error}); "
                "delete the memory (documents evict) and read the document again"
            ) from error
        lost.pages.leave_out(lost.groups)
        cache.look()


def read_again(
    cache: RegionCache,
    lost: PagesLost,
    forward: Callable[[RegionCache, Sequence[int]], Any],
    cut_tokens: int = 0,
) -> None:
    """Read groups again whose stored copy cannot be used, from their token ids.

    Everything before a group is still known, or read again first, so what comes out is what was lost, up to the
    rounding of other sums; bit for bit where texts are always cut alike.

    Args:
        forward: runs tokens into a cache's tail and raises what happens there.
        cut_tokens: of a segment, in which texts were read and are read again; 0 where that makes no difference.

    Raises:
        PagesLost: nobody keeps the groups' tokens, or what was just read again is lost at once.
    """
    found = [memory for memory in (*cache.memories, cache.tail) if memory.pages is lost.pages]
    if not found or lost.pages.source is None:
        raise lost
    memory, pending, done = found[0], set(lost.groups), set[int]()
    per_cut = max(1, cut_tokens // memory.shape.attention.group_tokens)
    while pending:
        last = min(pending)
        first = last // per_cut * per_cut
        while first and not memory.pages.has(first - 1):  # a group always looks at the one before
            first = (first - 1) // per_cut * per_cut
        pending |= set(range(first, last))
        if cut_tokens:
            groups = list(range(first, min(first + per_cut, memory.groups)))
        else:
            groups = [g for g in range(first, first + MOST_GROUPS) if pending.issuperset(range(first, g + 1))]
        try:
            _read_groups(memory, groups, forward)
        except PagesLost as more:
            if done & set(more.groups):
                raise
            pending |= set(more.groups)
            continue
        pending -= set(groups)
        done |= set(groups)
        lost.pages.reread |= set(groups)
        for group in groups:
            lost.pages.source.replace(group, memory)


def _read_groups(memory: RegionMemory, groups: Sequence[int], forward: Callable[..., Any]) -> None:
    """Run the tokens of consecutive groups again, in place; the rest of the memory stays as it is."""
    size = memory.shape.attention.group_tokens
    start, end = groups[0] * size, (groups[-1] + 1) * size
    log.warning("tokens %d to %d are read again: their stored memory cannot be used", start, end)
    ids, filled = memory.token_ids, memory.filled
    books = [[book.clone() for book in layers] for layers in (memory.mass, memory.exposure)]
    memory.filled, memory.token_ids = [start] * memory.shape.layers, ids[:start]
    try:
        forward(RegionCache(memory.shape, tail=memory), ids[start:end])
    finally:
        memory.filled, memory.token_ids = filled, ids
        memory.mass, memory.exposure = books
