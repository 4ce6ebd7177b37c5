"""Which sub-networks an update trains: ElasticViT's two samplings, and the uniform one that they are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lightformers.compress.elastic.elasticvit_banks import (
    Bank,
    exploitation,
    matched,
    preference,
    walk,
    within,
)
from lightformers.models.vision.elasticvit_space import Architecture, ElasticViTSpace


@dataclass(frozen=True)
class Draw:
    """The sub-networks of one update. bank: which one they were drawn for, if any."""

    uniform: tuple[Architecture, ...]
    smallest: Architecture
    bank: int | None = None


class Sampler(Protocol):
    """Draws for every update, and is told how good the drawn ones were."""

    banks: list[Bank]

    def draw(self, fraction: float) -> Draw:
        """fraction: share of the training that is done, 0 to 1."""

    def note(self, draw: Draw, scores: Sequence[float]) -> None:
        """scores: of `draw.uniform`, more is better."""


class Uniform:
    """`count` sub-networks from the whole space, and its smallest one: the sandwich of AlphaNet, without the largest."""

    def __init__(self, space: ElasticViTSpace, count: int, seed: int = 0) -> None:
        self.space, self.count = space, count
        self.rng = np.random.default_rng(seed)
        self.banks: list[Bank] = []

    def draw(self, fraction: float) -> Draw:
        return Draw(tuple(self.space.sample(self.rng) for _ in range(self.count)), self.space.smallest)

    def note(self, draw: Draw, scores: Sequence[float]) -> None:
        """Nothing is remembered."""


class ConflictAware:
    """Complexity-aware and performance-aware sampling (arXiv 2303.09730).

    Complexity: the sub-networks of an update cost between a bank's target and `window` more, and the bank of the next
    update is the same or a neighbour. Performance: once a bank is more than half full, each sub-network is, with the
    probability of `exploitation`, drawn from the bank by its score, else the one that `preference` likes best among
    `candidates`, seen from the best one of the lowest bank. With exploit = rise = 0 and one candidate, only the first
    of the two samplings is left.

    banks: empty ones, targets ascending. smallest: small networks for `matched`.
    """

    def __init__(
        self, space: ElasticViTSpace, banks: Sequence[Bank], window: float, smallest: Sequence[Architecture], count: int = 3,
        candidates: int = 5, exploit: float = 0.2, rise: float = 0.15, seed: int = 0,
    ) -> None:  # fmt: skip
        self.space, self.banks, self.window = space, list(banks), window
        self.smallest, self.count, self.candidates = tuple(smallest), count, candidates
        self.exploit, self.rise = exploit, rise
        self.rng = np.random.default_rng(seed)
        self.index = int(self.rng.integers(len(self.banks)))

    def draw(self, fraction: float) -> Draw:
        self.index = walk(self.index, len(self.banks), self.rng)
        bank = self.banks[self.index]
        share = exploitation(fraction, self.exploit, self.rise)
        drawn = tuple(self._one(bank, share) for _ in range(self.count))
        return Draw(drawn, matched(self.space, self.smallest, bank.target), self.index)

    def note(self, draw: Draw, scores: Sequence[float]) -> None:
        for arch, score in zip(draw.uniform, scores, strict=True):
            assert draw.bank is not None
            self.banks[draw.bank] = self.banks[draw.bank].insert(arch, score)

    def _one(self, bank: Bank, share: float) -> Architecture:
        if bank.half_full and self.rng.random() < share:
            return bank.draw(self.rng)
        count = self.candidates if bank.half_full else 1
        low, high = bank.target, bank.target + self.window
        drawn = [within(self.space, low, high, self.rng) for _ in range(count)]
        if count == 1:
            return drawn[0]
        lowest = self.banks[0].entries
        anchor = lowest[0].arch if lowest else self.space.smallest
        return min(drawn, key=lambda arch: preference(self.space, arch, anchor))
