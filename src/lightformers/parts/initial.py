"""How linear layers of a plain transformer start (Radford et al., 2019: GPT-2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def linear(inputs: int, outputs: int, bias: bool, std: float) -> nn.Linear:
    """A linear layer with weights from N(0, std) and a bias of 0."""
    made = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(made.weight, std=std)
    if made.bias is not None:
        nn.init.zeros_(made.bias)
    return made


def once(x: Tensor) -> Tensor:
    """x in the dtype in which autocast hands it to linear layers: cast once where several read it."""
    kind = x.device.type
    if x.dtype == torch.float32 and kind != "meta" and torch.is_autocast_enabled(kind):
        return x.to(torch.get_autocast_dtype(kind))
    return x


def residual(std: float, layers: int) -> float:
    """The deviation of layers that write into a residual stream of `layers` layers with two such writers each."""
    return std / math.sqrt(2 * layers)
