"""Models that can be fetched: which fit this computer, and the fetching of one at a time."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from app.errors import InUseError, NotFoundError
from app.models import hub
from app.models.catalog import CATALOGUE, Offered
from app.models.fits import Fit, fit
from app.models.hub import Fetched

Fetch = Callable[[str, Callable[[], bool]], Iterator[Fetched]]


@dataclass(frozen=True)
class Offer:
    """A model of the catalogue, as it stands for this computer.

    Attributes:
        why_not: why it cannot be fetched now; "" where it can.
        begun_bytes: of it that are here from a fetching that was stopped.
    """

    model: Offered
    fit: Fit
    why_not: str = ""
    begun_bytes: int = 0


class Fetching:
    """Fetches models from the hub, when a user asks for one.

    Attributes:
        running: name of the one that is on its way, "" for none.
    """

    def __init__(self, fetch: Fetch = hub.fetch, offline: Callable[[], str] = hub.no_network) -> None:
        self._fetch, self._offline = fetch, offline
        self._one = threading.Lock()
        self._stop = threading.Event()
        self.running = ""

    def offers(
        self, free_bytes: int, itemsize: int, speeds: Sequence[tuple[int, float]], have: Sequence[str] = ()
    ) -> list[Offer]:
        """The models that are not here yet.

        Args:
            free_bytes, itemsize: memory for weights, and bytes of a weight once loaded.
            speeds: see `app.models.fits.expected`.
            have: names of those that are here.
        """
        offline = self._offline()
        found = []
        for model in CATALOGUE:
            if model.id in have:
                continue
            its = fit(model.parameters, model.parameters * itemsize, free_bytes, speeds)
            found.append(Offer(model, its, offline, hub.here(model.id)))
        return found

    def fetch(self, name: str) -> Iterator[Fetched]:
        """Fetch a model of the catalogue; closing the generator stops it.

        Raises:
            NotFoundError: it is not offered.
            InUseError: another one is on its way.
            ModelError, CancelledError: see `app.models.hub.fetch`.
        """
        if name not in [model.id for model in CATALOGUE]:
            raise NotFoundError(f"model {name}: is not on the list")
        if not self._one.acquire(blocking=False):
            raise InUseError(f"{self.running} is on its way; wait until it is here, or stop it")
        try:
            self.running = name
            self._stop.clear()
            with closing(self._fetch(name, self._stop.is_set)) as steps:
                yield from steps
        finally:
            self.running = ""
            self._one.release()

    def stop(self) -> None:
        """Stop what is on its way; what came is kept."""
        self._stop.set()
