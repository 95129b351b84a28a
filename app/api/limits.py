"""What one user may take: documents, bytes, tokens a minute. More is refused with 429, and when to ask again."""

import math
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from app.api.errors import ApiError
from app.records import Done
from app.store.users import Limits

if TYPE_CHECKING:
    from app.chat import DocumentChat

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
            ApiError: there are as many as there may be, or they take too much.
        """
        if self.limits is None:
            return
        if len(chat.library.documents()) >= self.limits.documents:
            raise _refused(f"your library holds {self.limits.documents} documents, which is all it may; delete some")
        if _bytes(chat.settings.folder) >= self.limits.gigabytes * 1e9:
            raise _refused(f"your documents take the {self.limits.gigabytes:g} GB that they may; delete some")

    def question(self) -> None:
        """Let another question in.

        Raises:
            ApiError: too many tokens were read and said in the last minute.
        """
        if self.limits is None:
            return
        with self._lock:
            self._forget()
            if sum(tokens for _, tokens in self._spent) < self.limits.tokens_per_minute:
                return
            wait_s = math.ceil(self._spent[0][0] + MINUTE_S - time.monotonic())
        raise _refused(f"you may take {self.limits.tokens_per_minute:,} tokens a minute; ask again later", wait_s)

    def spend(self, done: Done) -> None:
        """Count an answer."""
        with self._lock:
            self._forget()
            self._spent.append((time.monotonic(), done.stats.tokens_read + done.stats.new_tokens))

    def _forget(self) -> None:
        while self._spent and self._spent[0][0] < time.monotonic() - MINUTE_S:
            self._spent.popleft()


def _refused(message: str, wait_s: int | None = None) -> ApiError:
    code = "rate_limit_exceeded" if wait_s is not None else "insufficient_quota"
    return ApiError(message, status=429, code=code, retry_after_s=wait_s)


def _bytes(folder: Path) -> int:
    """Of all files of a library but the memories."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.name.startswith(MEMORIES))
