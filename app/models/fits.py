"""Whether a model fits this computer: by the memory that its weights take, and by how fast it would be here."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from app.system import size_text

ROOM = 1.1  # of the bytes of weights, for what loading takes beside them
NEAR = 8.0  # times larger or smaller: beyond that the computer's own speed says more than a model's
COMPUTER = 10**9  # parameters of what `measured` gives
SIZE = 512  # rows of the matrices that are multiplied to measure this computer
MEASURED_S = 0.2
SHARE = 0.5  # of what multiplying matrices alone would give, that reading a text reaches


@dataclass(frozen=True)
class Fit:
    """What can be said of a model before it is loaded.

    Attributes:
        needs_bytes: of memory, for its weights.
        free_bytes: of memory, now.
        tokens_per_s: how many tokens of a text it would read here, about; 0 where nothing is known.
    """

    needs_bytes: int
    free_bytes: int
    tokens_per_s: float = 0.0

    @property
    def fits(self) -> bool:
        return self.needs_bytes <= self.free_bytes

    @property
    def words(self) -> str:
        """In a sentence: "Fits: takes 988 MB of 16 GB free, reads about 240 tokens a second here"."""
        taken = f"{size_text(self.needs_bytes)} of memory, {size_text(self.free_bytes)} are free"
        if not self.fits:
            return f"Too large for this computer now: needs {taken}"
        speed = f"; reads about {_rounded(self.tokens_per_s):,} tokens a second here" if self.tokens_per_s else ""
        return f"Fits: needs {taken}{speed}"


def _rounded(speed: float) -> int:
    """Two digits: it is an estimate."""
    step = 10 ** max(0, len(str(int(speed))) - 2)
    return max(1, round(speed / step) * step)


def fit(parameters: int, weight_bytes: int, free_bytes: int, speeds: Sequence[tuple[int, float]]) -> Fit:
    """Whether a model fits, and how fast it would read.

    Args:
        speeds: (parameters, tokens a second) of models that were measured here, the computer itself (`measured`) last.
    """
    return Fit(round(weight_bytes * ROOM), free_bytes, expected(parameters, speeds))


def expected(parameters: int, speeds: Sequence[tuple[int, float]]) -> float:
    """Tokens a second that a model would read: from the measured one that is nearest in size, else from the last.

    Reading takes time by the parameters.
    """
    if not parameters or not speeds:
        return 0.0
    usable = [(known, speed) for known, speed in speeds if known and speed]
    near = [(max(known, parameters) / min(known, parameters), known, speed) for known, speed in usable]
    times, known, speed = min(near, default=(NEAR, 0, 0.0))
    if times >= NEAR:
        known, speed = speeds[-1]
    return speed * known / parameters


def free_memory() -> int:
    """Bytes for weights: of the GPU where there is one, else of the computer."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def weight_itemsize() -> int:
    """Bytes of a weight as it will be loaded here."""
    from app.models.checkpoint import pick_device, pick_dtype

    return pick_dtype(pick_device("auto")).itemsize


def measured() -> tuple[int, float]:
    """This computer as if it were a model of a billion parameters: (parameters, tokens a second), by multiplying."""
    import torch

    from app.models.checkpoint import pick_device, pick_dtype

    device = pick_device("auto")
    left, right = (torch.ones(SIZE, SIZE, device=device, dtype=pick_dtype(device)) for _ in range(2))
    left @ right
    began, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < MEASURED_S:
        (left @ right)[0, 0].item()
        done += 1
    operations = done * 2 * SIZE**3 / elapsed
    return COMPUTER, SHARE * operations / (2 * COMPUTER)
