"""StoredGroups: where an open memory's keys and values come from, one group at a time, when they are selected."""

import logging
from collections.abc import Callable, Sequence

from app.errors import DamagedBlock, NotFoundError, StoreError
from app.memory.memory import RegionMemory
from app.store.blocks import BlockStore

log = logging.getLogger(__name__)
GROUPS_AT_ONCE = 32  # in one query: 8 MiB with rows of a quarter of one


class StoredGroups:
    """The blocks of one memory. What is damaged or gone is given as None, and taken back when it was read again.

    Attributes:
        read_again: groups that were lost and read again.
    """

    def __init__(
        self, blocks: BlockStore, keys: Sequence[str], put: Callable[[Sequence[str], RegionMemory, Sequence[int]], None]
    ) -> None:
        """
        Args:
            keys: of the memory's groups, in order.
            put: queues sealed groups for writing, as `Reader.put_groups`.
        """
        self._blocks, self._keys, self._put = blocks, keys, put
        self.read_again = 0

    def fetch(self, groups: Sequence[int], rows: range) -> list[bytes | None]:
        """Some stored rows of groups, those of one group joined; None for a group that is gone or damaged."""
        found: list[bytes | None] = []
        for start in range(0, len(groups), GROUPS_AT_ONCE):
            some = groups[start : start + GROUPS_AT_ONCE]
            try:
                found += self._joined(some, rows)
            except (DamagedBlock, NotFoundError):
                found += [self._one(group, rows) for group in some]
        return found

    def _joined(self, groups: Sequence[int], rows: range) -> list[bytes]:
        data = self._blocks.read_many_rows([(self._keys[group], row) for group in groups for row in rows])
        return [b"".join(data[i : i + len(rows)]) for i in range(0, len(data), len(rows))]

    def _one(self, group: int, rows: range) -> bytes | None:
        try:
            try:
                return self._joined([group], rows)[0]
            except NotFoundError:  # it may be waiting for the writer
                self._blocks.flush()
                return self._joined([group], rows)[0]
        except (StoreError, NotFoundError) as error:
            log.warning("%s", error)
            return None

    def replace(self, group: int, memory: RegionMemory) -> None:
        """Store a group that was lost and has been read again."""
        self.read_again += 1
        try:
            self._put(self._keys[group : group + 1], memory, [group])
        except StoreError as error:  # it stays in RAM
            log.warning("%s", error)
            return
        memory.pages.settle([group])
