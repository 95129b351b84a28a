"""Many replicas on paper: how evenly documents and questions lie, what moves when one joins, how long answers wait.

    python benchmarks/cluster_sim.py

The placement, the catalog and the queue are those that `serve --replicas` runs (app/cluster); time is simulated. Users
ask in talks of a few turns about one document, which they choose by Zipf's law. A replica answers 8 questions at once,
each slower the more there are: 8 together say GAIN times what one says (benchmarks/streams.py). Load is the rate of
questions over the rate that all replicas can answer.

The exit code is 1 where the fullest replica, or at a load of 0.3 or more the busiest, has more than 1.5 times the mean,
or more than 2% of the documents move when one joins. At smaller loads nobody waits, and fewer copies are made.
"""

import argparse
import heapq
import json
import math
import random
import sys
from bisect import bisect
from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate, count
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.cluster.catalog import Catalog
from app.cluster.line import FullError, Line
from app.eval import report
from benchmarks import machine

GAIN = 2.8  # of 8 answers at once over one
AT_ONCE, MOST = 8, 32  # as in app/api/routes.py and app/chat/jobs.py
ANSWER_S = 5.0  # of one answer alone, in the mean
TURNS = 5  # of a talk, in the mean
LOOK_S = 5.0  # how often hot documents are looked for
MOST_LOAD, MOST_MOVED, COUNTS_FROM = 1.5, 0.02, 0.3


def speed(running: int) -> float:
    """What so many answers at once say together, one alone says 1."""
    return running ** (math.log(GAIN) / math.log(AT_ONCE))


@dataclass
class Replica:
    """A replica in simulated time: its queue, and what is left of the answers that run."""

    line: Line[int] = field(default_factory=lambda: Line(AT_ONCE, MOST))
    left: dict[int, float] = field(default_factory=dict)
    at: float = 0.0
    version: int = 0  # of the next end, which changes with every arrival

    def advance(self, now: float) -> None:
        """Let the answers that run go on until now."""
        if self.left:
            done = (now - self.at) * speed(len(self.left)) / len(self.left)
            self.left = {ticket: work - done for ticket, work in self.left.items()}
        self.at = now

    def next_end(self) -> tuple[float, int]:
        """(when the next answer ends, its ticket)."""
        ticket = min(self.left, key=lambda t: self.left[t])
        return self.at + max(0.0, self.left[ticket]) * len(self.left) / speed(len(self.left)), ticket


