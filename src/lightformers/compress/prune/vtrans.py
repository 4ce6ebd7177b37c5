"""VTrans: learn under an information bottleneck what a task does not need, then cut it."""

from __future__ import annotations

import dataclasses
import math
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Batch, Bundle
from lightformers.compress.distill import Recover, common
from lightformers.compress.distill.recover import _Objective as Distillation
from lightformers.compress.prune import gates, schedule
from lightformers.compress.prune.blocks import DropBlocks
from lightformers.compress.prune.gates import Sites
from lightformers.compress.prune.scopes import best
from lightformers.errors import ModelError, UserError
from lightformers.steps import Run, Stage
from lightformers.train.loop import count

Variant = Literal["full", "fast", "faster"]
#: Share of the training examples that gates are learnt on.
_DATA = {"full": 1.0, "fast": 0.03, "faster": 1.0}
_LEAST_EXAMPLES = 64
#: The multipliers of the budget: how fast they climb, and where they stop.
_CLIMB, _CEILING = 0.1, 50.0


@dataclass(frozen=True)
class VTrans:
    """Structured pruning by noisy gates until a budget is met (Dutta et al., 2024, arXiv 2406.05276).

    Gates sit on attention heads (groups that share keys and values go together), feed-forward channels, whole attentions
    and feed-forwards, and, with `hidden`, the hidden size. They train on the distillation from the run's teacher, plus
    the bottleneck's divergence, plus a Lagrangian that drives the expected size to the target. Then what turned to noise
    is cut and the gates' means are multiplied into the weights. To be followed by `Recover`.

    sparsity: share of the weights of attention and feed-forward (with `hidden`, of the embeddings too) that goes, in
        (0, 1). Held in the end whatever training did: heads and channels are cut in the order of their noise until it is
        met; rounding (`round_to`, whole heads, equal heads where the family wants them) adds what it must.
    variant: "full" trains gates and weights on all data; "fast" on 3 % of it; "faster" gates only, weights frozen.
    hidden: gate the hidden size too. Where a head's size is hidden size / heads (bert, gpt2), heads then go in proportion.
    gate_lr, bottleneck: learning rate of the gates and weight of the divergence. ramp: share of the training over which
        the target rises. lr, epochs, seconds, share, temperature, labels, max_tokens: as in `Recover`.

    Deviations: the gate of the hidden size multiplies what norms put out instead of what is written to the residual stream,
    so that its means can be multiplied into the norms exactly; the multipliers climb by Adam; cross-attention is not
    gated. A block whose attention and feed-forward both go is dropped; one of the two alone is cut to one head or
    `round_to` channels that write zeros, because no family runs without.
    """

    sparsity: float = 0.5
    variant: Variant = "full"
    hidden: bool = False
    gate_lr: float = 0.05
    bottleneck: float = 1e-6
    ramp: float = 0.15
    round_to: int = 8
    lr: float = 5e-5
    epochs: float = 1.0
    seconds: float | None = None
    share: float = 0.5
    temperature: float = 2.0
    labels: float = 0.5
    max_tokens: int | None = None
    stage: ClassVar[Stage] = Stage.DEPTH

    def __post_init__(self) -> None:
        schedule.check_sparsity(self.sparsity)
        if self.variant not in get_args(Variant):
            raise UserError(f"variant {self.variant!r} is not one of {', '.join(get_args(Variant))}")
        if not 0 <= self.ramp < 1:
            raise UserError(f"ramp is a share of the training in [0, 1), got {self.ramp}")
        if self.round_to < 1 or not self.gate_lr > 0 or not self.lr > 0 or not self.bottleneck >= 0:
            raise UserError("round_to is at least 1; gate_lr and lr are positive, bottleneck is not negative")

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises ModelError without a teacher and where nothing can be gated, UserError without a task."""
        started = time.monotonic()
        teacher = common.teacher_of(bundle, run)
        recover = Recover(temperature=self.temperature, labels=self.labels)
        recover._validate(bundle, task)
        where = gates.sites(bundle.model, self.hidden)
        if (least := self._least(where, _multiple(bundle, self.round_to))) > (
            1.0 - self.sparsity
        ) * where.total:
            raise UserError(
                f"a sparsity of {self.sparsity} leaves less than the one head and {self.round_to} channels of one block that "
                f"must stay: at most {1 - least / where.total:.3f} can go"
            )
        learnt = gates.make(where, self.gate_lr / self.lr, run.seed).to(run.device)
        run = common.shared(run, self.share, self.seconds)
        batches = common.feed(bundle, _Part(task, _DATA[self.variant]), run, self.max_tokens)
        if run.seconds is None and run.tokens is None:
            run = dataclasses.replace(run, tokens=max(int(self.epochs * batches.lengths.sum()), 1))
        plan = common.Plan(self.lr, self.epochs, 0.05, 0.0)
        frozen = ["*"] if self.variant == "faster" else common.frozen_embeddings(bundle, teacher, None)
        with ExitStack() as stack:
            base = Distillation(recover, bundle, teacher, task, run, batches, stack)
            stack.enter_context(gates.installed(bundle.model, where, learnt))
            objective = Bottleneck(self, base, where, learnt, run, started)
            common.train(bundle, batches, objective, plan, run, started, frozen)
        learnt.cpu()
        gates.hold_budget(where, learnt, 1.0 - self.sparsity, _multiple(bundle, self.round_to))
        cut(bundle, task, run, where, learnt, self.round_to)
        return bundle

    def _least(self, where: Sites, multiple: int) -> float:
        """Weights of the smallest model that a cut can leave: one block (embeddings as wide as one head at least)."""
        blocks = {*where.heads, *where.neurons}
        each = [
            (where.heads[i][2] if i in where.heads else 0)
            + (
                gates.rounded(0, multiple, where.neurons[i][0]) * where.neurons[i][1]
                if i in where.neurons
                else 0
            )
            for i in blocks
        ]
        return float(min(each)) if not self.hidden else 0.0


class _Part:
    """A task with a part of its training examples."""

    def __init__(self, task: Any, share: float) -> None:
        self.task, self.share = task, share

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def training_examples(self, use_labels: bool) -> list[Any]:
        rows = list(self.task.training_examples(use_labels))
        return rows[: max(round(self.share * len(rows)), _LEAST_EXAMPLES)]


class Bottleneck(nn.Module):
    """(module, batch) -> distillation + bottleneck + budget; holds gates and multipliers, which train along."""

    def __init__(
        self, step: VTrans, base: Any, where: Sites, learnt: nn.ModuleDict, run: Run, started: float
    ) -> None:
        super().__init__()
        self.step, self.base, self.where, self.run, self.started = step, base, where, run, started
        self.gates = learnt
        self.climb = _CLIMB / step.lr
        self.multipliers = nn.Parameter(torch.zeros(2))
        self.multipliers.register_hook(lambda g: -g / self.climb)  # uphill
        self.tokens = 0
        self.weights = dict.fromkeys(learnt, 1.0)
        self.weights |= {name: float(each) for name, _, each in where.heads.values()}
        self.weights |= {"hidden": 30.0}

    def target(self) -> float:
        """The share that shall be gone by now."""
        spent = [self.tokens / self.run.tokens] if self.run.tokens else []
        spent += [(time.monotonic() - self.started) / self.run.seconds] if self.run.seconds else []
        done = max(spent, default=1.0)
        return self.step.sparsity * (min(done / self.step.ramp, 1.0) if self.step.ramp else 1.0)

    def forward(self, module: nn.Module, batch: Batch) -> Tensor:
        loss: Tensor = self.base(module, batch)
        goal = self.target()
        self.tokens += count(batch)
        every: list[tuple[str, Any]] = list(self.gates.items())
        bits = torch.stack([self.weights[n] * gates.divergence(g.mean, g.log_var) for n, g in every])
        gone = 1.0 - self.where.size(gates.alive(self.gates)) / self.where.total
        return (
            loss + self.step.bottleneck * bits.sum() + budget_loss(gone, goal, self.multipliers * self.climb)
        )


def budget_loss(gone: Tensor, goal: float, multipliers: Tensor) -> Tensor:
    """`l1 (gone - goal) + l2 (gone - goal)^2`, the multipliers held within +-50."""
    first, second = multipliers.clamp(-_CEILING, _CEILING)
    return first * (gone - goal) + second * (gone - goal).square()


def cut(
    bundle: Bundle, task: Any, run: Run, where: Sites, learnt: nn.ModuleDict, round_to: int, drop: bool = True
) -> None:
    """Fold the gates into the weights, then remove what they closed, in place.

    drop: remove blocks of which nothing is left; in a post-norm model their norms go too, which changes the outputs.
    """
    found = anatomy.of(bundle.model)
    multiple = _multiple(bundle, round_to)
    gates.fold(bundle.model, where, learnt)
    every: list[tuple[str, Any]] = list(learnt.items())
    noise = {name: gate.log_alpha.detach() for name, gate in every}
    kept = {name: int(gate.kept.sum()) for name, gate in every}
    open_heads = {i: kept[n] if kept[f"attention/{i}"] else 0 for i, (n, _, _) in where.heads.items()}
    open_neurons = {i: kept[f"neurons/{i}"] if kept[f"ffn/{i}"] else 0 for i in where.neurons}
    gone = {i for i, b in enumerate(found.blocks) if not b.cross_attention and not open_heads.get(i, 0) + open_neurons.get(i, 0)}  # fmt: skip
    places: list[int] = []
    for stack in found.stacks:
        own = [i for i, b in enumerate(found.blocks) if b.stack == stack.name]
        left = own if stack.shared or not drop else [i for i in own if i not in gone] or own[:1]
        places += left
        if len(left) < len(own):
            DropBlocks(blocks=tuple(own.index(i) for i in left), stack=stack.name).apply(bundle, task, run)
    heads = {}
    for new, i in enumerate(places):
        if i in where.heads:
            name, groups, _ = where.heads[i]
            # blocks that share a gate keep the same heads; one that is closed keeps one, which writes zeros
            least = 1 if name == f"heads/{i}" else max(1, kept[name])
            heads[new] = (-noise[name], max(open_heads[i], least), groups)
    followed = False
    if where.hidden:
        followed = _cut_hidden(bundle, -noise["hidden"], max(kept["hidden"], 1), heads)
    if heads and not followed:
        anatomy.surgery.keep_heads(
            bundle.model, {i: _whole(bundle, i, best(s, n), g) for i, (s, n, g) in heads.items()}
        )
    channels = {
        new: best(-noise[f"neurons/{i}"], gates.rounded(open_neurons[i], multiple, where.neurons[i][0]))
        for new, i in enumerate(places) if i in where.neurons
    }  # fmt: skip
    if channels:
        anatomy.surgery.keep_channels(bundle.model, channels)


def _multiple(bundle: Bundle, round_to: int) -> int:
    return math.lcm(round_to, anatomy.of(bundle.model).native.channels_multiple)


def _whole(bundle: Bundle, place: int, groups: list[int], count: int) -> list[int]:
    attention = anatomy.of(bundle.model).blocks[place].attention
    size = attention.heads // count if attention else 1
    return [g * size + j for g in groups for j in range(size)]


def _cut_hidden(
    bundle: Bundle, scores: Tensor, count: int, heads: dict[int, tuple[Tensor, int, int]]
) -> bool:
    """Cut the hidden size; returns whether heads went with it, because their size is hidden size / heads."""
    first = anatomy.of(bundle.model).blocks[0].attention
    assert first is not None
    whole = max(1, count // first.head_dim)
    try:
        chosen = {i: best(s, whole) for i, (s, _, _) in heads.items()}
        anatomy.surgery.keep_width(bundle.model, best(scores, whole * first.head_dim), chosen)
        return True
    except ModelError:
        anatomy.surgery.keep_width(
            bundle.model, best(scores, count)
        )  # heads have a size of their own: all stay
        return False
