"""Which cuts can be made of this model, and what each of them costs to run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.errors import ModelError, reason
from lightformers.slim.settings import Settings

#: Shares of a width that the search tries. Finer steps cost more trials than they find.
CHANNELS = (1.0, 0.75, 0.5, 0.375, 0.25)
HEADS = (1.0, 0.75, 0.5)
WIDTHS = (1.0, 0.75, 0.5)
RANKS = (1.0, 0.5, 0.25)

DIMENSIONS = ("blocks", "channels", "heads", "width", "rank")


@dataclass(frozen=True)
class Cut:
    """A point of the search space: how many blocks, and which share of channels, heads, width and rank stay.

    method: instead of these, a method of `compress.methods`, at `ratio` of the blocks' bytes.
    """

    blocks: int
    channels: float = 1.0
    heads: float = 1.0
    width: float = 1.0
    rank: float = 1.0
    method: str = ""
    ratio: float = 1.0

    @property
    def name(self) -> str:
        if self.method:
            return f"{self.method} {self.ratio:g}"
        parts = [f"{self.blocks} block{'' if self.blocks == 1 else 's'}"]
        parts += [f"{k} {v:g}" for k, v in (("ffn", self.channels), ("heads", self.heads)) if v < 1]
        parts += [f"{k} {v:g}" for k, v in (("width", self.width), ("rank", self.rank)) if v < 1]
        return ", ".join(parts)

    def work(self) -> np.ndarray:
        """Features of the cost of a pass: constant, per block, attention and feed-forward arithmetic. Not of methods."""
        attention = self.blocks * self.width * self.heads * self.rank
        return np.array(
            [1.0, self.blocks * self.width, attention, self.blocks * self.width * self.channels * self.rank]
        )


@dataclass(frozen=True)
class Space:
    """The cuts that are open for this model, with the reason for each that is closed.

    readable: anatomy knows where the blocks are; without that only how the model is run can change.
    """

    blocks: tuple[int, ...]
    channels: tuple[float, ...]
    heads: tuple[float, ...]
    width: tuple[float, ...]
    rank: tuple[float, ...]
    closed: tuple[str, ...]
    readable: bool = True

    @property
    def whole(self) -> Cut:
        return Cut(self.blocks[0])

    def __iter__(self) -> Iterator[Cut]:
        for blocks in self.blocks:
            for channels in self.channels:
                for heads in self.heads:
                    for width in self.width:
                        for rank in self.rank:
                            yield Cut(blocks, channels, heads, width, rank)


#: What a block must have for a cut to find something.
PARTS = {"heads": ("attention", "cross_attention"), "channels": ("feed_forward",)}


def draw(bundle: Bundle, settings: Settings) -> Space:
    """The space of this model under this request: what anatomy can cut, the family reloads and the user allows.

    A model that anatomy cannot read has a space of one point, the whole.
    """
    try:
        found = anatomy.of(bundle.model)
    except ModelError as error:
        one = (1.0,)
        return Space((1,), one, one, one, one, (f"any cut: {reason(error)}",), readable=False)
    depth = len(found.blocks)
    closed: list[str] = []

    def opened(step: str, cut: str, choices: tuple[Any, ...]) -> tuple[Any, ...]:
        if not settings.allows(step):
            closed.append(f"{step}: left out as asked")
            return choices[:1]
        if cut in PARTS and not any(getattr(b, part) for b in found.blocks for part in PARTS[cut]):
            closed.append(f"{step}: this {found.family} model has no {cut} to cut")
            return choices[:1]
        why = anatomy.native(bundle.model, cut)
        if why and not settings.allow_custom:
            closed.append(f"{step}: {why} (--allow-custom opens it)")
            return choices[:1]
        return choices

    least = sum(max(1, s.depth // 3) for s in found.stacks)
    depths = tuple(range(depth, least - 1, -1))
    rank: tuple[float, ...] = (1.0,)
    if settings.allow_custom and settings.allows("LowRank"):
        rank = RANKS
    else:
        closed.append(
            "LowRank: plain transformers cannot express factorized layers (--allow-custom opens it)"
        )
    widths: tuple[float, ...] = WIDTHS
    if bundle.pooling is not None:
        closed.append("PruneWidth: vectors of another size would not fit the user's index")
        widths = (1.0,)
    return Space(
        opened("DropBlocks", "blocks", depths),
        opened("PruneChannels", "channels", CHANNELS),
        opened("PruneHeads", "heads", HEADS),
        opened("PruneWidth", "width", widths) if len(widths) > 1 else widths,
        rank,
        tuple(closed),
    )


def grid(space: Space) -> list[Cut]:
    """The few cuts whose measured cost fixes the model of all others: the whole, and each kind halved."""
    whole = space.whole
    middle = space.blocks[len(space.blocks) // 2]
    points = [whole]
    if len(space.blocks) > 1:
        points.append(Cut(middle))
    for kind in ("channels", "heads", "width", "rank"):
        choices = getattr(space, kind)
        if len(choices) > 1:
            points.append(Cut(whole.blocks, **{kind: choices[-1]}))
    return points


def work_of(model: nn.Module, whole: nn.Module) -> np.ndarray:
    """The features of `Cut.work`, counted on a model that was cut from `whole`: weights stand for arithmetic."""
    found, before = anatomy.of(model), anatomy.of(whole)

    def weights(owner: nn.Module, blocks: Sequence[anatomy.Block], kind: str) -> int:
        parts = [getattr(b, kind) for b in blocks]
        return anatomy.parameters_of(owner, [p.path for p in parts if p])

    width, depth = found.width / before.width, len(before.blocks)
    shares = [
        depth * weights(model, found.blocks, kind) / max(weights(whole, before.blocks, kind), 1)
        for kind in ("attention", "feed_forward")
    ]
    return np.array([1.0, len(found.blocks) * width, *shares])


@dataclass(frozen=True)
class CostModel:
    """Seconds of a pass as a non-negative sum of the features of `Cut.work`, fitted on the measured grid."""

    weights: tuple[float, ...]

    @classmethod
    def fit(cls, cuts: list[Cut], seconds: list[float]) -> CostModel:
        features = np.stack([c.work() for c in cuts])
        target = np.asarray(seconds)
        weights = np.zeros(features.shape[1])
        active = list(range(features.shape[1]))
        while active:  # least squares; a feature that comes out negative is dropped and the rest fitted again
            solution = np.linalg.lstsq(features[:, active], target, rcond=None)[0]
            if (solution >= -1e-12).all():
                weights[active] = np.clip(solution, 0, None)
                break
            active.pop(int(solution.argmin()))
        return cls(tuple(float(w) for w in weights))

    def seconds(self, work: np.ndarray) -> float:
        """Of a pass with these features (`Cut.work`, `work_of`)."""
        return float(work @ np.asarray(self.weights))
