"""What the ingress knows: which replica holds which document, how often each is asked about, where each talk goes on.

All of it can be lost: the replicas' stores say again who holds what, and a talk is read again where it comes to.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from app.cluster.placement import PART, copies, home, moves, next_copy, ranked

HALF_LIFE = 100.0  # questions, times replicas, after which one counts half
FEW = 20.0  # questions, times replicas, before popularity is believed
MOST_TALKS = 100_000
TWO = 2  # replicas that a talk without documents chooses from


class Heat:
    """How often each document is asked about, of the questions of late."""

    def __init__(self, replicas: int) -> None:
        self._grow = 2.0 ** (1.0 / (HALF_LIFE * replicas))
        self._few = FEW * replicas
        self._unit = 1.0  # what a question counts now; grows, so that the others need not shrink
        self._counts: dict[str, float] = {}
        self._total = 0.0

    def ask(self, document: str) -> None:
        """Count a question."""
        self._unit *= self._grow
        self._counts[document] = self._counts.get(document, 0.0) + self._unit
        self._total += self._unit
        if self._unit > 1e100:
            self._counts = {d: c / self._unit for d, c in self._counts.items() if c / self._unit > 1e-9}
            self._total, self._unit = self._total / self._unit, 1.0

    @property
    def questions(self) -> float:
        """How many questions count, the old ones less."""
        return self._total / self._unit

    def share(self, document: str) -> float:
        """Of all questions, those about the document; 0 before there are enough to tell."""
        return self._counts.get(document, 0.0) / self._total if self.questions >= self._few else 0.0

    def above(self, share: float) -> list[str]:
        """Documents with more than a share, the hottest first."""
        if self.questions < self._few:
            return []
        found = [d for d, count in self._counts.items() if count > share * self._total]
        return sorted(found, key=lambda d: -self._counts[d])


class Catalog:
    """Which replica holds which document and answers which talk.

    Attributes:
        weights: of the replicas, by name.
        most_copies: of one document.
    """

    def __init__(self, weights: Mapping[str, float], most_copies: int | None = None, part: float = PART) -> None:
        self.weights = dict(weights)
        self.most_copies, self.part = most_copies or len(weights), part
        self.heat = Heat(len(weights))
        self._holders: dict[str, list[str]] = {}
        self._sizes: dict[str, float] = {}
        self._held = dict.fromkeys(self.weights, 0.0)
        self._talks: OrderedDict[str, str] = OrderedDict()

    # --- documents

    def __contains__(self, document: str) -> bool:
        return document in self._holders

    def holders(self, document: str) -> tuple[str, ...]:
        """The replicas that hold a document, in its ranking: its home first."""
        return tuple(self._holders.get(document, ()))

    def held(self, replica: str) -> float:
        """The size of all documents of a replica."""
        return self._held[replica]

    def note(self, document: str, replica: str, size: float) -> None:
        """A replica holds a document."""
        holders = self._holders.setdefault(document, [])
        if replica not in holders:
            holders[:] = ranked(document, {name: self.weights[name] for name in (*holders, replica)})
            self._sizes.setdefault(document, size)
            self._held[replica] += self._sizes[document]

    def forget(self, document: str) -> None:
        """A document is gone from everywhere."""
        for replica in self._holders.pop(document, ()):
            self._held[replica] -= self._sizes[document]
        self._sizes.pop(document, None)

    def home(self, document: str, size: float) -> str:
        """Where a document is, or where it goes."""
        holders = self.holders(document)
        return holders[0] if holders else home(document, size, self.weights, self._held)

    # --- questions

    def route(
        self, documents: Sequence[str], talk: str, first: bool, load: Callable[[str], float], size: float = 0
    ) -> str:
        """The replica that answers: where the talk was before, else the least busy of those that hold its document.

        Args:
            documents: what the talk is about, the one that decides first.
            talk: names the talk in all its turns.
            first: whether this is its first turn; a later one of an unknown talk goes where its name ranks first.
            load: how many are answered or wait at a replica.
            size: of a first document that nobody holds yet.
        """
        held = self.holders(documents[0]) if documents else tuple(ranked(talk, self.weights)[:TWO])
        choice = held or (self.home(documents[0], size),)
        chosen = self._talks.get(talk)
        if chosen not in choice:
            order = ranked(talk, {name: self.weights[name] for name in choice})
            chosen = min(order, key=lambda name: (load(name), order.index(name))) if first else order[0]
        self._talks[talk] = chosen
        self._talks.move_to_end(talk)
        if len(self._talks) > MOST_TALKS:
            self._talks.popitem(last=False)
        if documents:
            self.heat.ask(documents[0])
        return chosen

    # --- copies

    def due(self, load: Callable[[str], float]) -> list[tuple[str, str]]:
        """(document, replica) of the copies that are wanted: one for each document that is too hot for its holders.

        While these have nothing to do, no copy is wanted.
        """
        found = []
        for document in self.heat.above(self.part / len(self.weights)):
            holders = self.holders(document)
            wanted = min(self.most_copies, copies(self.heat.share(document), len(self.weights), self.part))
            if holders and len(holders) < wanted and any(load(replica) for replica in holders):
                replica = next_copy(document, self.weights, holders)
                if replica is not None:
                    found.append((document, replica))
        return found

    def join(self, replica: str, weight: float = 1.0) -> list[str]:
        """A replica is new, or empty; returns the documents that go there; copies elsewhere stay."""
        self.weights[replica] = weight
        self._held.setdefault(replica, 0.0)
        homes = {document: holders[0] for document, holders in self._holders.items() if replica not in holders}
        return moves(homes, self.weights, replica)

    def spread(self) -> float:
        """What the fullest replica holds, as a multiple of the mean."""
        mean = sum(self._held.values()) / sum(self.weights.values())
        return max(self._held[name] / self.weights[name] for name in self.weights) / mean if mean else math.nan
