"""Heads that correct forecasts by what belongs together: across channels, and between steps and their sums."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.patch_mixer import Gate


class ChannelReconciliation(nn.Module):
    """Adds to every forecast step what its surroundings in all channels say (TSMixer; the exogenous mixer of TTM).

    The steps t - context .. t + context of all channels, past values in front of the first forecast and zeros behind the
    last, are flattened, gated by a softmax, and mapped to the targets. All values are in the scale of the window.

    targets: channels that are forecast; known: channels whose future is known, which follow them.
    """

    def __init__(self, targets: int, known: int = 0, context: int = 1, gated: bool = True) -> None:
        super().__init__()
        if targets < 1 or min(known, context) < 0:
            raise UserError(
                f"{targets} targets, {known} known channels, {context} steps around: nothing to reconcile"
            )
        size = (targets + known) * (2 * context + 1)
        self.gate = Gate(size, left=False) if gated else None
        self.linear = nn.Linear(size, targets)
        self.context = context

    def forward(self, forecast: Tensor, past: Tensor, known: Tensor | None = None) -> Tensor:
        """forecast: (batch, horizon, targets); past: (batch, steps, targets + known), at least `context` steps; known:
        (batch, horizon, known). -> (batch, horizon, targets)."""
        every = forecast if known is None else torch.cat([forecast, known.to(forecast.dtype)], -1)
        if self.context:
            before = past[:, past.shape[1] - self.context :].to(every.dtype)
            every = torch.cat([before, every, torch.zeros_like(before)], 1)
        around = every.unfold(1, 2 * self.context + 1, 1).flatten(2)
        if self.gate is not None:
            around = around * self.gate(around)
        return forecast + self.linear(around)  # type: ignore[no-any-return]


class HierarchyReconciliation(nn.Module):
    """Forecasts the sums of `patch` steps too, and fuses them with the steps (TSMixer).

    features: size of what a channel's forecast is read from; horizon: a multiple of `patch`. The fusing layer, shared by
    all patches and channels, is written as the steps and a linear map of steps and sum: the same maps as those of one
    linear layer, near the plain forecast at the start. The paper says nothing of its start.
    """

    def __init__(self, features: int, horizon: int, patch: int) -> None:
        super().__init__()
        if patch < 1 or horizon % patch:
            raise UserError(
                f"a horizon of {horizon} steps cannot be cut into sums of {patch}: it must be a multiple"
            )
        self.sums = nn.Linear(features, horizon // patch)
        self.fuse = nn.Linear(patch + 1, patch)
        self.patch = patch

    def forward(self, forecast: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """forecast: (..., horizon), features: (..., features). -> forecast and sums (..., horizon / patch)."""
        sums = self.sums(features)
        steps = forecast.unflatten(-1, (-1, self.patch))
        fused = steps + self.fuse(torch.cat([steps, sums[..., None]], -1))
        return fused.flatten(-2), sums


def patch_sums(values: Tensor, patch: int) -> Tensor:
    """(batch, horizon, channels) -> (batch, horizon / patch, channels)."""
    return values.unflatten(1, (-1, patch)).sum(2)
