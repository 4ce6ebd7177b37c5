"""What ElasticViT's sampling is made of: cost windows, memory banks, preferences. Pure functions and values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lightformers.errors import UserError
from lightformers.models.vision.elasticvit_cost import flops
from lightformers.models.vision.elasticvit_space import Architecture, ElasticViTSpace

Cost = Callable[[Architecture], float]
#: Of the way into a window: changes before a new start, and the probability of a step away from it.
_PATIENCE, _STRAY = 300, 0.05


@dataclass(frozen=True)
class Entry:
    """A sub-network and how good it was: more is better."""

    arch: Architecture
    score: float


@dataclass(frozen=True)
class Bank:
    """The best sub-networks seen of one cost. target: multiply-adds; capacity: most entries, best first."""

    target: float
    capacity: int
    entries: tuple[Entry, ...] = ()

    @property
    def half_full(self) -> bool:
        return 2 * len(self.entries) > self.capacity

    def insert(self, arch: Architecture, score: float) -> Bank:
        """With `arch` at this score; the worst entry goes if there is no room. One that was there is scored anew."""
        others = [e for e in self.entries if e.arch != arch]
        return self._of([*others, Entry(arch, score)])

    def rescored(self, scores: Sequence[float]) -> Bank:
        """With new scores, in the order of `entries`."""
        return self._of([Entry(e.arch, score) for e, score in zip(self.entries, scores, strict=True)])

    def draw(self, rng: np.random.Generator) -> Architecture:
        """An entry, with probability softmax(scores)."""
        scores = np.array([e.score for e in self.entries])
        weights = np.exp(scores - scores.max())
        return self.entries[rng.choice(len(scores), p=weights / weights.sum())].arch

    def _of(self, entries: Sequence[Entry]) -> Bank:
        best = sorted(entries, key=lambda e: -e.score)[: self.capacity]
        return dataclasses.replace(self, entries=tuple(best))


def walk(index: int, count: int, rng: np.random.Generator) -> int:
    """The next bank: one down, the same, or one up; at the ends two of three times the same."""
    return min(max(index + int(rng.integers(-1, 2)), 0), count - 1)


def within(
    space: ElasticViTSpace, low: float, high: float, rng: np.random.Generator, cost: Cost | None = None, tries: int = 4000,
    mix: int = 20,
) -> Architecture:  # fmt: skip
    """A random sub-network that costs `low` to `high` (multiply-adds, or what `cost` says).

    Drawing until one lies in a narrow window would hardly end. A random one is changed gene by gene; what leads away
    from the window is mostly undone, and what has not arrived after a while is drawn anew. Inside the window `mix`
    more changes are tried. Raises UserError where the window holds nothing, or `tries` changes found nothing.
    """
    cost = cost or (lambda arch: flops(space, arch))
    least, most = cost(space.smallest), cost(space.largest)
    asked = f"a cost of {low:,.0f} to {high:,.0f}"
    if low > high or high < least or low > most:
        raise UserError(f"no sub-network has {asked}: this space reaches from {least:,.0f} to {most:,.0f}")
    genes, away = space.genes, 1.0
    genome: list[int] = []
    for done, place in enumerate(rng.integers(len(genes), size=tries)):
        if done % _PATIENCE == 0 and away:
            genome = [gene[rng.integers(len(gene))] for gene in genes]
            away = _distance(cost(space.decode(genome)), low, high)
        elif away == 0:
            if mix == 0:
                break
            mix -= 1
        old = genome[place]
        genome[place] = genes[place][rng.integers(len(genes[place]))]
        if genome[place] == old:
            continue
        now = _distance(cost(space.decode(genome)), low, high)
        if now <= away or (away and rng.random() < _STRAY):
            away = now
        else:
            genome[place] = old
    if away:
        raise UserError(f"{tries} tries found no sub-network with {asked}: widen the window")
    return space.decode(genome)


def _distance(value: float, low: float, high: float) -> float:
    return max(low - value, value - high, 0.0)


def preference(space: ElasticViTSpace, candidate: Architecture, anchor: Architecture) -> int:
    """How much `candidate` leans to deep and narrow attention: less is better (wide and shallow).

    flops(candidate with the widths of `anchor`'s attention stages) - flops(candidate with their depths).
    """
    wide = flops(space, _with(space, candidate, anchor, 0))
    return wide - flops(space, _with(space, candidate, anchor, 1))


def _with(space: ElasticViTSpace, arch: Architecture, other: Architecture, gene: int) -> Architecture:
    """`arch` with the channels (gene 0) or the depths (gene 1) of `other`'s attention stages."""
    own, theirs = list(space.encode(arch)), space.encode(other)
    for stage, start in zip(space.stages, space.starts):
        if stage.kind == "attention":
            own[start + gene] = theirs[start + gene]
    return space.decode(own)


def matched(space: ElasticViTSpace, smallest: Sequence[Architecture], target: float) -> Architecture:
    """The one of several small networks that goes with a bank: the nearest at or above its target, else the largest."""
    costs = sorted((flops(space, arch), i) for i, arch in enumerate(smallest))
    return smallest[next((i for cost, i in costs if cost >= target), costs[-1][1])]


def exploitation(fraction: float, start: float = 0.2, rise: float = 0.15, parts: int = 6) -> float:
    """Probability of drawing from the bank when `fraction` of the training is done: it rises in even parts."""
    return min(start + rise * math.floor(parts * min(max(fraction, 0.0), 1.0 - 1e-9)), 1.0)
