"""Graphs: tensor work of fixed shapes in fixed places, recorded once on a CUDA device and replayed without Python."""

from collections.abc import Callable

import torch
from torch import Tensor

from app.kernels.backend import use_triton


class Captured:
    """Work that reads and writes the same tensors every time, and never waits for the device.

    The first call runs it as it is, which compiles its kernels; on a CUDA device that runs Triton's kernels the second
    one records it, and from then on it is replayed. Elsewhere every call runs it.

    Attributes:
        replays: how often it was replayed.
    """

    def __init__(self, work: Callable[[], Tensor]) -> None:
        self._work, self._graph, self._result = work, None, None
        self.replays = 0

    def __call__(self) -> Tensor:
        """What the work returns; the next call may write over it."""
        if self._result is None or not (self._result.is_cuda and use_triton(self._result)):
            self._result = self._work()
            return self._result
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._result = self._work()
        self._graph.replay()
        self.replays += 1
        return self._result
