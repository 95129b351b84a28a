"""Where documents live: weighted rendezvous hashing with bounded loads. Pure functions.

A replica is a name with a weight, how much it can hold beside the others. Every key ranks the replicas by itself, so
that nobody has to keep a table for it, and a replica that joins takes only the keys that rank it first.
"""

import hashlib
import math
from collections.abc import Collection, Mapping

SLACK = 1.25  # what a replica may hold beside its share, as a multiple of it
PART = 0.15  # of the mean load: what one copy of a document may bring


def score(key: str, replica: str, weight: float = 1.0) -> float:
    """The height of a replica for a key; of a and b, a is the higher in weight_a / (weight_a + weight_b) of all cases.

    Raises:
        ValueError: the weight is not positive.
    """
    if weight <= 0:
        raise ValueError(f"replica {replica!r} needs a weight above 0, got {weight}")
    digest = hashlib.blake2b(f"{key}\0{replica}".encode(), digest_size=8).digest()
    part = (int.from_bytes(digest, "big") + 0.5) / 2.0**64  # in (0, 1); the topmost rounds to 1
    return weight / -math.log(min(part, 1 - 2.0**-53))


def ranked(key: str, weights: Mapping[str, float]) -> list[str]:
    """Replicas by their score for a key, the highest first."""
    return sorted(weights, key=lambda replica: (-score(key, replica, weights[replica]), replica))


def home(key: str, size: float, weights: Mapping[str, float], held: Mapping[str, float], slack: float = SLACK) -> str:
    """The replica for a new document: the first in its ranking that has room.

    One has room while it holds, with the document, at most `slack` times its share of everything held, or nothing.

    Args:
        size: bytes or tokens of the document.
        held: the same of all documents of each replica.

    Raises:
        ValueError: there is no replica.
    """
    if not weights:
        raise ValueError("there is no replica to place a document on")
    order = ranked(key, weights)
    most = slack * (sum(held.get(replica, 0.0) for replica in weights) + size) / sum(weights.values())
    for replica in order:
        have = held.get(replica, 0.0)
        if not have or have + size <= most * weights[replica]:
            return replica
    return min(order, key=lambda replica: held.get(replica, 0.0) / weights[replica])


def copies(share: float, replicas: int, part: float = PART) -> int:
    """How many replicas should hold a document, so that each copy brings at most `part` of the mean load of a replica.

    Args:
        share: of all questions, those about the document.
    """
    return max(1, min(replicas, math.ceil(share * replicas / part)))


def next_copy(key: str, weights: Mapping[str, float], holders: Collection[str]) -> str | None:
    """The replica for one more copy: the first in the ranking that holds none; None where all do."""
    return next((replica for replica in ranked(key, weights) if replica not in holders), None)


def moves(homes: Mapping[str, str], weights: Mapping[str, float], joined: str) -> list[str]:
    """Keys that go to a replica that joined: those that rank it first.

    Args:
        homes: the replica of each key until now.
        weights: of all replicas, with the one that joined.
    """
    mine = weights[joined]
    return [
        key
        for key in homes
        if homes[key] != joined
        and all(score(key, joined, mine) > score(key, other, weights[other]) for other in weights if other != joined)
    ]
