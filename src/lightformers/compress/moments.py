"""Moments of what enters a layer, summed up while a model runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightformers.errors import UserError


@dataclass
class Inputs:
    """Moments of what enters a layer, over all tokens that are no padding. Sums, float32 (float64 for counts)."""

    rows: int
    total: Tensor  # (h,) sum of x
    absolute: Tensor  # (h,) sum of |x|
    square: Tensor  # (h,) sum of x^2
    products: Tensor | None = None  # (h, h) sum of x x^T

    @property
    def mean(self) -> Tensor:
        return self.total / self.rows

    @property
    def magnitude(self) -> Tensor:
        """Mean of |x| per feature."""
        return self.absolute / self.rows

    @property
    def power(self) -> Tensor:
        """Mean of x^2 per feature."""
        return self.square / self.rows

    @property
    def gram(self) -> Tensor:
        """Mean of x x^T, (h, h): the uncentred second moments."""
        if self.products is None:
            raise UserError("second moments were not collected: ask for them with collect(grams=...)")
        return self.products / self.rows


def real_tokens(states: Tensor, mask: Tensor | None) -> Tensor:
    """(batch, length, h) -> (tokens, h) without padding; where the mask is of another length, all tokens."""
    if states.dim() == 3 and mask is not None and mask.shape == states.shape[:2] and not bool(mask.all()):
        return states[mask.bool()]
    return states.reshape(-1, states.shape[-1])


def input_hook(
    moments: dict[str, Inputs], path: str, gram: bool, current: list[Tensor | None]
) -> Callable[..., None]:
    """A forward pre-hook that adds to `moments[path]`; gram: second moments too. current: holds the batch's mask."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        x = real_tokens(args[0].detach(), current[0]).float()
        old = moments.get(path)
        if old is None:
            total, absolute, square = (x.new_zeros(x.shape[1]) for _ in range(3))
            wide = x.new_zeros(x.shape[1], x.shape[1]) if gram else None
            old = moments[path] = Inputs(0, total, absolute, square, wide)
        old.rows += len(x)
        old.total.add_(x.sum(0))
        old.absolute.add_(x.abs().sum(0))
        old.square.add_(x.square().sum(0))
        if old.products is not None:
            with torch.autocast(x.device.type, enabled=False):
                old.products.addmm_(x.T, x)

    return hook
