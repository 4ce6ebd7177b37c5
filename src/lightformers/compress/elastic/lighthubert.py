"""LightHuBERT: a once-for-all speech encoder, distilled in two stages."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Batch, Bundle
from lightformers.compress.distill import common
from lightformers.compress.elastic import waves
from lightformers.compress.elastic.candidates import Candidate, ranked
from lightformers.compress.elastic.presets import Preset, cut_to_largest, space_of
from lightformers.compress.elastic.shared import Shared, outline
from lightformers.compress.elastic.size import Nesting, Size
from lightformers.compress.elastic.space import Space
from lightformers.errors import DataError, UserError
from lightformers.steps import Run

#: The paper's two spaces, of HuBERT base.
PARTITIONS = {
    "base": Preset((12,), (8, 10, 12), (512, 640, 768), (3.5, 4.0)),
    "small": Preset((10, 11, 12), (4, 6, 8), (256, 384, 512), (3.0, 3.5, 4.0)),
}
NESTING = Nesting(depth="first", channels="by_width")


@dataclass(frozen=True)
class LightHuBERT:
    """Once-for-all compression of HuBERT (Wang et al., 2022, arXiv 2203.15610).

    The student sees audio with spans of frames replaced by a learnt vector and predicts, there, what the teacher makes
    of the whole audio. Stage 1 trains the largest network of the space; stage 2 one network per step, drawn uniformly:
    width, depth and, per block, heads and feed-forward ratio. A linear head on the last block leads to the teacher's
    width; its first columns serve narrower networks, and it is dropped in the end.

    partition: which of the paper's spaces, in proportion to the model; on HuBERT base exactly the paper's.
    blocks, heads, width, ratios: own choices instead, ascending; empty: the partition's.
    first: share of the budget that is stage 1's; 0 leaves it out.
    mask: share of frames in spans to be masked, before overlaps; 0 masks nothing and the loss is over all real frames.
    span, spans: frames of a span, fewest spans of a clip. Clips too short for that are not masked and teach nothing.
    loss: "mse" or "l1". layers: the target is the mean of the teacher's last so many block outputs.
    lr, epochs, seconds, share, max_seconds, warmup, weight_decay: as in `distill.Recover`; max_seconds of padded audio
        in a batch, at 16 kHz. Without a budget of the run, epochs are shared between the stages.

    What differs from the paper: its target and loss are not published, so they are the teacher's last hidden states and
    the mean squared error, with the paper's names for the rest; dropout is off; the head starts as the identity, which
    is right for a student that is cut out of its teacher and does no harm to a random one. A size that was not drawn
    still moves with AdamW's momentum and decay.
    """

    partition: Literal["base", "small"] = "base"
    blocks: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    width: tuple[int, ...] = ()
    ratios: tuple[float, ...] = ()
    first: float = 0.5
    mask: float = 0.65
    span: int = 10
    spans: int = 2
    loss: Literal["mse", "l1"] = "mse"
    layers: int = 1
    lr: float = 5e-4
    epochs: float = 3.0
    seconds: float | None = None
    share: float = 1.0
    max_seconds: float = 87.5
    warmup: float = 0.05
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if self.partition not in PARTITIONS or self.loss not in ("mse", "l1"):
            raise UserError(f"partition is one of {', '.join(PARTITIONS)}; loss one of mse, l1")
        if not 0 <= self.first < 1 or not 0 <= self.mask < 1 or not 0 < self.share <= 1:
            raise UserError("first and mask must be in [0, 1), share in (0, 1]")
        if min(self.span, self.spans, self.layers) < 1 or not self.lr > 0 or not self.max_seconds > 0:
            raise UserError("span, spans and layers must be at least 1, lr and max_seconds positive")

    def space(self, bundle: Bundle) -> Space:
        """The sizes that `train` will make of this bundle; ask before training, which cuts it to the largest.

        Raises ModelError where they do not fit into the model, or widths into the groups of its convolution.
        """
        own = Preset(self.blocks, self.heads, self.width, self.ratios)
        return space_of(bundle.model, PARTITIONS[self.partition], own, False, NESTING)

    def train(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Cut `bundle` to the largest size and train it, in place. The teacher is the run's, else the bundle as it came.

        task: examples with "audio", a row of samples at the model's rate, under `task.training_examples(False)`; or
        a `train.Feed` or a sequence of batches with `input_values` and `attention_mask` over samples.
        Raises UserError without a task, ModelError for models that are no bare speech encoder, DataError for audio that
        is too short to be masked; all before anything is changed.
        """
        started = time.monotonic()
        if task is None:
            raise UserError("LightHuBERT needs audio: a task with training examples, or batches")
        space = self.space(bundle)
        waves.check(bundle, masked=self.mask > 0)
        if run.teacher is None or run.teacher.model is bundle.model:
            run = dataclasses.replace(run, teacher=bundle.copy())
        assert run.teacher is not None
        waves.check(run.teacher, masked=False)
        target = waves.Target(run.teacher, self.layers)
        batches = waves.feed(task, bundle.model, run, self.max_seconds)
        self._long_enough(bundle.model, batches)
        outline(bundle, space.largest, space.nesting)
        Shared(bundle, space.nesting).network(space.smallest)
        cut_to_largest(bundle, space)
        lesson = Lesson(self, bundle, space, anatomy.of(run.teacher.model).width, run.seed)
        run = common.shared(run, self.share, self.seconds)
        with target.open(run.device) as goal:
            lesson.goal = goal
            for stage, share in ((1, self.first), (2, 1 - self.first)):
                if share:
                    lesson.stage = stage
                    plan = common.Plan(self.lr, self.epochs * share, self.warmup, self.weight_decay)
                    common.train(bundle, batches, lesson, plan, common.shared(run, share), started)
                    started = time.monotonic()
        return bundle

    def search(
        self, bundle: Bundle, space: Space, task: Any, run: Run, parameters: int | None = None,
        candidates: int = 64, batches: int = 4,
    ) -> list[Candidate]:  # fmt: skip
        """Sizes of a trained bundle, drawn at random, by how well they explain the teacher's states, best first.

        The loss is the mean squared error, on unmasked audio, that the best linear head leaves: the head of training is
        gone by now. task: examples or batches that training did not see. parameters: most weights of a size.
        Raises UserError where no size is small enough.
        """
        if run.teacher is None:
            raise UserError("the search compares with a teacher: give Run(teacher=...)")
        shared, model = Shared(bundle, space.nesting), bundle.model
        source = waves.feed(task, model, run, self.max_seconds)
        device = next(model.parameters()).device
        seen = [source.batch(i).to(device) for i in range(batches)]
        with waves.Target(run.teacher, self.layers).open(str(device)) as goal:
            goals = [goal(batch) for batch in seen]
        return ranked(
            shared, space, parameters, candidates, run.seed,
            lambda sizes: [waves.unexplained(shared, size, seen, goals) for size in sizes],
        )  # fmt: skip

    def _long_enough(self, model: nn.Module, batches: Any) -> None:
        shortest = self.span * self.spans
        longest = max(waves.frames(model, batches.batch(i)).max() for i in range(8))
        if self.mask and longest < shortest:
            raise DataError(
                f"the longest clips seen have {longest} frames, and {self.spans} spans of {self.span} frames are masked: "
                "give longer audio, or smaller spans"
            )


