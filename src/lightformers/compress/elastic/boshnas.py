"""BOSHNAS (Tuli et al., 2022, arXiv 2205.11656): a search over a library of points by a surrogate that knows its doubts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from lightformers.compress.elastic.boshnas_descent import descend, snap
from lightformers.compress.elastic.boshnas_surrogates import Fitting, Surrogates
from lightformers.errors import UserError

T = TypeVar("T")
How = Literal["start", "optimise", "uncertain", "random"]


@dataclass(frozen=True)
class Library(Generic[T]):
    """What is searched: any items, each with a point (n, d) where alike items lie near each other.

    transfer: share of item `a`'s weights that it can take from a trained item `b`, 0 to 1; None where nothing is handed on.
    Raises UserError where points and items do not fit.
    """

    items: Sequence[T]
    points: Tensor
    transfer: Callable[[T, T], float] | None = None

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or len(self.points) != len(self.items) or len(self.items) < 2:
            raise UserError(
                f"a library needs two items or more and a point for each: {len(self.items)} items, points of shape {tuple(self.points.shape)}"
            )
        if not bool(torch.isfinite(self.points).all()):
            raise UserError("a point of the library is not finite")


@dataclass(frozen=True)
class Query(Generic[T]):
    """One item that was scored. source: index of the item whose weights it started from, or None."""

    index: int
    item: T
    score: float
    how: How
    source: int | None = None


@dataclass(frozen=True)
class Found(Generic[T]):
    """All queries in order. converged: the search ended by itself, before its budget."""

    queries: tuple[Query[T], ...]
    converged: bool

    @property
    def best(self) -> Query[T]:
        return max(self.queries, key=lambda q: q.score)

    @property
    def curve(self) -> list[float]:
        """The best score after each query."""
        return np.maximum.accumulate([q.score for q in self.queries]).tolist()


@dataclass(frozen=True)
class Boshnas:
    """Bayesian optimisation with second-order gradients on the input and a heteroscedastic surrogate.

    start: random items before the first surrogate. restarts: points that are moved in a round, from random items.
    explore: doubts subtracted from the mean. uncertain, random: shares of rounds that ask for the item in most doubt,
    and for any. overlap: least share of weights for starting from a neighbour. patience: rounds of optimisation without
    a better score after which aleatoric doubt is counted too, and as many again after which the search ends.
    fitting: how the surrogates are trained; rate, steps: of the descent.

    An item is scored once. The paper's code trains the best ones again near convergence, to better their recipe; with
    the aleatoric doubt as a variance, here a standard deviation like the other.
    """

    start: int = 10
    restarts: int = 10
    explore: float = 0.5
    uncertain: float = 0.1
    random: float = 0.1
    overlap: float = 0.8
    patience: int = 5
    fitting: Fitting = field(default_factory=Fitting)
    rate: float = 0.5
    steps: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.start, self.restarts, self.patience, self.steps) < 1:
            raise UserError("start, restarts, patience and steps must be at least 1")
        if min(self.uncertain, self.random) < 0 or self.uncertain + self.random > 1:
            raise UserError("uncertain and random are shares of the rounds: not negative, at most 1 together")

    def search(self, library: Library[T], score: Callable[[T, T | None], float], budget: int) -> Found[T]:
        """Score at most `budget` items of the library; more is better, 0 to 1.

        score: called with an item and the scored item whose weights it shall start from, or None. Keeping weights is
        its own affair. Raises UserError for a score that is not in [0, 1], and for a budget below 2.
        """
        if budget < 2:
            raise UserError(f"a budget of {budget} queries allows no search: give 2 or more")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return _Search(self, library, score, min(budget, len(library.items))).run()


class _Search(Generic[T]):
    def __init__(self, how: Boshnas, library: Library[T], score: Any, budget: int) -> None:
        self.how, self.library, self.score, self.budget = how, library, score, budget
        self.points = library.points.detach().float()
        self.rng = np.random.default_rng(how.seed)
        self.generator = torch.Generator().manual_seed(how.seed)
        self.surrogates = Surrogates(self.points.shape[1], how.fitting)
        self.queries: list[Query[T]] = []
        self.still = 0  # rounds of optimisation without a better score

    def run(self) -> Found[T]:
        for index in self.rng.permutation(len(self.points))[: min(self.how.start, self.budget)]:
            self.ask(int(index), "start")
        worst = (
            max(1 - q.score for q in self.queries) or 1.0
        )  # losses are seen as shares of the worst first one
        while len(self.queries) < self.budget and self.still < 2 * self.how.patience:
            asked = self.points[[q.index for q in self.queries]]
            losses = torch.tensor([(1 - q.score) / worst for q in self.queries])
            self.surrogates.fit(asked, losses, self.generator)
            self.round()
        return Found(tuple(self.queries), self.still >= 2 * self.how.patience)

    def round(self) -> None:
        draw, best = self.rng.random(), max(q.score for q in self.queries)
        free = self.free()
        if draw < self.how.random:
            self.ask(int(self.rng.choice(free)), "random")
        elif draw < self.how.random + self.how.uncertain:
            with torch.no_grad():
                doubts = self.surrogates.student(self.points[free])
            self.ask(free[int(doubts.argmax())], "uncertain")
        else:
            for index, source in self.chosen():
                self.ask(index, "optimise", source)
            self.still += 1
        if max(q.score for q in self.queries) > best:
            self.still = 0

    def chosen(self) -> list[tuple[int, int | None]]:
        """Items that a descent ended at: all that can start from a neighbour's weights, or else the best one."""
        aleatoric, explore = self.still >= self.how.patience, self.how.explore

        def bound(points: Tensor) -> Tensor:
            return self.surrogates.bound(points, explore, aleatoric)

        begin = self.points[self.rng.choice(len(self.points), self.how.restarts)]
        low, high = self.points.amin(0), self.points.amax(0)
        ends = descend(bound, begin, low, high, self.generator, self.how.rate, self.how.steps)
        with torch.no_grad():
            values = bound(self.points)
        reached = sorted(set(snap(ends, self.points).tolist()), key=lambda i: float(values[i]))
        free = self.free()
        fresh = [i for i in reached if i in free]
        near: list[tuple[int, int | None]] = [
            (i, source) for i in fresh if (source := self.neighbour(i)) is not None
        ]
        if near:
            return near[: self.budget - len(self.queries)]
        if not fresh:  # all were asked before
            fresh = [self.nearest(reached[0], free)]
        return [(fresh[0], self.neighbour(fresh[0]))]

    def nearest(self, index: int, among: list[int]) -> int:
        """The item that shares most weights with `index`; of equals, or where nothing is handed on, the nearest."""
        items, transfer = self.library.items, self.library.transfer
        away = (self.points - self.points[index]).norm(dim=-1).tolist()
        return min(among, key=lambda i: (-transfer(items[i], items[index]) if transfer else 0.0, away[i]))

    def neighbour(self, index: int) -> int | None:
        """The scored item that `index` can take most weights from, if those are enough."""
        if self.library.transfer is None:
            return None
        items = self.library.items
        shares = {q.index: self.library.transfer(items[index], items[q.index]) for q in self.queries}
        most = max(shares, key=lambda i: shares[i])
        return most if shares[most] >= self.how.overlap else None

    def free(self) -> list[int]:
        asked = {q.index for q in self.queries}
        return [i for i in range(len(self.points)) if i not in asked]

    def ask(self, index: int, how: How, source: int | None = None) -> None:
        items = self.library.items
        value = float(self.score(items[index], None if source is None else items[source]))
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise UserError(f"scores lie between 0 and 1; item {index} got {value}")
        self.queries.append(Query(index, items[index], value, how, source))
