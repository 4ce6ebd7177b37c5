"""Evolutionary search among the sub-networks that cost no more than they may."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lightformers.compress.elastic.elasticvit_banks import Cost, Entry, within
from lightformers.errors import UserError
from lightformers.models.vision.elasticvit_cost import flops
from lightformers.models.vision.elasticvit_space import Architecture, ElasticViTSpace, Genome


@dataclass(frozen=True)
class Evolution:
    """Sizes of the search. rate: probability that a mutation draws a gene anew. tries: of finding a child in the window."""

    population: int = 64
    crossovers: int = 128
    mutations: int = 128
    rate: float = 0.45
    generations: int = 10
    tries: int = 200

    def __post_init__(self) -> None:
        if min(self.population, self.tries) < 1 or min(self.crossovers, self.mutations, self.generations) < 0:
            raise UserError(f"an evolution needs a population and tries, got {dataclasses.asdict(self)}")
        if not 0 < self.rate <= 1:
            raise UserError(f"the rate of mutation must be in (0, 1], got {self.rate}")


def mutated(space: ElasticViTSpace, genome: Genome, rate: float, rng: np.random.Generator) -> Genome:
    """Each gene drawn anew with probability `rate`."""
    return tuple(
        choices[rng.integers(len(choices))] if rng.random() < rate else value
        for value, choices in zip(genome, space.genes)
    )


def crossed(one: Genome, other: Genome, rng: np.random.Generator) -> Genome:
    """Each gene from either parent."""
    return tuple(a if first else b for a, b, first in zip(one, other, rng.random(len(one)) < 0.5))


def evolve(
    space: ElasticViTSpace, score: Callable[[Architecture], float], low: float, high: float, evolution: Evolution | None = None,
    seed: int = 0, cost: Cost | None = None, start: Sequence[Architecture] = (),
) -> list[Entry]:  # fmt: skip
    """The best sub-networks found that cost `low` to `high`, best first; at most a population of them.

    score: asked once for each sub-network. cost: multiply-adds by default, or anything else, such as a predicted
    latency. start: sub-networks to begin with, as far as they lie in the window. Raises UserError where nothing does.
    """
    evolution, rng = evolution or Evolution(), np.random.default_rng(seed)
    price: Cost = cost or (lambda arch: flops(space, arch))
    known: dict[Architecture, float] = {}

    def meet(arch: Architecture) -> None:
        if arch not in known:
            known[arch] = float(score(arch))

    for arch in start:
        space.check(arch)
        if low <= price(arch) <= high:
            meet(arch)
    for _ in range(4 * evolution.population):  # a small window repeats itself
        if len(known) >= evolution.population:
            break
        meet(within(space, low, high, rng, price))
    for _ in range(evolution.generations):
        parents = [space.encode(e.arch) for e in _best(known, evolution.population)]
        children = []
        for place in range(evolution.crossovers + evolution.mutations):
            crossing = place < evolution.crossovers
            for _ in range(evolution.tries):
                genome = parents[rng.integers(len(parents))]
                if crossing:
                    genome = crossed(genome, parents[rng.integers(len(parents))], rng)
                else:
                    genome = mutated(space, genome, evolution.rate, rng)
                child = space.decode(genome)
                if child not in known and low <= price(child) <= high:
                    children.append(child)
                    break
        for child in children:
            meet(child)
    return _best(known, evolution.population)


def _best(known: dict[Architecture, float], count: int) -> list[Entry]:
    return [Entry(arch, value) for arch, value in sorted(known.items(), key=lambda item: -item[1])[:count]]
