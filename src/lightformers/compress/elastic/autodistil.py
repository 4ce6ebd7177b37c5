"""AutoDistil: a super-network distilled by attention relations alone, every sub-network of it ready for use."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lightformers.bundle import Batch, Bundle
from lightformers.compress.calibration import batches as batches_of
from lightformers.compress.distill import common
from lightformers.compress.elastic.candidates import Candidate, ranked
from lightformers.compress.elastic.presets import Preset, cut_to_largest, space_of
from lightformers.compress.elastic.relations import Relations
from lightformers.compress.elastic.shared import Shared, outline
from lightformers.compress.elastic.size import Nesting, Size
from lightformers.compress.elastic.space import Space
from lightformers.errors import UserError
from lightformers.steps import Run

#: The paper's three partitions of the sizes of BERT-base; any two have no size in common.
PARTITIONS = {
    "base": Preset((9, 10, 11, 12), (9, 10, 11, 12), (544, 576, 608, 640), (2.5, 3.0, 3.5, 4.0)),
    "small": Preset((9, 10, 11, 12), (7, 8, 9, 10), (256, 288, 320, 352), (2.5, 3.0, 3.5, 4.0)),
    "tiny": Preset((4, 5, 6, 7), (7, 8, 9, 10), (128, 160, 192, 224), (2.0, 2.5, 3.0, 3.5)),
}
NESTING = Nesting(depth="spread", channels="first")


@dataclass(frozen=True)
class AutoDistil:
    """Few-shot, task-agnostic search for a student (Xu et al., 2022, arXiv 2201.12507).

    The model is cut to the largest size of a compact space and trained so that any smaller one inside it (first heads,
    first channels, every so-manyth block) meets the query, key and value relations of the teacher's last block.
    `search` then ranks sizes by that loss on unseen text, without training them.

    partition: which of the paper's spaces, in proportion to the model; on BERT-base exactly the paper's.
    blocks, heads, width, ratios: own choices instead, ascending; empty: the partition's.
    loss: "mse" of the scaled products, as the published code has it, or "kl" of their softmax (MiniLM v2).
    relation_heads: into how many heads both sides' queries, keys and values are cut anew, what does not divide being
        dropped; None: as many as the teacher has.
    sampling: "sandwich" trains the largest, the smallest and random sizes between, "uniform" only random ones.
    networks: sizes trained on each batch; their gradients add up.
    lr, epochs, seconds, share, max_tokens, warmup, weight_decay: as in `distill.Recover`; the paper's rate.

    What differs from the paper: the budget is the run's; the loss is the mean over pairs of real tokens, not over padding
    too; any family whose width `anatomy` can cut. Heads keep their size while the width shrinks, which plain
    transformers can't say for most families: extracted models need lightformers.json.
    """

    partition: Literal["base", "small", "tiny"] = "base"
    blocks: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    width: tuple[int, ...] = ()
    ratios: tuple[float, ...] = ()
    loss: Literal["mse", "kl"] = "mse"
    relation_heads: int | None = None
    sampling: Literal["sandwich", "uniform"] = "sandwich"
    networks: int = 4
    lr: float = 4e-5
    epochs: float = 3.0
    seconds: float | None = None
    share: float = 1.0
    max_tokens: int | None = None
    warmup: float = 0.05
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if self.partition not in PARTITIONS:
            raise UserError(f"partition {self.partition!r} is not one of {', '.join(PARTITIONS)}")
        if self.loss not in ("mse", "kl") or self.sampling not in ("sandwich", "uniform"):
            raise UserError("loss is one of mse, kl; sampling one of sandwich, uniform")
        if self.networks < (2 if self.sampling == "sandwich" else 1):
            raise UserError(
                "the sandwich rule trains at least 2 networks a step, uniform sampling at least 1"
            )
        least = 1 if self.relation_heads is None else self.relation_heads
        if not self.lr > 0 or not 0 < self.share <= 1 or least < 1:
            raise UserError("lr must be positive, share in (0, 1], relation_heads at least 1")

    def space(self, bundle: Bundle) -> Space:
        """The sizes that `train` will make of this bundle; ask before training, which cuts it to the largest.

        Raises ModelError where they do not fit into the model.
        """
        own = Preset(self.blocks, self.heads, self.width, self.ratios)
        return space_of(bundle.model, PARTITIONS[self.partition], own, True, NESTING)

    def train(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Cut `bundle` to the largest size and train it, in place. The teacher is the run's, else the bundle as it came.

        Raises, before anything is changed, UserError without a task, ModelError where the sizes do not nest.
        """
        started = time.monotonic()
        if task is None:
            raise UserError(
                "AutoDistil needs a task: its training examples are what relations are compared on"
            )
        space = self.space(bundle)
        if run.teacher is None or run.teacher.model is bundle.model:
            run = dataclasses.replace(run, teacher=bundle.copy())
        teacher = common.teacher_of(bundle, run)
        lesson = Relations(bundle, teacher, self.loss, self.relation_heads)
        for size in (space.largest, space.smallest):
            lesson.check(outline(bundle, size, space.nesting).model)
        Shared(bundle, space.nesting).network(space.smallest)  # refuses cuts that change values
        run = common.shared(run, self.share, self.seconds)
        batches = common.feed(bundle, task, run, self.max_tokens)
        cut_to_largest(bundle, space)
        shared = Shared(bundle, space.nesting)
        with lesson.of_teacher(run.device) as goal:

            def objective(module: nn.Module, batch: Batch) -> Tensor:
                rng = np.random.default_rng((run.seed, batch.targets["position"]))
                theirs = goal(batch)
                sizes = draw(space, self.sampling, self.networks, rng)
                return torch.stack([lesson(shared, size, batch, theirs) for size in sizes]).sum()

            plan = common.Plan(self.lr, self.epochs, self.warmup, self.weight_decay)
            common.train(bundle, batches, objective, plan, run, started)
        return bundle

    def search(
        self, bundle: Bundle, space: Space, task: Any, run: Run, parameters: int | None = None,
        candidates: int = 256, examples: int = 256,
    ) -> list[Candidate]:  # fmt: skip
        """The paper's task-agnostic search in a trained bundle: sizes by their relation loss on unseen text, best first.

        parameters: most weights of a size, None for no limit. candidates: how many sizes are looked at, if there are
        more. examples: of the search split, without labels. The same `run.teacher` as in training.
        Raises UserError where no size is small enough.
        """
        shared = Shared(bundle, space.nesting)
        lesson = Relations(bundle, common.teacher_of(bundle, run), self.loss, self.relation_heads)
        rows = task.workload(min(examples, len(task.splits["search"])), run.seed)
        held_out = batches_of(bundle, rows)
        return ranked(
            shared, space, parameters, candidates, run.seed, lambda s: lesson.mean(shared, s, held_out)
        )


