"""Sizes to choose among: drawn from a space, counted, and held to a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lightformers.compress.elastic.shared import Shared
from lightformers.compress.elastic.size import Size
from lightformers.compress.elastic.space import Space
from lightformers.errors import UserError


@dataclass(frozen=True)
class Candidate:
    """A size with its loss on unseen examples and its number of weights."""

    size: Size
    loss: float
    parameters: int


def ranked(
    shared: Shared, space: Space, parameters: int | None, candidates: int, seed: int,
    losses: Callable[[Sequence[Size]], Sequence[float]],
) -> list[Candidate]:  # fmt: skip
    """Up to `candidates` sizes of a space with at most `parameters` weights (None: any), the lowest loss first.

    Raises UserError where none of them is small enough.
    """
    sizes = space.some(candidates, np.random.default_rng(seed))
    counted = {size: shared.parameters_of(size) for size in sizes}
    fits = [size for size, n in counted.items() if parameters is None or n <= parameters]
    if not fits:
        raise UserError(
            f"no size has {parameters:,} parameters or fewer: the smallest has {min(counted.values()):,}"
        )
    found = [Candidate(size, float(loss), counted[size]) for size, loss in zip(fits, losses(fits))]
    return sorted(found, key=lambda c: c.loss)
