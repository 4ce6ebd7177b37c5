"""Blocks of an ElasticViT: inverted bottlenecks and attention, of any width and shape up to those they were made for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightformers.models.vision.elasticvit_cost import ENTRANCE
from lightformers.models.vision.elasticvit_space import Stage
from lightformers.parts.elastic import (
    ElasticBatchNorm,
    ElasticConv,
    ElasticLayerNorm,
    ElasticLinear,
    ElasticSqueeze,
    take,
)


class InvertedBottleneck(nn.Module):
    """Expand (1x1), depthwise convolution, squeeze-and-excitation, project (1x1), batch norms; Hardswish (arXiv 1905.02244).

    (batch, c, h, w) -> (batch, out, ceil(h / stride), ceil(w / stride)). inner width: ratio * c. With a ratio of 1 there
    is no expansion. residual: the input is added to the output.
    """

    def __init__(
        self, inputs: int, outputs: int, ratio: int, kernel: int, stride: int, squeeze: bool, residual: bool
    ) -> None:
        super().__init__()
        inner, self.residual = inputs * ratio, residual
        self.expand = ElasticConv(inputs, inner) if ratio > 1 else None
        self.expand_norm = ElasticBatchNorm(inner) if ratio > 1 else None
        self.depthwise = ElasticConv(inner, inner, kernel, stride, depthwise=True)
        self.depthwise_norm = ElasticBatchNorm(inner)
        self.squeeze = ElasticSqueeze(inner) if squeeze else None
        self.project = ElasticConv(inner, outputs)
        self.project_norm = ElasticBatchNorm(outputs)

    def forward(self, x: Tensor, out: int, ratio: int, kernel: int) -> Tensor:
        y = x
        if self.expand is not None and self.expand_norm is not None:
            y = F.hardswish(self.expand_norm(self.expand(y, x.shape[1] * ratio)))
        y = F.hardswish(self.depthwise_norm(self.depthwise(y, kernel=kernel)))
        if self.squeeze is not None:
            y = self.squeeze(y)
        y = self.project_norm(self.project(y, out))
        return x + y if self.residual else y


@lru_cache(maxsize=64)
def _distances(height: int, width: int) -> np.ndarray:
    """(h w, h w) places in a flat table of (2 h - 1) x (2 w - 1) relative positions."""
    rows, columns = np.divmod(np.arange(height * width), width)
    down = rows[:, None] - rows[None] + height - 1
    right = columns[:, None] - columns[None] + width - 1
    return down * (2 * width - 1) + right


class ElasticAttention(nn.Module):
    """Self-attention over a map, with heads of `head` channels, wide values, and a bias for relative positions.

    (batch, h w, c) -> the same. Queries and keys are c wide, values `values * c`; the values pass a 3x3 depthwise
    convolution over the map, the result a Hardswish and a projection. q, k and v are layers of their own, so that each
    keeps its leading channels.
    """

    def __init__(self, channels: int, values: int, head: int, side: int) -> None:
        super().__init__()
        self.head = head
        self.q = ElasticLinear(channels, channels)
        self.k = ElasticLinear(channels, channels)
        self.v = ElasticLinear(channels, values * channels)
        self.local = ElasticConv(values * channels, values * channels, 3, depthwise=True)
        self.table = nn.Parameter(torch.zeros(channels // head, 2 * side - 1, 2 * side - 1))
        self.out = ElasticLinear(values * channels, channels)

    def forward(self, x: Tensor, size: tuple[int, int], values: int) -> Tensor:
        batch, tokens, channels = x.shape[0], int(x.shape[1]), int(x.shape[2])
        heads = channels // self.head
        v = self.v(x, values * channels).transpose(1, 2).reshape(batch, values * channels, *size)
        v = self.local(v).reshape(batch, heads, values * self.head, tokens).transpose(2, 3)
        q, k = (
            layer(x, channels).view(batch, tokens, heads, self.head).transpose(1, 2)
            for layer in (self.q, self.k)
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias(heads, size).to(q.dtype))
        y = y.transpose(1, 2).reshape(batch, tokens, values * channels)
        return self.out(F.hardswish(y), channels)

    def bias(self, heads: int, size: tuple[int, int]) -> Tensor:
        """(1, heads, h w, h w): what is added to the logits. Smaller maps use the middle of the table."""
        height, width = size
        table = take(self.table, (heads, 2 * height - 1, 2 * width - 1)).flatten(1)
        index = torch.from_numpy(_distances(height, width)).to(table.device)
        return table[:, index.flatten()].view(1, heads, height * width, height * width)


class AttentionBlock(nn.Module):
    """Pre-norm attention and feed-forward (Hardswish), each with a residual."""

    def __init__(self, channels: int, ratio: int, values: int, head: int, side: int) -> None:
        super().__init__()
        self.attention_norm = ElasticLayerNorm(channels)
        self.attention = ElasticAttention(channels, values, head, side)
        self.norm = ElasticLayerNorm(channels)
        self.up = ElasticLinear(channels, ratio * channels)
        self.down = ElasticLinear(ratio * channels, channels)

    def forward(self, x: Tensor, size: tuple[int, int], ratio: int, values: int) -> Tensor:
        x = x + self.attention(self.attention_norm(x), size, values)
        channels = x.shape[-1]
        return x + self.down(F.hardswish(self.up(self.norm(x), ratio * channels)), channels)


class ConvStage(nn.Module):
    """Inverted bottlenecks. ratios, kernels: of each block, the largest it is to hold."""

    def __init__(
        self,
        stage: Stage,
        inputs: int,
        channels: int,
        ratios: Sequence[int],
        kernels: Sequence[int],
        first: bool,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for place, (ratio, kernel) in enumerate(zip(ratios, kernels)):
            stride = stage.stride if place == 0 else 1
            # the first block of a stage changes the channels, but for the stage whose channels are the stem's
            residual = stride == 1 and (place > 0 or first)
            self.blocks.append(
                InvertedBottleneck(inputs, channels, ratio, kernel, stride, stage.squeeze, residual)
            )
            inputs = channels

    def forward(self, x: Tensor, channels: int, ratios: Sequence[int], kernels: Sequence[int]) -> Tensor:
        for block, ratio, kernel in zip(self.blocks, ratios, kernels):
            x = block(x, channels, ratio, kernel)
        return x


class AttentionStage(nn.Module):
    """An inverted bottleneck to the stage's channels and side, then blocks of attention.

    ratios, values: of each block, the largest it is to hold. side: of the largest map after the entrance.
    """

    def __init__(
        self, stage: Stage, inputs: int, channels: int, ratios: Sequence[int], values: Sequence[int], head: int, side: int
    ) -> None:  # fmt: skip
        super().__init__()
        self.entrance = InvertedBottleneck(inputs, channels, ENTRANCE, 3, stage.stride, True, False)
        self.blocks = nn.ModuleList(
            AttentionBlock(channels, ratio, value, head, side) for ratio, value in zip(ratios, values)
        )

    def forward(self, x: Tensor, channels: int, ratios: Sequence[int], values: Sequence[int]) -> Tensor:
        x = self.entrance(x, channels, ENTRANCE, 3)
        size = (int(x.shape[2]), int(x.shape[3]))  # plain numbers also while a graph is traced
        y = x.flatten(2).transpose(1, 2)
        for block, ratio, value in zip(self.blocks, ratios, values):
            y = block(y, size, ratio, value)
        return y.transpose(1, 2).reshape(x.shape)
