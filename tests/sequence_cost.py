"""What a module's memory does as sequences grow: counted from its tensors, so that no clock and no allocator matters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Watch(TorchDispatchMode):
    """The largest memory that one operation wrote, in bytes."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.largest = max(self.largest, leaf.untyped_storage().nbytes())
        return out


def memory(run: Callable[[], Tensor]) -> tuple[int, int]:
    """(bytes of the largest tensor that `run` makes, bytes that it keeps for the backward pass)."""
    kept: dict[int, int] = {}

    def pack(held: Tensor) -> Tensor:
        storage = held.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return held

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held), _Watch() as watch:
        out = run()
    assert torch.isfinite(out).all()
    return watch.largest, sum(kept.values())


def growth(run: Callable[[int], Callable[[], Tensor]], short: int, long: int) -> float:
    """By how much more than the length the memory grows from `short` to `long` tokens; 1: linear."""
    small, large = memory(run(short)), memory(run(long))
    return max(b / a for a, b in zip(small, large)) / (long / short)
