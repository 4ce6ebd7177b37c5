"""Linear maps over gaps: what removed blocks did to the states, as far as a linear map can do it.

Neighbours that are trained afterwards soon learn a linear map, so a gap that one bridges well is one that recovery closes.
The maps only judge here; that they can stay in the model is shown by Shopkhoev et al. (2025, ReplaceMe, arXiv 2505.02819).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Batch
from lightformers.compress.moments import real_tokens

#: Rows of states for each channel that a map is fitted to, and the share of the mean variance that is added to each.
ROWS, RIDGE = 6, 1e-2
#: Above this width a map for every gap would take minutes.
WIDEST = 1536


class Bridges:
    """States of the whole model before every block and after the last, and the maps between them.

    modules: the blocks of one stack, in order. batches: run once, until there are rows enough; what is captured takes
    4 * ROWS * width^2 bytes a block.
    """

    def __init__(self, module: nn.Module, modules: Sequence[nn.Module], batches: Sequence[Batch]) -> None:
        self.states: list[list[Tensor]] = [[] for _ in range(len(modules) + 1)]
        self._known: dict[tuple[int, int], Tensor | None] = {}
        mask: list[Tensor | None] = [None]

        def before(place: int) -> Any:
            def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                self.states[place].append(real_tokens(anatomy.entering(args, kwargs), mask[0]).float())

            return hook

        def after(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            states = output if isinstance(output, Tensor) else output[0]
            self.states[-1].append(real_tokens(states, mask[0]).float())

        with ExitStack() as stack:
            for place, block in enumerate(modules):
                stack.callback(block.register_forward_pre_hook(before(place), with_kwargs=True).remove)
            stack.callback(modules[-1].register_forward_hook(after).remove)
            rows = 0
            for batch in batches:
                mask[0] = batch.inputs.get("attention_mask")
                module(**batch.inputs)
                rows = sum(len(part) for part in self.states[0])
                if rows >= ROWS * self.states[0][0].shape[-1]:
                    break
        self.enough = rows >= 2 * self.states[0][0].shape[-1] and self.states[0][0].shape[-1] <= WIDEST

    def __call__(self, start: int, end: int, states: Tensor) -> Tensor:
        """What blocks start to end - 1 would hand on, from what enters the first: (..., width) -> (..., width)."""
        if (start, end) not in self._known:
            self._known[start, end] = self._fitted(start, end)
        found = self._known[start, end]
        if found is None:
            return states
        moved = torch.nn.functional.linear(states.float(), found[:, :-1], found[:, -1])
        return states + moved.to(states.dtype)

    def _fitted(self, start: int, end: int) -> Tensor | None:
        """(width, width + 1): the map, its offset last, of the change; None where widths or rows do not go together."""
        old, new = (torch.cat(self.states[place]) for place in (start, end))
        if old.shape != new.shape or not self.enough:
            return None
        rows = torch.cat([old, old.new_ones(len(old), 1)], 1).double()
        gram = rows.T @ rows
        gram.diagonal().add_(RIDGE * gram.diagonal().mean())
        solved: Tensor = torch.linalg.solve(gram, rows.T @ (new - old).double())
        return solved.T.to(old.dtype).contiguous()


def gaps(gone: Iterable[int]) -> dict[int, int]:
    """First block of each run of removed ones -> the block after its last."""
    found: dict[int, int] = {}
    for block in sorted(gone):
        start = next((s for s, end in found.items() if end == block), block)
        found[start] = block + 1
    return found