def draw(space: Space, sampling: str, networks: int, rng: np.random.Generator) -> list[Size]:
    """Sizes of one step: with the sandwich rule the largest and the smallest first, the rest at random."""
    ends = [space.largest, space.smallest] if sampling == "sandwich" else []
    return ends + [space.sample(rng) for _ in range(networks - len(ends))]


def overlap(one: Space, other: Space) -> bool:
    """Whether some size is in both spaces: partitions that are to be disjoint have none."""
    widths = set(one.width) & set(other.width)
    inner = any(set(one.inner(w)) & set(other.inner(w)) for w in widths)
    return bool(inner and set(one.blocks) & set(other.blocks) and set(one.heads) & set(other.heads))


def paper_parameters(size: Size, heads: int = 12, vocabulary: int = 30522, positions: int = 512) -> int:
    """The published code's count of a BERT's weights, which takes the attention to be as wide as the stream.

    It meets the paper's table to 3 %. The real count, with heads of unchanged size, is `Shared.parameters_of`.
    """
    h = size.width
    attention = sum(h * h + 3 * h * h * a / heads + 6 * h for a in size.heads)
    forward = sum(2 * c * h + c + 3 * h for c in size.channels)
    return round(h * (vocabulary + positions + 4) + attention + forward + h * h + 2 * h)
