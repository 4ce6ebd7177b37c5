"""A linear layer as the product of two thin ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class LowRankLinear(nn.Module):
    """`y = (x A^T) B^T + b` with A (rank, in_features) and B (out_features, rank).

    (..., in_features) -> (..., out_features). Holds rank * (in_features + out_features) weights, so it is smaller
    than the dense layer only below `break_even(in_features, out_features)`.
    """

    #: Models that look at `layer.weight.dtype` (t5) find no single matrix here, and skip their check.
    weight = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= rank <= min(in_features, out_features):
            raise ValueError(f"rank {rank} is not between 1 and {min(in_features, out_features)}")
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.first = nn.Parameter(torch.empty(rank, in_features, device=device, dtype=dtype))
        self.second = nn.Parameter(torch.empty(out_features, rank, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        nn.init.normal_(self.first, std=in_features**-0.5)
        nn.init.normal_(self.second, std=rank**-0.5)

    @classmethod
    def from_factors(cls, first: Tensor, second: Tensor, bias: Tensor | None) -> LowRankLinear:
        """From A (rank, in) and B (out, rank); the tensors are copied, device and dtype are those of A."""
        layer = cls(
            first.shape[1], second.shape[0], first.shape[0], bias is not None, first.device, first.dtype
        )
        with torch.no_grad():
            layer.first.copy_(first)
            layer.second.copy_(second)
            if bias is not None:
                layer.bias.copy_(bias)  # type: ignore[union-attr]
        return layer

    @property
    def args(self) -> dict[str, Any]:
        """What a manifest needs to rebuild this layer."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "rank": self.rank,
            "bias": self.bias is not None,
        }

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(nn.functional.linear(x, self.first), self.second, self.bias)

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.args.items())


def break_even(in_features: int, out_features: int) -> int:
    """The largest rank at which two factors hold fewer weights than the matrix (0 if there is none)."""
    return (in_features * out_features - 1) // (in_features + out_features)
