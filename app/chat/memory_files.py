"""Memories that drop tokens, in the store: written when they are complete, brought back whole.

Their groups are slots, not tokens, so the blocks hang on everything that was read: one key for what the slots are, one
for each group of them.
"""

import hashlib
import logging
from collections.abc import Sequence

from app.errors import DamagedBlock, NotFoundError
from app.memory.memory import RegionMemory
from app.memory.shape import MemoryShape
from app.store.blocks import BlockStore

log = logging.getLogger(__name__)


def state_key(root: str) -> str:
    """Key of what the slots of a memory are; `root` names all that was read."""
    return hashlib.sha256(f"{root}/slots".encode()).hexdigest()


def block_keys(state: str, groups: int) -> list[str]:
    """Keys of a memory's blocks, that of its state last."""
    return [*(hashlib.sha256(f"{state}/{group}".encode()).hexdigest() for group in range(groups)), state]


def put(blocks: BlockStore, state: str, memory: RegionMemory) -> list[str]:
    """Queue a memory for writing; returns the keys of its blocks.

    Args:
        state: see `state_key`.

    Raises:
        StoreError: an earlier block could not be written.
    """
    keys = block_keys(state, memory.groups)
    for group, key in enumerate(keys[:-1]):
        blocks.put(key, [], *memory.export_group(group), "raw")
    blocks.put(state, [], memory.export_state(), [], "raw")  # last: whoever finds it finds the rest
    return keys


def bring(
    blocks: BlockStore, state: str, token_ids: Sequence[int], shape: MemoryShape, *, frozen: bool
) -> RegionMemory:
    """A memory that `put` stored; an empty one when it is not there, or damaged, which the log names.

    Args:
        token_ids: all that it read.
        frozen: whether it is the memory of a document, to which nothing is appended.
    """
    memory = RegionMemory(shape)
    if not blocks.known_prefix([state]):
        return memory
    try:
        data = blocks.get_index(state, [])
        keys = block_keys(state, RegionMemory.stored_groups(data, shape))[:-1]
        memory.import_slots(list(token_ids), data, blocks.get_many(keys, [[] for _ in keys]))
    except (DamagedBlock, NotFoundError, ValueError) as error:
        log.warning("%s", error)
        return RegionMemory(shape)
    return memory.freeze() if frozen else memory
