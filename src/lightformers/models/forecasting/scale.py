"""What forecasters share that bring a window to its own scale: the window as they read it, and the error of a forecast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightformers.models.forecasting.output import check_past
from lightformers.parts.series import Window


def scaled(past: Tensor, mask: Tensor | None, config: Any) -> tuple[Tensor, Window | None]:
    """The window as the model reads it, missing values at the mean, and its scale (None where it is left as it is)."""
    check_past(past, mask, config)
    window = Window.of(past, mask)
    if config.instance_norm:
        return window.shrink(past, mask), window
    return past if mask is None else torch.where(mask.bool(), past, window.mean), None


def squared_error(made: Tensor, wanted: Tensor, seen: Tensor | None = None) -> Tensor:
    """Mean over the places that were seen; 0 where there are none."""
    apart = made.float() - wanted.float()
    if seen is None:
        return apart.square().mean()
    return torch.where(seen.bool(), apart, 0.0).square().sum() / seen.sum().clamp(min=1)