class Simulation:
    """Questions of many users over one catalog, from an empty start.

    Args:
        exponent: of Zipf's law.
        most_copies: of one document.
    """

    def __init__(
        self, replicas: int, documents: int, users: int, exponent: float, most_copies: int | None, seed: int
    ) -> None:
        self.random = random.Random(seed)
        self.catalog = Catalog({f"replica-{number}": 1.0 for number in range(replicas)}, most_copies)
        self.replicas = {name: Replica() for name in self.catalog.weights}
        self.names = [f"document-{number}" for number in range(documents)]
        for name in self.names:
            size = self.random.lognormvariate(0, 1)  # a few books among many papers
            self.catalog.note(name, self.catalog.home(name, size), size)
        shuffled = self.random.sample(self.names, documents)  # popularity says nothing of size or place
        self.popular, self.weights = shuffled, list(accumulate(1 / rank**exponent for rank in range(1, documents + 1)))
        self.talks: list[tuple[str, str] | None] = [None] * users  # (document, name of the talk) of each user
        self.copied = 0

    def run(self, load: float, questions: int, warm_up: int) -> dict[str, Any]:
        """So many questions at this load; what is counted begins after the warm-up."""
        rate = load * len(self.replicas) * speed(AT_ONCE) / ANSWER_S
        ends: list[tuple[float, int, str, int]] = []  # (when, version, replica, ticket)
        arrived: dict[int, float] = {}
        waits: list[float] = []
        asked: Counter[str] = Counter(dict.fromkeys(self.replicas, 0))
        refused, now, look = 0, 0.0, 0.0
        for ticket in range(questions + warm_up):
            now += self.random.expovariate(rate)
            while ends and ends[0][0] <= now:
                self._end(heapq.heappop(ends), ends, arrived, waits, warm_up)
            if now >= look:
                look = now + LOOK_S
                for document, replica in self.catalog.due(self.load):
                    self.catalog.note(document, replica, 0.0)
                    self.copied += 1
            document, talk, first = self._question(ticket)
            name = self.catalog.route([document], talk, first, self.load)
            asked[name] += ticket >= warm_up
            replica = self.replicas[name]
            replica.advance(now)
            try:
                begun = replica.line.enter(ticket)
            except FullError:
                refused += ticket >= warm_up
                continue
            arrived[ticket] = now
            self._begin(name, begun, ends, arrived, waits, warm_up)
        waits.sort()
        mean = sum(asked.values()) / len(self.replicas)
        return {
            "load": load, "questions": questions, "refused": round(refused / questions, 4),
            "largest_load": round(max(asked.values()) / mean, 3), "copies": self.copied,
            "wait_median_s": round(waits[len(waits) // 2], 2), "wait_p99_s": round(waits[int(0.99 * len(waits))], 2),
        }  # fmt: skip

    def load(self, name: str) -> int:
        """How many are answered or wait."""
        return len(self.replicas[name].line)

    def _question(self, ticket: int) -> tuple[str, str, bool]:
        """(document, talk, whether it is its first turn) of the next question of some user."""
        user = self.random.randrange(len(self.talks))
        known = self.talks[user]
        if known is None or self.random.random() < 1 / TURNS:
            place = bisect(self.weights, self.random.random() * self.weights[-1])
            self.talks[user] = (self.popular[place], f"{user}/{ticket}")
            return *self.talks[user], True
        return *known, False

    def _begin(
        self, name: str, begun: list[int], ends: list[Any], arrived: dict[int, float], waits: list[float], warm_up: int
    ) -> None:
        replica = self.replicas[name]
        for ticket in begun:
            replica.left[ticket] = self.random.lognormvariate(-0.125, 0.5) * ANSWER_S
            if ticket >= warm_up:
                waits.append(replica.at - arrived[ticket])
        replica.version += 1
        if replica.left:
            when, ticket = replica.next_end()
            heapq.heappush(ends, (when, replica.version, name, ticket))

    def _end(
        self,
        end: tuple[float, int, str, int],
        ends: list[Any],
        arrived: dict[int, float],
        waits: list[float],
        warm_up: int,
    ) -> None:
        when, version, name, ticket = end
        replica = self.replicas[name]
        if version != replica.version:
            return
        replica.advance(when)
        del replica.left[ticket], arrived[ticket]
        self._begin(name, replica.line.leave(ticket), ends, arrived, waits, warm_up)


def placement(replicas: int, documents: int, seed: int) -> dict[str, Any]:
    """How evenly documents lie, and what moves when a replica joins; nobody asks yet."""
    made = Simulation(replicas, documents, 1, 1.0, None, seed)
    fullest = made.catalog.spread()
    moved = made.catalog.join("replica-new")
    return {"documents": documents, "fullest": round(fullest, 3), "moved_by_join": round(len(moved) / documents, 4)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, default=100)
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--exponent", type=float, default=1.0, help="of Zipf's law (1)")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95])
    parser.add_argument("--questions", type=int, default=40_000, help="counted at each load (40,000)")
    parser.add_argument("--warm-up", type=int, default=10_000, help="before them (10,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=machine.ROOT / "benchmarks" / "results" / "cluster_sim.json")
    args = parser.parse_args()
    seeds = count(args.seed)

    def at(load: float, most_copies: int | None) -> dict[str, Any]:
        made = Simulation(args.replicas, args.documents, args.users, args.exponent, most_copies, next(seeds))
        return made.run(load, args.questions, args.warm_up)

    placed = placement(args.replicas, args.documents, args.seed)
    rows = [at(load, None) for load in args.loads]
    fewer = {str(copies): at(0.5, copies) for copies in (1, 2)}
    print(json.dumps(placed))
    print(report.table(list(rows[0]), [list(row.values()) for row in rows]))
    print("with at most 1 and 2 copies:", json.dumps(fewer))
    right = max(placed["fullest"], *(row["largest_load"] for row in rows if row["load"] >= COUNTS_FROM)) <= MOST_LOAD
    right = right and placed["moved_by_join"] <= MOST_MOVED
    result = {
        "benchmark": "cluster_sim", "replicas": args.replicas, "users": args.users, "exponent": args.exponent,
        "placement": placed, "loads": rows, "most_copies": fewer, "right": right, **machine.describe(),
    }  # fmt: skip
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
