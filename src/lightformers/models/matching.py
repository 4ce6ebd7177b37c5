"""Models of equal size: the one width that is left open is chosen so that the parameters come nearest to a number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from lightformers.errors import UserError


@dataclass(frozen=True)
class Matched:
    """width: what was chosen. parameters: of the model of that width. target: what was asked for."""

    width: int
    parameters: int
    target: int

    @property
    def ratio(self) -> float:
        return self.parameters / self.target


def parameters(module: nn.Module) -> int:
    """Numbers that are trained; a tied weight counts once."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def counted(build: Callable[[], nn.Module]) -> int:
    """Parameters of what `build()` gives; the random numbers that it draws are not missed afterwards."""
    with torch.random.fork_rng():
        return parameters(build())


def match(
    build: Callable[[int], nn.Module], target: int, least: int = 8, step: int = 8, most: int = 1 << 16
) -> Matched:
    """The multiple of `step` from `least` to `most` whose model, `build(width)`, has the number of parameters nearest
    to `target`; the smaller one of two equally near ones. The number must grow with the width.

    Where even `least` has more parameters than asked for, `least` it is: look at `ratio`. Raises UserError for a target
    below 1 or bounds without a multiple.
    """
    low, high = -(-least // step), most // step
    if target < 1 or low < 1 or high < low:
        raise UserError(f"no width between {least} and {most} in steps of {step} can be matched to {target} parameters")  # fmt: skip
    seen: dict[int, int] = {}

    def count(units: int) -> int:
        if units not in seen:
            seen[units] = counted(lambda: build(units * step))
        return seen[units]

    above = low
    while (
        above < high and count(above) < target
    ):  # first by doubling: the widest one may be far too large to build
        above = min(2 * above, high)
    below = low
    while above - below > 1:  # count(below) < target <= count(above), where there is such a pair
        middle = (below + above) // 2
        below, above = (middle, above) if count(middle) < target else (below, middle)
    near = [below, above]
    best = min(near, key=lambda u: (abs(count(u) - target), u))
    return Matched(best * step, count(best), target)
