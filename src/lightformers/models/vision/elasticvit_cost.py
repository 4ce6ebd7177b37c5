"""What a sub-network of an ElasticViT costs, by formula: no forward, no weights."""

from __future__ import annotations

from functools import lru_cache

from lightformers.models.vision.elasticvit_space import Architecture, ElasticViTSpace, Stage
from lightformers.parts.elastic import divisible

#: Expansion of the bottleneck at the entrance of an attention stage.
ENTRANCE = 6


def flops(space: ElasticViTSpace, arch: Architecture) -> int:
    """Multiply-adds of one image: products of convolutions, linear layers and attention; nothing else."""
    side, width = -(-arch.resolution // 2), arch.channels[0]
    total = 9 * space.inputs * width * side**2
    for stage, channels, ratios, second in zip(space.stages, arch.channels, arch.ratios, arch.second):
        made, side = _stage(stage, width, side, channels, ratios, second)
        total, width = total + made, channels
    return (
        total + space.expansion * width * (width * side**2 + space.features) + space.features * space.classes
    )


@lru_cache(maxsize=1 << 16)  # searches change a gene at a time: most stages are those of the time before
def _stage(
    stage: Stage, width: int, side: int, channels: int, ratios: tuple[int, ...], second: tuple[int, ...]
) -> tuple[int, int]:
    """Multiply-adds of a stage that gets `width` channels on a map of `side`, and the side of its output."""
    total = 0
    if stage.kind == "conv":
        for place, (ratio, kernel) in enumerate(zip(ratios, second)):
            stride = stage.stride if place == 0 else 1
            made, side = _bottleneck(width, channels, ratio, kernel, stride, side, stage.squeeze)
            total, width = total + made, channels
        return total, side
    total, side = _bottleneck(width, channels, ENTRANCE, 3, stage.stride, side, True)
    tokens = side**2
    for ratio, value in zip(ratios, second):
        products = (2 + 2 * value + 2 * ratio) * channels**2 + 9 * value * channels
        total += tokens * products + tokens**2 * (1 + value) * channels
    return total, side


def _bottleneck(
    inputs: int, outputs: int, ratio: int, kernel: int, stride: int, side: int, squeeze: bool
) -> tuple[int, int]:
    """Multiply-adds of an inverted bottleneck, and the side of its output."""
    inner, after = inputs * ratio, -(-side // stride)
    total = inputs * inner * side**2 if ratio > 1 else 0
    total += (kernel**2 + outputs) * inner * after**2
    if squeeze:
        total += 2 * inner * divisible(inner / 4)
    return total, after


def even(space: ElasticViTSpace, target: float, grid: int = 200) -> Architecture:
    """Of the sub-networks that are equally large in every dimension, the one whose cost is nearest to `target`."""
    candidates = dict.fromkeys(space.even(i / grid) for i in range(grid + 1))
    return min(candidates, key=lambda arch: abs(flops(space, arch) - target))
