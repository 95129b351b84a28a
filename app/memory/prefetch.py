"""Copies beside the model: packed groups go to the host as they are sealed, and the groups that the next layer selected
last come to the device while one layer attends.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Lane(Protocol):
    """A queue of copies beside the model's own work."""

    def run(self, work: Callable[[], None], uses: Sequence[Tensor] = ()) -> Any:
        """Do `work` after all that the model has queued so far, and after all work before; returns the mark of its end.

        Args:
            uses: the model's tensors that `work` reads and nobody else keeps.
        """

    def wait(self, mark: Any) -> None:
        """What the model queues from now on comes after the mark."""

    def finish(self, mark: Any) -> None:
        """Return when the mark has passed."""


class CudaLane:
    """A CUDA stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def run(self, work: Callable[[], None], uses: Sequence[Tensor] = ()) -> torch.cuda.Event:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        for tensor in uses:
            tensor.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            work()
            return self._stream.record_event()

    def wait(self, mark: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self._device).wait_event(mark)

    def finish(self, mark: torch.cuda.Event) -> None:
        mark.synchronize()


@dataclass(eq=False)
class Flight:
    """Groups on their way from packed slots to hot ones, or to packed ones. Until it is over neither are for others.

    Attributes:
        owner: table of the memory whose groups these are.
        slots: [n] where they go to; the tensor must live until the copy is over.
    """

    lane: Lane
    mark: Any
    owner: Any
    slots: Tensor

    def land(self) -> None:
        """Let the model's work wait for the copy."""
        self.lane.wait(self.mark)

    def finish(self) -> None:
        """Wait until the packed slots have been read or written."""
        self.lane.finish(self.mark)


class Selected:
    """Which groups each layer of one memory took last, and whether one of them may have gone since."""

    def __init__(self) -> None:
        self._groups: dict[int, tuple[Tensor, int]] = {}

    def note(self, layer: int, groups: Tensor, evictions: int) -> None:
        """Layer `layer` took these groups [n] after its pool had evicted so often."""
        self._groups[layer] = groups, evictions

    def wanted(self, layer: int, evictions: int) -> Tensor | None:
        """The groups that `layer` took last, ascending; None when they must all be hot still."""
        groups, before = self._groups.get(layer, (None, evictions))
        return None if groups is None or before == evictions else groups.unique()
