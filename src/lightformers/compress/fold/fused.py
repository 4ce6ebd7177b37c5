"""FuseGPT's pieces: which blocks matter, which are tuned together, and a matrix that takes in another."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def influence(whole: Tensor, without: Tensor) -> float:
    """Macro influence: 1 - mean cosine of the last states with and without a block; (rows, width), (rows, width)."""
    return float(1 - nn.functional.cosine_similarity(whole.float(), without.float(), dim=-1).mean())


def group_of(block: int, size: int, depth: int) -> range:
    """`size` consecutive blocks around `block`, as far from the ends as they reach; all, where there are fewer."""
    size = min(size, depth)
    start = min(max(block - size // 2, 0), depth - size)
    return range(start, start + size)


class FusedLinear(nn.Module):
    """`W' = W + B_l A_l + (B A) * W_p` (entry by entry), `b' = b + c * b_p`; W, W_p, b, b_p are held, the rest is learnt.

    weight, injected: (out, in); rank: of both low-rank products. Equal to W at the start. inject, lora: which there are.
    """

    #: Models that look at `layer.weight.dtype` (t5) find no single matrix here, and skip their check.
    weight = None

    def __init__(
        self, weight: Tensor, bias: Tensor | None, injected: Tensor, injected_bias: Tensor | None, rank: int,
        inject: bool = True, lora: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.base: Tensor
        self.injected: Tensor
        self.base_bias: Tensor | None
        self.injected_bias: Tensor | None
        self.register_buffer("base", weight.detach().clone().contiguous())
        self.register_buffer("injected", injected.detach().clone().contiguous())
        self.register_buffer("base_bias", None if bias is None else bias.detach().clone())
        both = bias is not None and injected_bias is not None
        self.register_buffer(
            "injected_bias", injected_bias.detach().clone() if both and injected_bias is not None else None
        )
        rank = min(rank, *weight.shape)
        self.coefficients = nn.ParameterList(self._pair(weight, rank) if inject else ())
        self.bias_coefficient = nn.Parameter(torch.zeros_like(self.base_bias)) if inject and both else None
        self.lora = nn.ParameterList(self._pair(weight, rank) if lora else ())

    @staticmethod
    def _pair(weight: Tensor, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
        first = torch.empty(rank, weight.shape[1], dtype=weight.dtype, device=weight.device)
        nn.init.kaiming_uniform_(first, a=math.sqrt(5))
        return nn.Parameter(weight.new_zeros(weight.shape[0], rank)), nn.Parameter(first)

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """W' and b'."""
        weight, bias = self.base, self.base_bias
        if len(self.lora):
            weight = weight + self.lora[0] @ self.lora[1]
        if len(self.coefficients):
            weight = weight + (self.coefficients[0] @ self.coefficients[1]) * self.injected
        if self.bias_coefficient is not None and bias is not None and self.injected_bias is not None:
            bias = bias + self.bias_coefficient * self.injected_bias
        return weight, bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, *self.merged())
