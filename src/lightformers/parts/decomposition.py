"""A series as the sum of trend, season and residual."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightformers.errors import UserError

COMPONENTS = ("trend", "season", "residual")


def moving_average(x: Tensor, kernel: int) -> Tensor:
    """(batch, length, channels) -> the same, each value the mean of `kernel` steps around it; beyond the ends the last value
    counts.

    Raises UserError for an even kernel: it has no middle.
    """
    if kernel < 1 or kernel % 2 == 0:
        raise UserError(f"a moving average is over an odd number of steps, not {kernel}")
    wide = nn.functional.pad(x.transpose(1, 2), (kernel // 2, kernel // 2), mode="replicate")
    return nn.functional.avg_pool1d(wide, kernel, 1).transpose(1, 2)


class Decomposition(nn.Module):
    """Trend, season and residual, learned: (batch, length) -> (batch, 3, length), whose sum is what went in.

    t = W MA(x) + b, a linear map over time of the moving average; s = MLP(x - t), with 4 length hidden units and a ReLU;
    r = x - t - s. Of TEMPO (Cao et al., 2023, arXiv 2310.04948). length, kernel: in steps.
    """

    def __init__(self, length: int, kernel: int = 25) -> None:
        super().__init__()
        moving_average(torch.zeros(1, 1, 1), kernel)  # refuses
        self.kernel = kernel
        self.trend = nn.Linear(length, length)
        self.season = nn.Sequential(nn.Linear(length, 4 * length), nn.ReLU(), nn.Linear(4 * length, length))

    def forward(self, x: Tensor) -> Tensor:
        trend = self.trend(moving_average(x[..., None], self.kernel)[..., 0])
        season = self.season(x - trend)
        return torch.stack([trend, season, x - trend - season], 1)


def decomposition_error(found: Tensor, wanted: Tensor) -> Tensor:
    """How far components are from given ones: (batch, 3, length) both -> scalar, the sum of three mean squared errors.

    Each wanted component is first brought to mean 0 and deviation 1 over its length, as TEMPO's code does it. Three such
    components do not add up to a window of deviation 1: the term pulls at the shapes, and wants a small weight.
    """
    mean = wanted.mean(2, keepdim=True)
    deviation = torch.sqrt(wanted.var(2, unbiased=False, keepdim=True) + 1e-5)
    return (found - (wanted - mean) / deviation).square().mean((0, 2)).sum()
