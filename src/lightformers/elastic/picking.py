"""Which size for a budget: candidates, what they cost, how good they are, and a little evolution."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lightformers import measure, runners
from lightformers.bundle import Bundle, Example
from lightformers.compress.elastic.matformer import mixtures
from lightformers.compress.elastic.size import Size
from lightformers.compress.elastic.space import Space
from lightformers.steps import Deploy

#: Candidates whose cost is looked at, sizes that are timed, examples that are timed and scored.
POOL, GRID, ALONE, SCORED = 96, 6, 12, 400
#: Share of neighbours among the later candidates; the others are drawn from the whole space.
NEAR = 0.75


@dataclass(frozen=True)
class Picked:
    """The size that was taken, and what is known of it. latency_ms and quality: None where they were not measured.

    tried: (size, quality on the search split) of every candidate that was scored, best first.
    """

    size: Size
    parameters: int
    latency_ms: float | None = None
    quality: float | None = None
    tried: tuple[tuple[Size, float], ...] = field(default=(), repr=False)


def candidates(space: Space, number: int, rng: np.random.Generator) -> list[Size]:
    """Up to `number` different sizes, the smallest and the largest among them.

    Half are mixtures that change little from block to block, at every choice of blocks, heads and width: they reach
    every budget. Half are drawn. All of them where the space holds no more.
    """
    if space.count <= number:
        return list(space)
    kinds = itertools.product(space.blocks, space.heads, space.width)
    even: list[Size] = []
    for blocks, heads, width in kinds:
        part = replace(space, blocks=(blocks,), heads=(heads,), width=(width,))
        even += list(part) if space.alike else mixtures(part)
    found = dict.fromkeys([space.smallest, space.largest, *_spread(even, number // 2 - 2)])
    for _ in range(20 * number):
        if len(found) >= number:
            break
        found[space.sample(rng)] = None
    return list(found)


def _spread(sizes: Sequence[Size], number: int) -> list[Size]:
    if len(sizes) <= number:
        return list(sizes)
    return [sizes[round(i)] for i in np.linspace(0, len(sizes) - 1, max(number, 0))]


def mutated(size: Size, space: Space, rng: np.random.Generator) -> Size:
    """A neighbour: the heads or the channels of one block (of all, if alike) move by one choice; or blocks or width do."""
    names = [n for n in ("blocks", "heads", "width") if len(getattr(space, n)) > 1]
    names += ["channels"] if len(space.channels or space.ratios) > 1 else []
    if not names:
        return size
    name = str(rng.choice(names))
    step = int(rng.choice((-1, 1)))

    def moved(value: int, choices: Sequence[int]) -> int:
        return choices[min(max(choices.index(value) + step, 0), len(choices) - 1)]

    if name == "width":
        width = moved(size.width, space.width)
        places = [space.inner(size.width).index(c) for c in size.channels]
        return replace(size, width=width, channels=tuple(space.inner(width)[p] for p in places))
    if name == "blocks":
        blocks = moved(size.blocks, space.blocks)
        more = max(blocks - size.blocks, 0)
        heads, channels = size.heads + size.heads[-1:] * more, size.channels + size.channels[-1:] * more
        return replace(size, blocks=blocks, heads=heads[:blocks], channels=channels[:blocks])
    values = list(getattr(size, name))
    choices = space.heads if name == "heads" else space.inner(size.width)
    place = int(rng.integers(size.blocks))
    for i in range(size.blocks) if space.alike else (place,):
        values[i] = moved(values[i], choices)
    changed = tuple(values)
    return replace(size, heads=changed) if name == "heads" else replace(size, channels=changed)


def search(
    space: Space, fitting: Sequence[Size], cost: Callable[[Size], float], limit: float, quality: Callable[[Size], float],
    number: int, rng: np.random.Generator,
) -> list[tuple[Size, float]]:  # fmt: skip
    """(size, quality) of about `number` sizes that cost at most `limit`, best first.

    The dearest of `fitting` come first, because more weights are mostly better; then mostly neighbours of the best.
    """
    first = sorted(fitting, key=cost, reverse=True)[: max(number - number // 2, 1)]
    scored = {size: quality(size) for size in first}
    for _ in range(20 * number):
        if len(scored) >= min(number, space.count):
            break
        parents = sorted(scored, key=lambda s: -scored[s])[:3]
        parent = parents[int(rng.integers(len(parents)))]
        child = mutated(parent, space, rng) if rng.random() < NEAR else space.sample(rng)
        if child not in scored and cost(child) <= limit:
            scored[child] = quality(child)
    return sorted(scored.items(), key=lambda item: (-item[1], cost(item[0])))


def times(
    models: Iterable[Bundle], examples: Sequence[Example], reduce: Any, deploy: Deploy | None
) -> list[float]:
    """Median milliseconds of one example alone, the models in turn on each example, tokenization included."""
    built = [runners.build(model, deploy) for model in models]
    try:
        calls = {str(i): _alone(runner, reduce) for i, runner in enumerate(built)}
        return [1000 * t.median for t in measure.latencies(calls, examples).values()]
    finally:
        for runner in built:
            runner.close()


def _alone(runner: runners.Runner, reduce: Any) -> Callable[[Example], object]:
    return lambda example: runner([example], reduce)


@dataclass(frozen=True)
class Predictor:
    """Milliseconds of a size from a few that were timed: a fixed part, a part per block, a part per weight."""

    coefficients: np.ndarray
    measured: tuple[tuple[Size, float], ...]

    @classmethod
    def fit(cls, sizes: Sequence[Size], parameters: Sequence[int], ms: Sequence[float]) -> Predictor:
        table = np.array([_features(s, p) for s, p in zip(sizes, parameters)])
        return cls(np.linalg.lstsq(table, np.array(ms), rcond=None)[0], tuple(zip(sizes, ms)))

    def __call__(self, size: Size, parameters: int) -> float:
        return dict(self.measured).get(size, float(_features(size, parameters) @ self.coefficients))


def _features(size: Size, parameters: int) -> np.ndarray:
    return np.array([1.0, size.blocks, parameters / 1e6])
