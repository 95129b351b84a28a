"""Who has the model: answers beside each other, any other job alone. One that runs behind the others gives way."""

import threading
from collections.abc import Callable
from typing import Literal

GIVE_WAY_S = 60.0  # a segment takes a second or two
MOST_BESIDE = 8  # answers at once
Kind = Literal["alone", "beside", "behind"]


class Turns:
    """A lock with three sorts of holders.

    Attributes:
        wanted: how many wait for a job behind to end.
    """

    def __init__(self) -> None:
        self.wanted = 0
        self._changed = threading.Condition()
        self._kind: Kind | None = None  # None: nobody has it
        self._holders = 0
        self._end: Callable[[], None] = lambda: None  # ends the job behind that has it

    def take(
        self, behind: bool = False, *, beside: bool = False, end: Callable[[], None] = lambda: None,
        wait_s: float = 0.0,
    ) -> bool:  # fmt: skip
        """Take the model; False when it cannot be had.

        Args:
            behind: the job gives way to others, and does not begin while one waits.
            beside: others of its sort may have it too, MOST_BESIDE of them.
            end: how a job behind is told to end, when another wants the model; its end is waited for.
            wait_s: how long the end of another job is waited for.
        """
        kind: Kind = "behind" if behind else "beside" if beside else "alone"
        with self._changed:
            if behind:
                if self._kind is not None or self.wanted:
                    return False
            elif not self._wait(kind, wait_s):
                return False
            self._kind, self._holders, self._end = kind, self._holders + 1, end
            return True

    def _wait(self, kind: Kind, wait_s: float) -> bool:
        """Wait until the model can be had, called by one that goes before those behind."""
        self.wanted += 1
        try:
            if self._kind == "behind":
                self._end()
                self._changed.wait_for(lambda: self._kind != "behind", max(wait_s, GIVE_WAY_S))
            return self._changed.wait_for(lambda: self._open_to(kind), wait_s)
        finally:
            self.wanted -= 1

    def _open_to(self, kind: Kind) -> bool:
        return self._kind is None or kind == self._kind == "beside" and self._holders < MOST_BESIDE

    def give_back(self) -> None:
        with self._changed:
            self._holders -= 1
            if not self._holders:
                self._kind = None
            self._changed.notify_all()
