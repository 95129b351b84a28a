"""Where an answer looked: the attention mass that each region of the memories received, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_PER_TOKEN = 4  # regions told of one token of the answer


@dataclass(frozen=True)
class Chosen:
    """The regions of the memories that an answer sees, and what found those that it could choose from.

    Attributes:
        attention: [N] the sinks, and regions that a draft looked at.
        words: [M] regions that the words of the question found.
        kept: [K] those of them that are left after a draft among them; None: all.
    """

    attention: Tensor
    words: Tensor
    kept: Tensor | None = None

    @property
    def regions(self) -> Tensor:
        """What the answer sees, ascending."""
        return torch.cat([self.attention, self.words]).unique() if self.kept is None else self.kept

    def found_by(self) -> dict[int, str]:
        """`attention`, `words` or `both` by region, also of those that were not kept."""
        by = dict.fromkeys(self.attention.tolist(), "attention")
        return by | {region: "both" if region in by else "words" for region in self.words.tolist()}


@dataclass(frozen=True)
class Shares:
    """Where an answer's attention went, each a share of all of it, 0 to 1; the mean over its tokens, heads and layers.

    What is left went to the first tokens of texts, which draw attention whatever they say, to what stood nearest
    before the chat, and to the answer's own words.

    Attributes:
        documents: [regions of the memories] without their sinks.
        chat: the turns before, and the system text; `question`: the question. None where tokens were dropped.
    """

    documents: tuple[float, ...] = ()
    chat: float | None = None
    question: float | None = None


class AnswerEvidence:
    """Gathers while an answer is generated.

    Attributes:
        density: [R] float32, mass per token of each region of the memories' texts, summed over heads and layers; over
            the answer's tokens the root of the sum of squares, so that one sharp look counts more than many faint
            ones. The sinks, the first tokens of every text, are left out.
        chosen: what the answer saw of the memories; None where it saw all.
        scores: of each token (log-probability, [(token, log-probability) of the likeliest]), where it was asked for.
        shares: where all of its attention went; told at its end.
    """

    def __init__(self, lengths: Tensor, firsts: Sequence[int], sinks: int) -> None:
        """
        Args:
            lengths: [R] tokens of each region of the memories' texts, whether they are still held or not.
            firsts: the regions with which texts begin.
            sinks: tokens at the beginning of a text that do not count.
        """
        begins = torch.zeros(len(lengths), dtype=torch.bool, device=lengths.device)
        begins[list(firsts)] = True
        self._begins, self._sinks = begins, sinks
        self._lengths = (lengths - sinks * begins).clamp(min=1).float()
        self._step = torch.zeros(len(lengths), device=lengths.device)
        self._touched: list[Tensor] = []  # regions that the step has counted: a token must not cost time per region
        self._best: list[tuple[Tensor, Tensor]] = []
        self._squares, self._sums = torch.zeros_like(self._step), torch.zeros_like(self._step)
        self.shares = Shares()
        self.chosen: Chosen | None = None
        self.scores: list[tuple[float, list[tuple[int, float]]]] = []

    @property
    def density(self) -> Tensor:
        return self._squares.sqrt()

    def add(self, regions: Tensor, mass: Tensor) -> None:
        """Count mass of the query whose answer token comes next.

        Args:
            regions: [N] of the memories; one may stand there several times.
            mass: [N, L] per token.
        """
        self.weigh(regions, mass)
        self.touch(regions)

    def weigh(self, regions: Tensor, mass: Tensor, shares: Tensor | None = None) -> None:
        """The tensor work of `add`; `touch` has to follow. `shares`: [N], what each of them counts."""
        sinks = mass[:, : self._sinks].sum(-1) * self._begins[regions]
        counted = mass.sum(-1).float() - sinks
        self._step.index_add_(0, regions, counted if shares is None else counted * shares)

    def touch(self, regions: Tensor) -> None:
        """Say which regions the query has been counted for."""
        self._touched.append(regions)

    def add_tokens(self, regions: Tensor, places: Tensor, mass: Tensor) -> None:
        """The same for single tokens, which may come from anywhere: [N] regions, places in their texts, and mass."""
        self._step.index_add_(0, regions, mass.float() * (places >= self._sinks))
        self.touch(regions)

    def forget(self) -> None:
        """What was counted since the last token is counted again."""
        for regions in self._touched:
            self._step[regions] = 0
        self._touched = []

    def take(self) -> None:
        """The next token is part of the answer: what was counted since the last one belongs to it."""
        least = torch.arange(min(MOST_PER_TOKEN, len(self._step)), device=self._step.device)  # even if none is touched
        seen = torch.cat([least, *self._touched]).unique()
        density = self._step[seen] / self._lengths[seen]
        self._sums[seen] += self._step[seen]
        self.forget()
        self._squares[seen] += density.square()
        best = density.topk(len(least))
        self._best.append((seen[best.indices], best.values / density.sum().clamp(min=1e-30)))

    def score(self, logits: Tensor, token: int, count: int) -> None:
        """Keep how likely the token that was taken is, and the `count` likeliest, of logits [V]."""
        rows = torch.log_softmax(logits.float(), -1)
        best = rows.topk(min(count, len(rows)))
        self.scores.append((float(rows[token]), list(zip(best.indices.tolist(), best.values.tolist(), strict=True))))

    def share(self, rows: int, own: tuple[float, float] | None) -> None:
        """Tell where the attention of the answer went.

        Args:
            rows: query heads of all layers, whose attention is 1 each for every token.
            own: mean mass of a token on the chat before and on the question; None where it is not known.
        """
        told = max(1, len(self._best)) * rows
        chat, question = (mass / rows for mass in own) if own else (None, None)
        self.shares = Shares(tuple((self._sums / told).tolist()), chat, question)

    def around(self, count: int, seen: Tensor) -> Tensor:
        """The regions that received most, each with its neighbours in the text, at most `count` together.

        Args:
            seen: [R] bool, regions that may be told.

        Returns:
            [N], ascending.
        """
        texts, told = self._begins.cpu().cumsum(0), set[int]()  # which text each region is of
        best = self.density.topk(min(max(0, count), len(texts)))
        for region in best.indices[best.values > 0].tolist():
            near = range(max(0, region - 1), min(region + 2, len(texts)))
            more = {other for other in near if texts[other] == texts[region] and seen[other]} - told
            if len(told) + len(more) > count:
                break
            told |= more
        return torch.tensor(sorted(told), dtype=torch.int64)

    def looks(self) -> list[list[tuple[int, float]]]:
        """Per token of the answer its best regions, each with its share of that token's density; best first."""
        if not self._best:
            return []
        regions, shares = (torch.stack(parts).tolist() for parts in zip(*self._best, strict=True))
        return [
            [(region, share) for region, share in zip(*pair, strict=True) if share > 0]
            for pair in zip(regions, shares, strict=True)
        ]
