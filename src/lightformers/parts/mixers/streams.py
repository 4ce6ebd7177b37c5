"""What delta rule, linear attention and Primer share: linear maps to queries, keys and values, each through a short
causal convolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lightformers.parts.mixers import State
from lightformers.parts.short_convolution import ShortConvolution

Streams = tuple[Tensor, ...]


class ConvolvedStreams(nn.Module):
    """x (batch, n, width) -> one tensor (batch, n, size) for each of `sizes`: linear, convolved, activated.

    The maps are one matrix, and the depthwise convolutions one convolution over all channels: the same numbers in fewer,
    larger operations. kernel: its places, 0 for none. activation: None for none. std: deviation of the matrix.
    """

    def __init__(
        self,
        width: int,
        sizes: Sequence[int],
        kernel: int,
        activation: Callable[[Tensor], Tensor] | None = None,
        std: float = 0.02,
    ) -> None:
        super().__init__()
        self.sizes, self.activation = tuple(sizes), activation
        self.map = nn.Linear(width, sum(sizes), bias=False)
        nn.init.normal_(self.map.weight, std=std)
        self.convolution = ShortConvolution(sum(sizes), kernel, bias=False) if kernel else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Streams:
        x = self.map(x)
        return self._cut(x if self.convolution is None else self.convolution(x, mask))

    def begin(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> State:
        return {} if self.convolution is None else self.convolution.begin(batch, device, dtype)

    def extend(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Streams, State]:
        x, state = self.map(x), {"inputs": state["inputs"]} if self.convolution is not None else {}
        if self.convolution is not None:
            x, state = self.convolution.extend(x, state, mask)
        return self._cut(x), state

    def step(self, x: Tensor, state: State) -> tuple[Streams, State]:
        """(batch, width) -> tensors (batch, size)."""
        x, state = self.map(x), {"inputs": state["inputs"]} if self.convolution is not None else {}
        if self.convolution is not None:
            x, state = self.convolution.step(x, state)
        return self._cut(x), state

    def _cut(self, x: Tensor) -> Streams:
        return (x if self.activation is None else self.activation(x)).split(self.sizes, -1)


def unit(x: Tensor) -> Tensor:
    """x / |x| over the last dimension, safe at zero: x * rsqrt(sum x^2 + 1e-6)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + 1e-6)).to(x.dtype)
