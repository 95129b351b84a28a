"""A bounded queue before a replica: first come, first served, so many at once; `Line` needs no clock."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class FullError(Exception):
    """Too many wait already.

    Attributes:
        waiting: how many.
    """

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} answers are waited for already")
        self.waiting = waiting


class WaitedError(Exception):
    """Something waited for longer than it may."""


class Line(Generic[T]):
    """Who is answered and who waits.

    Attributes:
        at_once: how many are answered at the same time.
        most: how many are answered or wait.
        held: nobody new is answered.
    """

    def __init__(self, at_once: int, most: int) -> None:
        self.at_once, self.most, self.held = at_once, most, False
        self.running: set[T] = set()
        self.waiting: deque[T] = deque()

    def __len__(self) -> int:
        return len(self.running) + len(self.waiting)

    def enter(self, ticket: T) -> list[T]:
        """Take a place; returns who is answered now that was not before.

        Raises:
            FullError: there is no place.
        """
        if len(self) >= self.most:
            raise FullError(len(self))
        self.waiting.append(ticket)
        return self.start()

    def leave(self, ticket: T) -> list[T]:
        """Give a place back, whether answered or not; returns who is answered now."""
        if ticket in self.running:
            self.running.remove(ticket)
        else:
            self.waiting.remove(ticket)
        return self.start()

    def start(self) -> list[T]:
        """Let those in who can be answered."""
        begun = []
        while self.waiting and len(self.running) < self.at_once and not self.held:
            begun.append(self.waiting.popleft())
            self.running.add(begun[-1])
        return begun


class Gate:
    """A `Line` for tasks of asyncio."""

    def __init__(self, at_once: int, most: int) -> None:
        self.line: Line[asyncio.Event] = Line(at_once, most)
        self._empty = asyncio.Event()
        self._empty.set()
        self._holding = asyncio.Lock()

    def __len__(self) -> int:
        return len(self.line)

    @asynccontextmanager
    async def place(self, wait_s: float) -> AsyncIterator[None]:
        """Be answered for the time of the block.

        Raises:
            FullError: there is no place.
            WaitedError: it took longer than `wait_s` to be next.
        """
        ticket = asyncio.Event()
        self._tell(self.line.enter(ticket))
        try:
            try:
                async with asyncio.timeout(wait_s):
                    await ticket.wait()
            except TimeoutError as error:
                raise WaitedError(f"waited {wait_s:g} s") from error
            yield
        finally:
            self._tell(self.line.leave(ticket))

    @asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """Nobody is answered for the time of the block; those who are when it begins are waited for, others queue."""
        async with self._holding:
            self.line.held = True
            try:
                await self._empty.wait()
                yield
            finally:
                self.line.held = False
                self._tell(self.line.start())

    def _tell(self, begun: list[asyncio.Event]) -> None:
        for ticket in begun:
            ticket.set()
        (self._empty.clear if self.line.running else self._empty.set)()
