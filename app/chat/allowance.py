"""What one user may take: documents, bytes, tokens a minute. More is refused, and it is said when to ask again."""

import math
import threading
import time
from collections import deque
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from app.errors import LimitError
from app.records import Done
from app.store.users import Limits

if TYPE_CHECKING:
    from app.chat import DocumentChat

R = TypeVar("R")
MINUTE_S = 60.0
MEMORIES = "kv.db"  # has a budget of its own, beyond which the oldest memories go


class Allowance:
    """Counts what one user takes; without limits nothing is refused."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits
        self._lock = threading.Lock()
        self._spent: deque[tuple[float, int]] = deque()  # (when, tokens)

    def room(self, chat: "DocumentChat") -> None:
        """Let another document in.

        Raises:
            LimitError: there are as many as there may be, or they take too much.
        """
        if self.limits is None:
            return
        if len(chat.library.documents()) >= self.limits.documents:
            raise LimitError(f"your library holds {self.limits.documents} documents, which is all it may; delete some")
        if _bytes(chat.settings.folder) >= self.limits.gigabytes * 1e9:
            raise LimitError(f"your documents take the {self.limits.gigabytes:g} GB that they may; delete some")

    def question(self) -> None:
        """Let another question in.

        Raises:
            LimitError: too many tokens were read and said in the last minute.
        """
        if self.limits is None:
            return
        with self._lock:
            self._forget()
            if sum(tokens for _, tokens in self._spent) < self.limits.tokens_per_minute:
                return
            wait_s = math.ceil(self._spent[0][0] + MINUTE_S - time.monotonic())
        raise LimitError(f"you may take {self.limits.tokens_per_minute:,} tokens a minute; ask again later", wait_s)

    def spend(self, tokens: int) -> None:
        """Count tokens that were read or said."""
        with self._lock:
            self._forget()
            self._spent.append((time.monotonic(), tokens))

    def counted(self, events: Generator[Any, None, R]) -> Generator[Any, None, R]:
        """The same events; what an answer among them took is counted."""
        try:
            while True:
                try:
                    event = next(events)
                except StopIteration as end:
                    return end.value
                if isinstance(event, Done):
                    self.spend(event.stats.tokens_read + event.stats.new_tokens)
                yield event
        finally:
            events.close()

    def _forget(self) -> None:
        while self._spent and self._spent[0][0] < time.monotonic() - MINUTE_S:
            self._spent.popleft()


def _bytes(folder: Path) -> int:
    """Of all files of a library but the memories."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.name.startswith(MEMORIES))
