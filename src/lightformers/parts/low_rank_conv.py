"""A convolution through few channels: the convolutional encoder-decoder (CED) of Greenformers (arXiv 2108.10808)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_CONVOLVE = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}


class LowRankConv(nn.Module):
    """A convolution into `rank` channels with the original kernel, then one of size 1 into `out_channels`.

    (batch, in_channels, ...) -> (batch, out_channels, ...), in 1, 2 or 3 dimensions (as many as the kernel has).
    Holds rank * (in_channels * prod(kernel) + out_channels) weights. No groups; zeros are padded.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        rank: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int] | str,
        dilation: Sequence[int],
        bias: bool = True,
    ) -> None:
        super().__init__()
        if rank < 1 or len(kernel) not in _CONVOLVE:
            raise ValueError(
                f"rank {rank} must be at least 1, and a kernel {tuple(kernel)} have 1 to 3 sides"
            )
        self.in_channels, self.out_channels, self.rank = in_channels, out_channels, rank
        self.kernel, self.stride, self.dilation = tuple(kernel), tuple(stride), tuple(dilation)
        self.padding: Any = padding if isinstance(padding, str) else tuple(padding)
        self.first = nn.Parameter(torch.empty(rank, in_channels, *self.kernel))
        self.second = nn.Parameter(torch.empty(out_channels, rank, *(1 for _ in self.kernel)))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        nn.init.normal_(self.first, std=self.first[0].numel() ** -0.5)
        nn.init.normal_(self.second, std=rank**-0.5)

    @property
    def weight(self) -> Tensor:
        """The first kernel: models look at the dtype and device of a convolution's weight."""
        return self.first

    @property
    def args(self) -> dict[str, Any]:
        """What a manifest needs to rebuild this layer."""
        return {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "rank": self.rank,
            "kernel": list(self.kernel),
            "stride": list(self.stride),
            "padding": self.padding if isinstance(self.padding, str) else list(self.padding),
            "dilation": list(self.dilation),
            "bias": self.bias is not None,
        }

    def forward(self, x: Tensor) -> Tensor:
        convolve: Any = _CONVOLVE[len(self.kernel)]
        inner = convolve(x, self.first, None, self.stride, self.padding, self.dilation)
        return convolve(inner, self.second, self.bias)

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.args.items())
