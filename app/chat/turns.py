"""Who has the model: one job at a time. One that runs behind the others gives way to them."""

import threading
from collections.abc import Callable


GIVE_WAY_S = 60.0  # a segment takes a second or two


class Turns:
    """A lock with two sorts of holders.

    Attributes:
        wanted: how many wait for a job behind to end.
    """

    def __init__(self) -> None:
        self.wanted = 0
        self._changed = threading.Condition()
        self._behind: bool | None = None  # None: nobody has it

    def take(self, behind: bool = False, *, give_way: Callable[[], None] = lambda: None, wait_s: float = 0.0) -> bool:
        """Take the model; False when it cannot be had.

        Args:
            behind: the job gives way to others, and does not begin while one waits.
            give_way: ends a job behind; its end is waited for.
            wait_s: how long the end of another job is waited for.
        """
        with self._changed:
            if behind:
                if self._behind is not None or self.wanted:
                    return False
            elif not self._wait(give_way, wait_s):
                return False
            self._behind = behind
            return True

    def _wait(self, give_way: Callable[[], None], wait_s: float) -> bool:
        """Wait until the model is free, called by one that goes before those behind."""
        self.wanted += 1
        try:
            if self._behind:
                give_way()
                self._changed.wait_for(lambda: not self._behind, max(wait_s, GIVE_WAY_S))
            return self._changed.wait_for(lambda: self._behind is None, wait_s)
        finally:
            self.wanted -= 1

    def give_back(self) -> None:
        with self._changed:
            self._behind = None
            self._changed.notify_all()