class Lesson(nn.Module):
    """(module, batch) -> distance of the sub-network's prediction from the teacher at masked frames; holds the head.

    stage 1 runs the largest network, stage 2 one that seed and position of the batch draw.
    """

    def __init__(self, step: LightHuBERT, bundle: Bundle, space: Space, width: int, seed: int) -> None:
        super().__init__()
        self.step, self.space, self.seed, self.stage = step, space, seed, 1
        self.shared = Shared(bundle, space.nesting)
        self.head = nn.Linear(space.width[-1], width, bias=False)
        nn.init.eye_(self.head.weight)
        self.goal: Any = None

    def forward(self, module: nn.Module, batch: Batch) -> Tensor:
        rng = np.random.default_rng((self.seed, self.stage, batch.targets["position"]))
        size = self.space.largest if self.stage == 1 else self.space.sample(rng)
        return self.of(size, batch, rng)

    def of(self, size: Size, batch: Batch, rng: np.random.Generator) -> Tensor:
        """The loss of one size; `rng` draws the masked spans."""
        step, model = self.step, self.shared.bundle.model
        target = self.goal(batch)  # (B, T, width)
        count = torch.from_numpy(waves.frames(model, batch))
        real = torch.arange(target.shape[1])[None] < count[:, None]
        inputs = waves.inputs_of(model, batch)
        chosen = real
        if step.mask:
            drawn = waves.spans(count.tolist(), target.shape[1], step.mask, step.span, step.spans, rng)
            chosen = torch.from_numpy(drawn)
            inputs["mask_time_indices"] = chosen.to(target.device)
        states = self.shared(size, **inputs).last_hidden_state
        guess = states @ self.head.weight[:, : size.width].T
        difference = guess.float() - target.float()
        each = (difference.pow(2) if step.loss == "mse" else difference.abs()).mean(-1)
        weight = chosen.to(each)
        return (each * weight).sum() / weight.sum().clamp(min=1)


def default_size(space: Space) -> Size:
    """The middle of every choice, the upper one of two, at full depth and the largest ratio (the paper's default)."""

    def middle(values: tuple[int, ...]) -> int:
        return values[len(values) // 2]

    blocks, width = space.blocks[-1], middle(space.width)
    return Size(blocks, (middle(space.heads),) * blocks, (space.inner(width)[-1],) * blocks, width)
