"""Rows with padding and packed documents (`parts.mixers`), laid out for code that knows neither."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightformers.parts.mixers import places, starts


def alone(run: Callable[..., Tensor], mask: Tensor, *inputs: Tensor) -> Tensor:
    """`run` on every document by itself: inputs and output (batch, n, ...), zeros at padding.

    run: given (documents, longest, ...) each, filled up with zeros on the right, it returns as much; what it gives
    there is dropped. Documents of similar length (within a factor of two) go together, so the memory stays linear.
    """
    there = (mask != 0).flatten().nonzero()[:, 0]
    owner = (starts(mask).flatten().cumsum(0) - 1)[there]
    place = places(mask).flatten()[there]
    flat = [x.flatten(0, 1) for x in inputs]
    lengths = torch.bincount(owner)
    kind = torch.frexp((lengths - 1).double()).exponent  # 1, 2, 3 to 4, 5 to 8, ... tokens
    out = None
    for size in kind.unique().tolist():
        chosen = kind == size
        mine = chosen[owner]
        row, column, source = (chosen.cumsum(0) - 1)[owner[mine]], place[mine], there[mine]
        shape = int(chosen.sum()), int(lengths[chosen].max())
        rows = [x.new_zeros(*shape, *x.shape[1:]).index_put((row, column), x[source]) for x in flat]
        found = run(*rows)
        out = found.new_zeros(mask.numel(), *found.shape[2:]) if out is None else out
        out = out.index_put((source,), found[row, column])
    if out is None:  # nothing but padding
        found = run(*(x[:, :1] for x in inputs))
        out = found.new_zeros(mask.numel(), *found.shape[2:])
    return out.unflatten(0, mask.shape)


def to_front(mask: Tensor) -> tuple[Tensor, Tensor]:
    """(batch, n) mask -> the order (batch, n) that brings tokens before padding, and how many there are (batch,)."""
    there = mask != 0
    return (~there).to(torch.int8).argsort(dim=1, stable=True), there.sum(1)


def gathered(x: Tensor, index: Tensor) -> Tensor:
    """x (batch, heads, n, size) at the positions `index` (batch, m) -> (batch, heads, m, size)."""
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
