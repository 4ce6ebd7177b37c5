"""Cutting patches in a way that every runtime's converter knows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def gathered(x: Tensor, dimension: int, size: int, step: int) -> Tensor:
    """`x.unfold(dimension, size, step)` by index_select, reshape and transpose: the same numbers."""
    dimension = dimension % x.dim()
    count = (x.shape[dimension] - size) // step + 1
    places = (torch.arange(count)[:, None] * step + torch.arange(size)).reshape(-1).to(x.device)
    taken = x.index_select(dimension, places)
    return taken.unflatten(dimension, (count, size)).movedim(dimension + 1, -1)


@contextmanager
def without_unfold() -> Iterator[None]:
    """While it runs, `Tensor.unfold` is `gathered`, so that a traced graph holds no unfold.

    OpenVINO 2026.4 cannot convert one whose dimension is counted from the end, as in PatchTST and PatchTSMixer.
    """
    outer = vars(torch.Tensor).get("unfold")  # one call may stand within another
    torch.Tensor.unfold = gathered  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        if outer is None:
            del torch.Tensor.unfold  # the one of its base class shows again
        else:
            torch.Tensor.unfold = outer  # type: ignore[method-assign, assignment]
