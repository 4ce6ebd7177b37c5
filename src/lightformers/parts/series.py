"""What models of time series share: the scale of a window, and its patches. Shapes are (batch, length, channels)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightformers.errors import UserError

EPS = 1e-5


@dataclass(frozen=True)
class Window:
    """Mean and deviation of every channel of a window, both (batch, 1, channels), over its observed steps.

    Instance normalisation (Kim et al., RevIN, ICLR 2022) without weights. The deviation is that of the population, with
    `EPS` inside the root: a constant channel has 0.003, not 0. A channel that was never observed has mean 0.
    """

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, x: Tensor, mask: Tensor | None = None, detach_mean: bool = False) -> Window:
        """x, mask: (batch, length, channels); mask is true where a value was observed.

        detach_mean: no gradient passes through the mean (iTransformer's choice); x must need one for it to matter.
        """
        if mask is None:
            mean = x.mean(1, keepdim=True)
            square = (x - (mean.detach() if detach_mean else mean)).square().mean(1, keepdim=True)
        else:
            seen = mask.to(x.dtype)
            count = seen.sum(1, keepdim=True).clamp(min=1)
            held = torch.where(mask.bool(), x, 0.0)
            mean = held.sum(1, keepdim=True) / count
            apart = (held - (mean.detach() if detach_mean else mean)) * seen
            square = apart.square().sum(1, keepdim=True) / count
        return cls(mean.detach() if detach_mean else mean, torch.sqrt(square + EPS))

    def shrink(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """To mean 0 and deviation 1; 0, the mean, where nothing was observed."""
        y = (x - self.mean) / self.deviation
        return y if mask is None else torch.where(mask.bool(), y, 0.0)

    def grow(self, y: Tensor, channels: slice | list[int] | None = None) -> Tensor:
        """Back to the units of the window; channels: which ones y holds, all by default."""
        mean, deviation = self.mean, self.deviation
        if channels is not None:
            mean, deviation = mean[..., channels], deviation[..., channels]
        return y * deviation + mean


def patch_count(length: int, size: int, stride: int) -> int:
    """Patches of a window. Raises UserError where none fits, or where sizes are not positive."""
    if min(size, stride) < 1:
        raise UserError(f"a patch has a positive size and stride, not {size} and {stride}")
    if length <= size:
        raise UserError(f"a window of {length} steps must be longer than a patch of {size}")
    return (length - size) // stride + 1


def patches(x: Tensor, size: int, stride: int) -> Tensor:
    """(batch, length, channels) -> (batch, channels, patches, size). What does not fit goes at the oldest end."""
    count = patch_count(x.shape[1], size, stride)
    return x[:, x.shape[1] - (size + stride * (count - 1)) :].transpose(1, 2).unfold(2, size, stride)
