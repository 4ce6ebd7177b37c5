"""Layers that hold narrower layers: a sub-network uses leading channels and the centre of a kernel.

One rule, `take`, says which numbers of a weight a smaller layer uses. It is applied when a sub-network runs inside the
large one and when it is copied out, so both give the same outputs. No layer remembers a size: the input's channels are
read off the input, the output's are an argument.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def take(weight: Tensor, shape: Sequence[int]) -> Tensor:
    """The part of `weight` that a layer of `shape` uses: a view, or `weight` itself where nothing is left out.

    Channels are leading ones. Spatial dimensions keep their centre: the last two of a convolution's kernel
    (out, in, k, k), and of a table of relative positions (heads, 2 h - 1, 2 w - 1), whose centre is distance 0.
    Raises ValueError where `shape` is larger.
    """
    if len(shape) != weight.ndim or any(kept > size for kept, size in zip(shape, weight.shape)):
        raise ValueError(
            f"a weight of shape {tuple(weight.shape)} holds no layer whose weight has {tuple(shape)}"
        )
    spatial = weight.ndim - 2 if weight.ndim > 2 else weight.ndim
    for dim, (size, kept) in enumerate(zip(weight.shape, shape)):
        if kept != size:
            weight = weight.narrow(dim, (size - kept) // 2 if dim >= spatial else 0, kept)
    return weight


def copy_into(small: nn.Module, large: nn.Module) -> None:
    """Fill `small` with what it uses of `large`: every weight and buffer of the same name, cut by `take`.

    Raises KeyError where `large` has no weight of a name, ValueError where one is smaller.
    """
    held = large.state_dict()
    cut = {name: take(held[name], tensor.shape).clone() for name, tensor in small.state_dict().items()}
    small.load_state_dict(cut)


def divisible(value: float, by: int = 8) -> int:
    """The multiple of `by` nearest to `value`, never more than 10 % below it (the rule of MobileNets)."""
    rounded = max(by, int(value + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * value else rounded


class ElasticLinear(nn.Module):
    """(..., c) -> (..., out) for any c up to `inputs` and `out` up to `outputs`. The bias may be absent."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor, out: int | None = None) -> Tensor:
        out = out or len(self.weight)
        bias = None if self.bias is None else take(self.bias, (out,))
        return F.linear(x, take(self.weight, (out, int(x.shape[-1]))), bias)


class ElasticConv(nn.Module):
    """(batch, c, h, w) -> (batch, out, ceil(h / stride), ceil(w / stride)), odd kernel, zeros around.

    depthwise: a kernel of its own for every channel; then out = c.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, depthwise: bool = False, bias: bool = False
    ) -> None:  # fmt: skip
        super().__init__()
        self.kernel, self.stride, self.depthwise = kernel, stride, depthwise
        self.weight = nn.Parameter(torch.empty(outputs, 1 if depthwise else inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        fan = kernel**2 * (1 if depthwise else outputs)
        nn.init.normal_(self.weight, std=(2 / fan) ** 0.5)

    def forward(self, x: Tensor, out: int | None = None, kernel: int | None = None) -> Tensor:
        kernel, channels = (
            kernel or self.kernel,
            int(x.shape[1]),
        )  # a plain number also while a graph is traced
        if self.depthwise:
            out, groups, inputs = channels, channels, 1
        else:
            out, groups, inputs = out or len(self.weight), 1, channels
        weight = take(self.weight, (out, inputs, kernel, kernel))
        bias = None if self.bias is None else take(self.bias, (out,))
        return F.conv2d(x, weight, bias, self.stride, kernel // 2, groups=groups)


class ElasticBatchNorm(nn.Module):
    """Batch normalization of the channels that come, (batch, c, ...).

    All widths share one set of running statistics, which are right for none of them: see
    `lightformers.compress.elastic.batch_norm.recalibrate`.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        shape = (int(x.shape[1]),)
        return F.batch_norm(
            x,
            take(self.running_mean, shape),  # a view: training updates the shared statistics
            take(self.running_var, shape),
            take(self.weight, shape),
            take(self.bias, shape),
            self.training,
            self.momentum,
            self.eps,
        )


class ElasticLayerNorm(nn.Module):
    """Layer normalization of each token over the channels that come, (..., c)."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        shape = (int(x.shape[-1]),)
        return F.layer_norm(x, shape, take(self.weight, shape), take(self.bias, shape), self.eps)


class ElasticSqueeze(nn.Module):
    """Squeeze-and-excitation (arXiv 1709.01507): channels times a gate that is computed from their means.

    The hidden layer has a quarter of the channels that come; ReLU, then a hard sigmoid.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = ElasticConv(channels, divisible(channels / 4), bias=True)
        self.expand = ElasticConv(divisible(channels / 4), channels, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        channels = int(x.shape[1])
        hidden = F.relu(self.reduce(x.mean((2, 3), keepdim=True), divisible(channels / 4)))
        return x * F.hardsigmoid(self.expand(hidden, channels))
