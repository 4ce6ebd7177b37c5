"""Gated MLPs over the patches, the features and the channels of a series (TSMixer, arXiv 2306.09364; TTM, 2401.03955).

States are (patches, batch, channels, width): what a patch mixer mixes stands first, so that its products have their weights
on the left and no state is ever transposed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightformers.errors import UserError
from lightformers.kernels.dropout import dropout
from lightformers.kernels.dropped_mlp import dropped_mlp
from lightformers.kernels.dropped_mlp import linear as product

NORMS = ("layer", "batch")
Norm = Literal["layer", "batch"]


@dataclass(frozen=True)
class Mixing:
    """What the mixers of a model share.

    expansion: width of a hidden layer over that of its input. dropout: after both layers. gated: softmax gates.
    norm: over the width of every state ("layer"), or of all states together ("batch"). eps: of the norm.
    Raises UserError for what makes no sense.
    """

    expansion: int = 2
    dropout: float = 0.2
    gated: bool = True
    norm: Norm = "layer"
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise UserError(f"norm is one of {', '.join(NORMS)}, not {self.norm!r}")
        if self.expansion < 1 or not 0 <= self.dropout < 1:
            raise UserError(
                f"expansion is at least 1 and dropout in [0, 1), not {self.expansion}, {self.dropout}"
            )


class LeftLinear(nn.Module):
    """A linear layer over the first dimension: (in, columns) -> (out, columns). weight: (out, in), bias: (out,)."""

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        started = nn.Linear(size_in, size_out)
        self.in_features, self.out_features = size_in, size_out
        self.weight, self.bias = started.weight, started.bias

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight, self.bias, left=True)


class MLP(nn.Module):
    """Two layers of equal size in and out, GELU and dropout: over the rows of a matrix, or, from the left, its columns."""

    def __init__(self, size: int, mixing: Mixing, left: bool) -> None:
        super().__init__()
        make = LeftLinear if left else nn.Linear
        self.fc1, self.fc2 = make(size, mixing.expansion * size), make(mixing.expansion * size, size)
        self.dropout, self.left = mixing.dropout, left

    def forward(self, x: Tensor) -> Tensor:
        fc1, fc2 = self.fc1, self.fc2
        p = self.dropout if self.training else 0.0
        if all(map(_plain, (fc1, fc2))):
            return dropped_mlp(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias, p, self.left)
        return dropout(fc2(dropout(F.gelu(fc1(x)), p)), p)


def _plain(layer: nn.Module) -> bool:
    """Whether a layer is as it was made: neither cut, nor quantized, nor looked at."""
    watched = layer._forward_hooks or layer._forward_pre_hooks
    return type(layer) in (LeftLinear, nn.Linear) and not watched


class Gate(nn.Module):
    """The factors of a state: softmax of a linear map of it, over what is mixed."""

    def __init__(self, size: int, left: bool) -> None:
        super().__init__()
        self.linear = (LeftLinear if left else nn.Linear)(size, size)
        self.dim = 0 if left else -1

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.linear(x), self.dim)


class Mixer(nn.Module):
    """x + gate(z) * z with z = MLP(norm(x)): over the patches (left) or over the features. Any state -> the same shape."""

    def __init__(self, size: int, width: int, mixing: Mixing, left: bool) -> None:
        super().__init__()
        self.norm = _norm(width, mixing)
        self.mlp = MLP(size, mixing, left)
        self.gate = Gate(size, left) if mixing.gated else None
        self.left = left

    def forward(self, x: Tensor) -> Tensor:
        shape = (x.shape[0], -1) if self.left else (-1, x.shape[-1])
        z = self.mlp(_normed(self.norm, x).reshape(shape))
        flat = x.reshape(shape)
        return (flat + z if self.gate is None else _gated(flat, z, self.gate(z))).reshape(x.shape)


class ChannelMixer(nn.Module):
    """x + MLP(gate(y) * y) with y = norm(x), over the channels: here the gate comes first."""

    def __init__(self, channels: int, width: int, mixing: Mixing) -> None:
        super().__init__()
        self.norm = _norm(width, mixing)
        self.gate = Gate(channels, True) if mixing.gated else None
        self.mlp = MLP(channels, mixing, True)

    def forward(self, x: Tensor) -> Tensor:
        y = _normed(self.norm, x).permute(2, 0, 1, 3)
        flat = y.reshape(y.shape[0], -1)
        z = self.mlp(flat if self.gate is None else self.gate(flat) * flat)
        return x + z.reshape(y.shape).permute(1, 2, 0, 3)


class MixerBlock(nn.Module):
    """One layer: channels (if any are mixed), then patches, then features. A single patch is not mixed.

    (patches, batch, channels, width) -> the same. channels: how many, where they are mixed; None: each for itself.
    """

    def __init__(self, patches: int, width: int, mixing: Mixing, channels: int | None = None) -> None:
        super().__init__()
        self.channels = None if channels is None else ChannelMixer(channels, width, mixing)
        self.patches = Mixer(patches, width, mixing, left=True) if patches > 1 else None
        self.features = Mixer(width, width, mixing, left=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.channels is not None:
            x = self.channels(x)
        if self.patches is not None:
            x = self.patches(x)
        return self.features(x)  # type: ignore[no-any-return]


def finer(x: Tensor, factor: int) -> Tensor:
    """Every patch cut into `factor` along its features: (n, batch, channels, d) -> (n factor, batch, channels, d / factor).

    A view of the numbers as (batch, channels, n, d) would keep their order, and so does this.
    """
    n, batch, channels, width = x.shape
    parts = x.reshape(n, batch, channels, factor, width // factor).permute(0, 3, 1, 2, 4)
    return parts.reshape(n * factor, batch, channels, width // factor)


def coarser(x: Tensor, factor: int) -> Tensor:
    """What `finer` cut put together again."""
    n, batch, channels, width = x.shape
    parts = x.reshape(n // factor, factor, batch, channels, width).permute(0, 2, 3, 1, 4)
    return parts.reshape(n // factor, batch, channels, width * factor)


def per_channel(x: Tensor) -> Tensor:
    """(patches, batch, channels, width) -> (batch, channels, patches * width): what a forecast is read from."""
    return x.permute(1, 2, 0, 3).flatten(2)


def _norm(width: int, mixing: Mixing) -> nn.Module:
    kind = nn.LayerNorm if mixing.norm == "layer" else nn.BatchNorm1d
    return kind(width, eps=mixing.eps)


def _normed(norm: nn.Module, x: Tensor) -> Tensor:
    if isinstance(norm, nn.BatchNorm1d):
        return norm(x.reshape(-1, x.shape[-1])).reshape(x.shape)  # type: ignore[no-any-return]
    return norm(x)  # type: ignore[no-any-return]


def _gated(x: Tensor, z: Tensor, gate: Tensor) -> Tensor:
    """x + gate * z, in one pass where nothing has to be converted."""
    return torch.addcmul(x, z, gate) if x.dtype == z.dtype == gate.dtype else x + z * gate
