"""Sequence mixers: `forward(x, mask=None)`, (batch, length, width) -> (batch, length, width).

mask: (batch, length) whole numbers, 0 at padding, on whichever side; None where nothing is padded. What stands at
padding never reaches another position, and a sequence gives the same with padding as alone. A causal mixer reads more
from it: every run of one positive number is a document of its own, and nothing passes from one to the next (packing).

A causal mixer also runs on in time (`Recurrent`): a state holds what it knows of the tokens so far.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from lightformers.errors import UserError
from lightformers.parts.recording import recorded

State = dict[
    str, Tensor
]  # every tensor has the batch as its first dimension: a beam is picked by index_select


class Recurrent(Protocol):
    """What a causal mixer offers beside `forward`; all forms give the same numbers."""

    def begin(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """The state before the first token. dtype: of the inputs; what must be exact is float32 whatever it says."""
        ...

    def extend(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """(batch, n, width) more tokens, n at least 1, of one document each; padding (mask 0) leaves a state as it is.
        The state that came is not changed."""
        ...

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One more token, (batch, width)."""
        ...


def starts(mask: Tensor) -> Tensor:
    """(batch, n) mask -> (batch, n) bool, true at the first token of every document."""
    before = torch.nn.functional.pad(mask, (1, 0))[:, :-1]
    return (mask != 0) & (mask != before)


def places(mask: Tensor) -> Tensor:
    """(batch, n) mask -> (batch, n) positions within the document, from 0; 0 at padding."""
    index = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    first = torch.where(starts(mask), index, 0)
    if recorded():  # other runtimes have no running maximum
        before = index[:, :, None] >= index[:, None, :]
        first = torch.where(before, first[:, None, :], 0).amax(2)
    else:
        first = first.cummax(1).values
    return torch.where(mask != 0, index - first, 0)


def restarts(mask: Tensor | None) -> Tensor | None:
    """(batch, n) bool, true where a recurrence forgets what it knows; None where no row holds several documents."""
    if mask is None:
        return None
    found = starts(mask)
    return found if bool((found.sum(1) > 1).any()) else None


def held(state: State, name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor of that name in a state. Raises UserError where it is not there in this shape: of another model, or
    another number of rows."""
    found = state.get(name)
    if found is None or tuple(found.shape) != shape:
        has = "none" if found is None else tuple(found.shape)
        raise UserError(f"the state is not of this mixer and batch: it needs {name} {shape} and has {has}")
    return found
