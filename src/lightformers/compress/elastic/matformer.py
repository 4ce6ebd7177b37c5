"""MatFormer: feed-forwards nested in one another; sizes are trained, mixtures of them come free."""

from __future__ import annotations

import itertools
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Batch, Bundle
from lightformers.compress.distill import common
from lightformers.compress.elastic import order, teaching
from lightformers.compress.elastic.shared import Shared
from lightformers.compress.elastic.size import Size
from lightformers.compress.elastic.space import Space, whole
from lightformers.errors import ModelError, UserError
from lightformers.steps import Run


@dataclass(frozen=True)
class MatFormer:
    """Train the first channels of each feed-forward as smaller ones (Devvrit et al., 2023, arXiv 2310.07707).

    A sub-network has the first m inner channels of a feed-forward: the first m rows of what leads in (gate and up
    alike), the first m columns of what leads out. Attention, norms, embeddings and head are whole and shared. Only
    equal granularities in all blocks are trained; every mixture of them is a sub-network too (`mix_and_match`).

    ratios: granularities, as shares of the inner channels, ascending up to 1.
    mode: "sample" trains one granularity per step, drawn for the whole batch; "joint" all of them, at their cost.
    weights: per granularity, its probability ("sample") or the weight of its loss ("joint"), normalised to 1; None:
        uniform.
    sort: put the channels that matter most first before training, on `examples` examples. The paper trains from
        scratch and needs no order; a trained model has none, and starts far better from this one.
    lr, epochs, seconds, share, max_tokens, warmup, weight_decay: as in `distill.Recover`. The paper's models were
        pre-trained, its public script at 1e-4.

    What differs from the paper: without labels the sub-networks learn the outputs of the run's teacher. Channels beyond
    the granularity of a step get a gradient of zero, but AdamW's momentum and weight decay still move them.
    """

    ratios: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0)
    mode: Literal["sample", "joint"] = "sample"
    weights: tuple[float, ...] | None = None
    sort: bool = True
    examples: int = 64
    lr: float = 1.2e-4
    epochs: float = 3.0
    seconds: float | None = None
    share: float = 1.0
    max_tokens: int | None = None
    warmup: float = 0.05
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        steps = [b - a for a, b in zip((0.0, *self.ratios), self.ratios)]
        if not self.ratios or min(steps) <= 0 or self.ratios[-1] != 1:
            raise UserError(f"ratios must rise from above 0 up to 1, got {self.ratios}")
        if self.mode not in ("sample", "joint"):
            raise UserError(f"mode {self.mode!r} is not one of sample, joint")
        if self.weights is not None and (
            len(self.weights) != len(self.ratios) or min(self.weights) < 0 or sum(self.weights) <= 0
        ):
            raise UserError("weights are as many as ratios, none negative, not all 0")
        if not self.lr > 0 or not 0 < self.share <= 1:
            raise UserError("lr must be positive, share in (0, 1]")

    def space(self, bundle: Bundle) -> Space:
        """The sizes of a model: any granularity in any block. Raises ModelError where a share is no whole number."""
        full = whole(bundle.model)
        multiple = anatomy.of(bundle.model).native.channels_multiple
        channels = [full.channels[0] * ratio for ratio in self.ratios]
        odd = [c for c in channels if c % multiple]
        if odd:
            raise ModelError(
                f"feed-forwards of {full.channels[0]} channels have no granularity of {odd[0]:g} channels"
                + (f": this family takes multiples of {multiple}" if multiple > 1 else "")
            )
        return replace(full, channels=tuple(round(c) for c in channels))

    def train(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Train `bundle` in place. Raises before anything is changed: ModelError, UserError without task or teacher."""
        started = time.monotonic()
        space = self.space(bundle)
        teaching.check(bundle, task, run)
        run = common.shared(run, self.share, self.seconds)
        if self.sort:
            order.reorder_channels(bundle.model, order.channel_order(bundle, task, run, self.examples))
        batches = common.feed(bundle, task, run, self.max_tokens)
        plan = common.Plan(self.lr, self.epochs, self.warmup, self.weight_decay)
        with ExitStack() as stack:
            lesson = teaching.lesson(bundle, task, run, batches, stack)
            objective = Nested(
                Shared(bundle, space.nesting), granularities(space), lesson, self.mode, self.weights, run.seed
            )
            common.train(bundle, batches, objective, plan, run, started)
        return bundle


@dataclass
class Nested:
    """(module, batch) -> loss of the sub-network of this step, or of all `sizes` together.

    Which one is drawn is a function of seed and position of the batch alone, so training can be resumed. It is an
    argument of the forward, never a state of the model: nothing has to be put back.
    """

    shared: Shared
    sizes: list[Size]
    lesson: teaching.Lesson
    mode: Literal["sample", "joint"] = "sample"
    weights: tuple[float, ...] | None = None
    seed: int = 0
    drawn: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        given = np.array(self.weights or [1.0] * len(self.sizes))
        self.probabilities = given / given.sum()

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        if self.mode == "sample":
            position = batch.targets.get("position", len(self.drawn))
            rng = np.random.default_rng((self.seed, position))
            self.drawn.append(int(rng.choice(len(self.sizes), p=self.probabilities)))
            return self.lesson(self.shared.module(self.sizes[self.drawn[-1]]), batch)
        losses = [
            float(weight) * self.lesson(self.shared.module(size), batch)
            for size, weight in zip(self.sizes, self.probabilities)
            if weight
        ]
        total: Tensor = sum(losses[1:], losses[0])
        return total


def granularities(space: Space) -> list[Size]:
    """The sizes that are trained: the same choice of channels in all blocks, smallest first."""
    return list(replace(space, alike=True))


def mixtures(space: Space) -> list[Size]:
    """From the smallest size to the largest, one block at a time, the last blocks first.

    Channels never fall with depth and take at most two neighbouring choices: the mixtures that change least. Blocks,
    heads and width are the largest of the space.
    """
    blocks, heads, width = space.blocks[-1], space.heads[-1], space.width[-1]
    inner = space.inner(width)
    rows = [(inner[0],) * blocks]
    for low, high in itertools.pairwise(inner):
        rows += [(low,) * (blocks - n) + (high,) * n for n in range(1, blocks + 1)]
    return [Size(blocks, (heads,) * blocks, row, width) for row in rows]


def mix_and_match(space: Space, budget: int) -> Size:
    """The largest of `mixtures` with at most `budget` inner channels over all blocks (their number sets the rest).

    Raises UserError where the smallest has more.
    """
    fits = [size for size in mixtures(space) if sum(size.channels) <= budget]
    if not fits:
        least = sum(mixtures(space)[0].channels)
        raise UserError(f"no mixture has {budget} inner channels or fewer: the smallest has {least}")
    return fits[-1]
