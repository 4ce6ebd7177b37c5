"""Minitron: a small model cut out of a large one along depth, heads, feed-forward and hidden size."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.compress.distill import Recover, common
from lightformers.compress.prune import leave_out
from lightformers.compress.prune.blocks import DropBlocks
from lightformers.compress.prune.blocks import Score as DepthScore
from lightformers.compress.prune.importance import Importance, measure
from lightformers.compress.prune.scopes import best, share
from lightformers.errors import ModelError, UserError
from lightformers.steps import Run, Stage

#: How far a searched model may be from the wanted number of parameters, relative.
TOLERANCE = 0.05
#: Shares that are searched: of the feed-forward channels, and of heads and hidden size.
_SHARES = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25)
_COARSE = (1.0, 0.75, 0.5, 0.25)


@dataclass(frozen=True)
class Shape:
    """What share of each axis stays."""

    blocks: float = 1.0
    heads: float = 1.0
    channels: float = 1.0
    width: float = 1.0


@dataclass(frozen=True)
class Minitron:
    """Cut a trained model by what its activations say (Muralidharan et al., 2024, arXiv 2407.14679).

    All scores come from one pass of forward computations over the uncut model ("single shot"). To be followed by
    `MinitronRetrain` (or `Recover`), which distils from the uncut model.

    blocks, heads, channels, width: share that stays, in (0, 1], of the blocks of each stack, the query heads, the
        feed-forward channels and the hidden size. With grouped queries heads are ranked inside each group, equally
        many stay in each, and no key/value head goes. Where a head's size is hidden size / heads (bert, gpt2), heads
        follow the width and `heads` must be 1 with it.
    target: share of the parameters that shall stay, embeddings included; the shape is then searched among all that come
        within 5 % of it, inside the shares given (which act as lower bounds: 1 is not cut).
    candidates: how many of them, the nearest in output right after the cut, are trained a little and compared.
    trial: share of the run's budget that these trainings get together; 0 decides right after the cut. Needs a teacher.
    depth_score: "influence" (1 - cos of a block's input and output), or "output" (see `DropBlocks`).
    round_to: feed-forward widths are multiples of this. examples: how many sequences are looked at (paper: 1024).

    Deviations: candidates are compared by the distance of their outputs to the original's, not by task accuracy; the
    optional merging of removed heads into kept ones is left out.
    """

    blocks: float = 1.0
    heads: float = 1.0
    channels: float = 1.0
    width: float = 1.0
    target: float | None = None
    candidates: int = 4
    trial: float = 0.0
    depth_score: DepthScore = "influence"
    round_to: int = 16
    examples: int = 128
    stage: ClassVar[Stage] = Stage.DEPTH

    def __post_init__(self) -> None:
        for value in (self.blocks, self.heads, self.channels, self.width):
            share(value, 1)
        if self.target is None and astuple(self.shape) == (1.0, 1.0, 1.0, 1.0):
            raise UserError(
                "Minitron cuts nothing: set blocks, heads, channels or width below 1, or a target"
            )
        if self.target is not None and not 0 < self.target < 1:
            raise UserError(f"target is a share of the parameters in (0, 1), got {self.target}")
        if self.candidates < 1 or self.round_to < 1 or not 0 <= self.trial < 1:
            raise UserError("candidates and round_to are at least 1, trial is a share in [0, 1)")

    @property
    def shape(self) -> Shape:
        """The shares as they were given."""
        return Shape(self.blocks, self.heads, self.channels, self.width)

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises ModelError where a family cannot be cut so, and where no shape meets the target."""
        if self.target is None:
            # a cut may fail at its last axis: what is edited is only kept when all of it went well
            trial = cut(
                _sharing(bundle), task, run, self.shape, measure(bundle, task, run, self.examples), self
            )
        else:
            trial = self._search(bundle, task, run, measure(bundle, task, run, self.examples))
        bundle.model, bundle.origin = trial.model, trial.origin
        return bundle

    def _search(self, bundle: Bundle, task: Any, run: Run, known: Importance) -> Bundle:
        if self.trial:
            common.teacher_of(bundle, run)
        shapes = list(self.shapes(bundle, known))
        if not shapes:
            raise ModelError(
                f"no shape within {TOLERANCE:.0%} of {self.target:.0%} of the parameters: allow lower shares (blocks, "
                "heads, channels, width), or another target"
            )
        old = leave_out.outputs(bundle, task, min(self.examples, 32), run)

        def distance(made: Bundle) -> float:
            return leave_out.distance(leave_out.outputs(made, task, min(self.examples, 32), run), old)

        found: list[tuple[float, Shape]] = []
        for shape in shapes:
            found.append((distance(cut(_sharing(bundle), task, run, shape, known, self)), shape))
        found.sort(key=lambda item: item[0])
        finalists = [shape for _, shape in found[: self.candidates if self.trial else 1]]
        tried = []
        for shape in finalists if len(finalists) > 1 else ():
            trained = cut(bundle.copy(), task, run, shape, known, self)
            Recover(epochs=1.0).apply(trained, task, common.shared(run, self.trial / len(finalists)))
            tried.append(distance(trained))
        # the winner starts its real training from the cut, not from its trial
        winner = finalists[tried.index(min(tried))] if tried else finalists[0]
        return cut(_sharing(bundle), task, run, winner, known, self)

    def shapes(self, bundle: Bundle, known: Importance) -> Iterator[Shape]:
        """All shapes that this model can be cut to within `TOLERANCE` of the target, counted without weights."""
        assert self.target is not None
        empty = _without_weights(bundle)
        wanted = self.target * bundle.parameters
        stacks = anatomy.of(bundle.model).stacks
        depths = sorted({n / s.depth for s in stacks for n in range(1, s.depth + 1)}, reverse=True)
        seen: set[tuple[tuple[int, ...], ...]] = set()
        for blocks, heads, width in itertools.product(
            [v for v in depths if v >= self.blocks],
            *([v for v in _COARSE if v >= low] for low in (self.heads, self.width)),
        ):
            try:
                whole = self._sized(empty, Shape(blocks, heads, 1.0, width), known)
            except ModelError:
                continue  # this family cannot be cut so
            forwards = [b.feed_forward for b in anatomy.of(whole.model).blocks if b.feed_forward]
            inner = anatomy.parameters_of(whole.model, [p for f in forwards for p in f.projections])
            for channels in (v for v in _SHARES if v >= self.channels):
                # nearly linear in the channels; only what may fit is cut
                if abs(whole.parameters - (1 - channels) * inner - wanted) > 2 * TOLERANCE * wanted:
                    continue
                shape = Shape(blocks, heads, channels, width)
                small = self._sized(empty, shape, known)
                sizes = tuple(tuple(p.shape) for p in small.model.parameters())
                if sizes not in seen and abs(small.parameters - wanted) <= TOLERANCE * wanted:
                    seen.add(sizes)
                    yield shape

    def _sized(self, empty: Bundle, shape: Shape, known: Importance) -> Bundle:
        return cut(empty.copy(), None, Run(), shape, known, self)


def _without_weights(bundle: Bundle) -> Bundle:
    """A copy that can be cut and counted, and takes no memory."""
    return _copied(bundle, lambda tensor: tensor.detach().to("meta"))


def _sharing(bundle: Bundle) -> Bundle:
    """A copy on the same weights, to be cut: cuts make tensors of their own and leave those that they cut as they are."""
    return _copied(bundle, lambda tensor: tensor.detach())


def _copied(bundle: Bundle, of: Callable[[Tensor], Tensor]) -> Bundle:
    model = bundle.model
    made: dict[int, Any] = {id(p): nn.Parameter(of(p), p.requires_grad) for p in model.parameters()}
    made |= {id(b): of(b) for b in model.buffers()}
    return replace(bundle, model=copy.deepcopy(model, made), history=list(bundle.history))


def cut(bundle: Bundle, task: Any, run: Run, shape: Shape, known: Importance, step: Minitron) -> Bundle:
    """Cut `bundle` in place to a shape, by scores of the uncut model. Depth first, then width, heads and channels."""
    before = anatomy.of(bundle.model)
    places = list(range(len(before.blocks)))
    for stack in before.stacks:
        own = [i for i in places if before.blocks[i].stack == stack.name]
        keep = max(1, round(shape.blocks * len(own)))
        if keep == len(own):
            continue
        names = tuple(range(keep))  # which ones does not matter to a model without weights
        if not next(bundle.model.parameters()).is_meta:
            names = _blocks(bundle, task, run, stack.name, keep, step)
        DropBlocks(blocks=names, stack=stack.name).apply(bundle, task, run)
        places = [i for i in places if i not in own or own.index(i) in names]
    heads = {key: score for key, score in known.heads.items() if key[0] in places}
    if shape.width < 1 and not _cut_width(bundle, shape, known.hidden, [heads[i, True] for i in places if (i, True) in heads]):  # fmt: skip
        if shape.heads < 1:
            raise ModelError("heads follow the width in this family: leave heads at 1")
        heads = {}
    if shape.heads < 1 and heads:
        _cut_heads(bundle, shape.heads, {(places.index(i), own): s for (i, own), s in heads.items()})
    if shape.channels < 1:
        multiple = math.lcm(step.round_to, before.native.channels_multiple)
        channels = {places.index(i): s for i, s in known.channels.items() if i in places}
        kept = {i: best(s, share(shape.channels, len(s), multiple)) for i, s in channels.items()}
        if not kept:
            raise ModelError(f"this {before.family} model has no feed-forward layers to prune")
        anatomy.surgery.keep_channels(bundle.model, kept)
    return bundle


def _blocks(bundle: Bundle, task: Any, run: Run, stack: str, keep: int, step: Minitron) -> tuple[int, ...]:
    choice = DropBlocks(keep=keep, stack=stack, score=step.depth_score, examples=min(step.examples, 32))
    return tuple(choice._choose(bundle, anatomy.of(bundle.model), stack, task, run))


def _cut_width(bundle: Bundle, shape: Shape, hidden: Tensor, heads: list[Tensor]) -> bool:
    """Cut the hidden size; returns whether all heads are still there (else they went in proportion)."""
    found = anatomy.of(bundle.model)
    first = found.blocks[0].attention
    if first is None or not len(hidden):
        raise ModelError(f"the hidden size of this {found.family} model cannot be cut")
    width = share(shape.width, found.width, first.head_dim)
    kept = best(hidden, width)
    count = max(1, width // first.head_dim)
    try:
        anatomy.surgery.keep_width(bundle.model, kept, {i: best(s, count) for i, s in enumerate(heads)})
    except ModelError:
        anatomy.surgery.keep_width(bundle.model, kept)  # heads have a size of their own: all of them stay
    now = anatomy.of(bundle.model).blocks[0].attention
    return now is not None and now.heads == first.heads


def query_heads(scores: Tensor, kv_heads: int, keep: float) -> list[int]:
    """The query heads that stay: the best, or with grouped queries equally many of the best of each group."""
    if kv_heads == len(scores):
        return best(scores, share(keep, len(scores)))
    size = len(scores) // kv_heads
    count = share(keep, size)
    return [g * size + j for g in range(kv_heads) for j in best(scores[g * size : (g + 1) * size], count)]


def _cut_heads(bundle: Bundle, keep: float, scores: dict[tuple[int, bool], Tensor]) -> None:
    found = anatomy.of(bundle.model)
    groups = {
        (i, own): (a.kv_heads if a is not None else 0)
        for (i, own) in scores
        for a in [found.blocks[i].attention if own else found.blocks[i].cross_attention]
    }

    def kept(ranked: dict[tuple[int, bool], Tensor], own: bool) -> dict[int, list[int]]:
        return {i: query_heads(s, groups[i, o], keep) for (i, o), s in ranked.items() if o == own}

    try:
        anatomy.surgery.keep_heads(bundle.model, kept(scores, True), kept(scores, False) or None)
    except ModelError:
        # blocks that share one position bias must keep the same heads: those best in all of them together
        stack = {i: found.blocks[i].stack for i, _ in scores}
        joint = {
            (i, own): sum((s for (j, o), s in scores.items() if o == own and stack[j] == stack[i]), start=0 * score)
            for (i, own), score in scores.items()
        }  # fmt: skip
        anatomy.surgery.keep_heads(bundle.model, kept(joint, True), kept(joint, False) or None)
