"""Regression in context: draws of tasks whose function must be found from examples in the prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Representation:
    """y = <w, phi(x)> / sqrt(features): phi is a fixed network of one ReLU layer, w is drawn anew for every prompt.

    first (n, hidden), second (hidden, features).
    """

    first: Tensor
    second: Tensor

    @classmethod
    def drawn(cls, n: int, hidden: int, features: int, seed: int) -> Representation:
        g = torch.Generator().manual_seed(seed)
        first = torch.randn(n, hidden, generator=g) * (2 / n) ** 0.5
        return cls(first, torch.randn(hidden, features, generator=g) * hidden**-0.5)

    def features(self, x: Tensor) -> Tensor:
        return (x @ self.first).relu() @ self.second

    def draw(self, batch: int, points: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """x (batch, points, n) and y (batch, points)."""
        x = torch.randn(batch, points, len(self.first), generator=generator)
        w = torch.randn(batch, self.second.shape[1], 1, generator=generator)
        return x, (self.features(x) @ w)[..., 0] * self.second.shape[1] ** -0.5


def least_squares(x: Tensor, y: Tensor, ridge: float = 1e-4) -> Tensor:
    """(batch, points, k), (batch, points) -> predictions of each y from the points before it, (batch, points); the first
    is 0. Ridge regression in float64."""
    x, y = x.double(), y.double()
    outer = (x[..., :, None] * x[..., None, :]).cumsum(1) - x[..., :, None] * x[..., None, :]
    inner = (x * y[..., None]).cumsum(1) - x * y[..., None]
    eye = ridge * torch.eye(x.shape[-1], dtype=x.dtype)
    weights = torch.linalg.solve(outer + eye, inner[..., None])[..., 0]
    return (weights * x).sum(-1).float()
