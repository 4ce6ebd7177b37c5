"""What an ElasticViT super-network holds: its stages, the choices in each, and one sub-network as a value."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from lightformers.errors import ModelError, UserError

#: One number per gene of a space: resolution; per stage channels, depth, then for every place a block may have its
#: ratio and its kernel (convolution) or value expansion (attention). Genes of absent blocks are silent.
Genome = tuple[int, ...]
_GOLDEN = (5**0.5 - 1) / 2  # its multiples, modulo 1, lie evenly


@dataclass(frozen=True)
class Stage:
    """Choices of one stage, ascending.

    kind: "conv" (inverted bottlenecks) or "attention" (an inverted bottleneck that changes width and side, then
        blocks of attention and feed-forward). stride: of the first block.
    depths, channels: blocks; channels of all of them. ratios: expansion of a bottleneck (1: no expansion at all, and
        then the only choice), or hidden over outer width of a feed-forward.
    kernels: sides of the depthwise kernels (conv). values: width of the values over the block's (attention).
    squeeze: squeeze-and-excitation in the bottlenecks (conv; the entrance of an attention stage always has it).
    """

    kind: Literal["conv", "attention"]
    depths: tuple[int, ...]
    channels: tuple[int, ...]
    ratios: tuple[int, ...]
    stride: int = 1
    kernels: tuple[int, ...] = (3,)
    values: tuple[int, ...] = (2,)
    squeeze: bool = False

    def __post_init__(self) -> None:
        for name in ("depths", "channels", "ratios", "kernels", "values"):
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)
            if not values or values[0] < 1 or any(a >= b for a, b in itertools.pairwise(values)):
                raise UserError(f"{name} of a stage must be positive and ascending, got {values}")
        if self.kind not in ("conv", "attention") or self.stride not in (1, 2):
            raise UserError(f"a stage is conv or attention, of stride 1 or 2, not {self.kind}, {self.stride}")
        if self.kind == "conv" and (
            any(k % 2 == 0 for k in self.kernels) or self.ratios[0] == 1 < len(self.ratios)
        ):
            raise UserError("kernels must be odd, and an expansion of 1 must be the only one of its stage")

    @property
    def second(self) -> tuple[int, ...]:
        """What is chosen per block beside the ratio."""
        return self.kernels if self.kind == "conv" else self.values


@dataclass(frozen=True)
class Architecture:
    """One sub-network. Per stage: channels, depth, and for each block its ratio and its kernel or value expansion."""

    resolution: int
    channels: tuple[int, ...]
    depths: tuple[int, ...]
    ratios: tuple[tuple[int, ...], ...]
    second: tuple[tuple[int, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Architecture:
        rows = {k: tuple(tuple(v) for v in value[k]) for k in ("ratios", "second")}
        return cls(value["resolution"], tuple(value["channels"]), tuple(value["depths"]), **rows)

    def __str__(self) -> str:
        return f"{self.resolution} px, channels {self.channels}, depths {self.depths}"


@dataclass(frozen=True)
class ElasticViTSpace:
    """All sub-networks of a super-network.

    resolutions: sides of the square input, in pixels. stages: the first one's channels are the stem's too (a 3x3
    convolution of stride 2). expansion: of the channels before the mean; features: between mean and classes.
    head: channels of a query head.
    """

    resolutions: tuple[int, ...]
    stages: tuple[Stage, ...]
    classes: int = 1000
    features: int = 1984
    expansion: int = 6
    head: int = 16
    inputs: int = field(default=3)

    def __post_init__(self) -> None:
        object.__setattr__(self, "resolutions", tuple(self.resolutions))
        object.__setattr__(self, "stages", tuple(self.stages))
        if not self.resolutions or any(a >= b for a, b in itertools.pairwise(self.resolutions)):
            raise UserError(f"resolutions must be ascending, got {self.resolutions}")
        if not self.stages or min(self.resolutions[0], self.classes, self.features, self.expansion) < 1:
            raise UserError("a space needs stages, and sizes of at least 1")
        for stage in self.stages:
            if stage.kind == "attention" and any(c % self.head for c in stage.channels):
                raise UserError(
                    f"channels {stage.channels} of attention must be multiples of a head of {self.head}"
                )

    @cached_property
    def genes(self) -> tuple[tuple[int, ...], ...]:
        """The choices of every gene."""
        out = [self.resolutions]
        for s in self.stages:
            out += [s.channels, s.depths, *(s.ratios, s.second) * s.depths[-1]]
        return tuple(out)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each stage's genes begin: channels, depth, then two per block."""
        sizes = (2 + 2 * s.depths[-1] for s in self.stages)
        return tuple(itertools.accumulate(sizes, initial=1))[:-1]

    def decode(self, genome: Sequence[int]) -> Architecture:
        """The sub-network that a genome describes."""
        channels, depths, ratios, second = [], [], [], []
        for start in self.starts:
            depth = genome[start + 1]
            channels.append(genome[start])
            depths.append(depth)
            ratios.append(tuple(genome[start + 2 : start + 2 + 2 * depth : 2]))
            second.append(tuple(genome[start + 3 : start + 3 + 2 * depth : 2]))
        return Architecture(genome[0], tuple(channels), tuple(depths), tuple(ratios), tuple(second))

    def encode(self, arch: Architecture) -> Genome:
        """A genome of a sub-network; places without a block repeat the last block of the stage."""
        genome = [arch.resolution]
        for i, stage in enumerate(self.stages):
            blocks = list(zip(arch.ratios[i], arch.second[i]))
            blocks += [blocks[-1]] * (stage.depths[-1] - len(blocks))
            genome += [arch.channels[i], arch.depths[i], *itertools.chain.from_iterable(blocks)]
        return tuple(genome)

    def even(self, share: float) -> Architecture:
        """The sub-network whose every gene is at this share (0 to 1) of its choices: 0 the smallest, 1 the largest.

        Genes take their steps at different shares, so that there are many such networks also where choices are few.
        """
        phases = (i * _GOLDEN % 1 for i in range(1, len(self.genes) + 1))
        return self.decode([gene[int(share * (len(gene) - 1) + p)] for gene, p in zip(self.genes, phases)])

    @property
    def smallest(self) -> Architecture:
        return self.even(0.0)

    @property
    def largest(self) -> Architecture:
        return self.even(1.0)

    def sample(self, rng: np.random.Generator) -> Architecture:
        """Every gene drawn uniformly."""
        return self.decode([gene[rng.integers(len(gene))] for gene in self.genes])

    def sides(self, resolution: int) -> tuple[int, ...]:
        """Side of the map after each stage."""
        side = -(-resolution // 2)
        return tuple(
            itertools.accumulate((s.stride for s in self.stages), lambda a, s: -(-a // s), initial=side)
        )[1:]

    def check(self, arch: Architecture) -> None:
        """Raises ModelError where `arch` is no sub-network of this space, with the first reason."""
        for name in ("channels", "depths", "ratios", "second"):
            if len(getattr(arch, name)) != len(self.stages):
                raise ModelError(
                    f"{name} of an architecture has an entry for each of {len(self.stages)} stages, got {getattr(arch, name)}"
                )
        for i, stage in enumerate(self.stages):
            for name, row in (("ratios", arch.ratios[i]), ("kernels or values", arch.second[i])):
                if len(row) != arch.depths[i]:
                    raise ModelError(f"stage {i} has {arch.depths[i]} blocks and {len(row)} {name}")
            pairs = (
                ("channels", {arch.channels[i]}, stage.channels), ("depth", {arch.depths[i]}, stage.depths),
                ("ratios", set(arch.ratios[i]), stage.ratios), ("kernels or values", set(arch.second[i]), stage.second),
            )  # fmt: skip
            for name, chosen, choices in pairs:
                if strange := chosen - set(choices):
                    raise ModelError(f"{name} {min(strange)} of stage {i} is none of {choices}")
        if arch.resolution not in self.resolutions:
            raise ModelError(f"resolution {arch.resolution} is none of {self.resolutions}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ElasticViTSpace:
        return cls(**{**value, "stages": tuple(Stage(**stage) for stage in value["stages"])})
