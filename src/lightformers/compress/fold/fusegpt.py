"""FuseGPT: a removed block lives on in its neighbours (Pei et al., 2024, arXiv 2411.14507).

The block with the least influence goes; its frozen matrices are put into the same-named ones of neighbouring blocks
through learnable low-rank coefficients, tuned by local distillation and then folded in: nothing is left to compute.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.compress import calibration
from lightformers.compress.distill.common import precision
from lightformers.compress.fold.blocks import Trace, play, trace
from lightformers.compress.fold.fused import FusedLinear, group_of, influence
from lightformers.errors import ModelError, UserError
from lightformers.steps import Run, Stage
from lightformers.train import losses
from lightformers.train.schedules import factor

Loss = Literal["kl", "mse", "batch-kl"]


@dataclass(frozen=True)
class FuseBlocks:
    """Remove blocks one after the other and fuse each into the blocks around it.

    rate: share of the blocks that go (rounded up), in (0, 1). group: how many blocks, the removed one included, are tuned
        together. rank: of the coefficients and of the ordinary low-rank updates beside them.
    epochs: passes over the `examples` examples per removal, where the run has neither seconds nor tokens (those are
        shared by all removals); 0 removes without tuning.
    lr: of the coefficients; base_lr: of everything else in the group that learns (low-rank updates, norms).
    loss: between the group's outputs before and after: "kl" of their softmax over the width, "mse", or "batch-kl", the
        softmax over the batch that the official code takes.
    inject, lora: whether there are coefficients for the removed block's matrices, and low-rank updates.
    iterative: influences are taken anew after each removal. scoring: examples that they are taken from.

    Differs from the official code: coefficients are folded in after every removal instead of at the end, padding counts
    neither for influence nor loss. For models of one stack, whose blocks are all alike. Uses no labels.
    """

    rate: float = 0.25
    group: int = 8
    rank: int = 128
    examples: int = 256
    scoring: int = 32
    epochs: float = 20.0
    lr: float = 1e-3
    base_lr: float = 9.65e-6
    loss: Loss = "kl"
    inject: bool = True
    lora: bool = True
    iterative: bool = True
    stage: ClassVar[Stage] = Stage.DEPTH

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise UserError(f"rate is the share of the blocks that go, in (0, 1); got {self.rate}")
        if self.group < 2 or self.rank < 1 or min(self.examples, self.scoring) < 1 or self.epochs < 0:
            raise UserError(
                "group must be at least 2, rank, examples and scoring at least 1, epochs at least 0"
            )
        if self.lr <= 0 or self.base_lr < 0:
            raise UserError("lr must be positive, base_lr not negative")
        if self.loss not in get_args(Loss):
            raise UserError(f"loss {self.loss!r} is not one of {', '.join(get_args(Loss))}")

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises ModelError for several or shared stacks, blocks that differ and a last block; UserError without a task."""
        found = anatomy.of(bundle.model)
        _check(bundle.model, found)
        depth = len(found.blocks)
        count = math.ceil(depth * self.rate)
        if count >= depth:
            raise ModelError(f"{count} of {depth} blocks would go: one must stay")
        examples = calibration.examples_of(task, max(self.examples, self.scoring), run.seed)
        batches = calibration.batches(bundle, examples[: self.examples])
        scored = calibration.batches(bundle, examples[: self.scoring])
        order: list[int] = []
        modes = [(m, m.training) for m in bundle.model.modules()]
        bundle.model.eval()
        for place in range(count):
            blocks = [anatomy.get(bundle.model, b.path) for b in anatomy.of(bundle.model).blocks]
            if self.iterative or not order:
                values = macro_influences(bundle, blocks, scored)
                order = sorted(range(len(values)), key=lambda i: (values[i], i))[
                    : 1 if self.iterative else count
                ]
            target = order.pop(0)
            with torch.random.fork_rng():
                torch.manual_seed(run.seed + place)
                self._remove(bundle, target, batches, run, 1 / count)
            order = [i - (i > target) for i in order]
            stack = found.stacks[0].name
            kept = [i for i in range(len(blocks)) if i != target]
            sources = bundle.origin.blocks.get(stack, range(len(blocks)))
            bundle.origin = replace(
                bundle.origin, blocks={**bundle.origin.blocks, stack: tuple(sources[i] for i in kept)}
            )
        for module, training in modes:
            module.training = training
        return bundle

    def _remove(self, bundle: Bundle, target: int, batches: Sequence[Any], run: Run, share: float) -> None:
        """Take block `target` out; the others of its group take it in."""
        model = bundle.model
        found = anatomy.of(model)
        group = group_of(target, self.group, len(found.blocks))
        survivors = [i for i in group if i != target]
        if self.epochs and (self.inject or self.lora) and survivors:
            fused = {
                f"{found.blocks[i].path}.{name}": (anatomy.get(model, f"{found.blocks[i].path}.{name}"), name)
                for i in survivors
                for name in _names(found.blocks[i])
            }
            blocks = [anatomy.get(model, b.path) for b in found.blocks]
            traces = [_cut(trace(model, bundle.module(), blocks, b), blocks, group, target) for b in batches]
            for path, (_, name) in fused.items():
                other = anatomy.linear(model, f"{found.blocks[target].path}.{name}")
                layer = FusedLinear(*anatomy.linear(model, path), *other, self.rank, self.inject, self.lora)
                anatomy.surgery.replace(model, path, layer)
            self._tune([anatomy.get(model, found.blocks[i].path) for i in survivors], traces, run, share)
            for path, (old, _) in fused.items():
                layer = anatomy.surgery.replace(model, path, old)  # type: ignore[assignment]
                _write(model, path, *layer.merged())
        anatomy.surgery.keep_blocks(model, [i for i in range(len(found.blocks)) if i != target])

    def _tune(self, blocks: list[nn.Module], traces: list[Trace], run: Run, share: float) -> None:
        """Adam with two learning rates on states at hand: other than `train.fit`, which trains whole models."""
        parameters = {
            id(p): p for b in blocks for p in b.parameters() if p.requires_grad and p.is_floating_point()
        }
        quick = {
            id(p)
            for b in blocks for m in b.modules() if isinstance(m, FusedLinear)
            for p in (*m.coefficients, *([m.bias_coefficient] if m.bias_coefficient is not None else []))
        }  # fmt: skip
        groups = [([p for i, p in parameters.items() if i in quick], self.lr),
                  ([p for i, p in parameters.items() if i not in quick], self.base_lr)]  # fmt: skip
        optimizer = torch.optim.Adam(
            [{"params": p, "lr": r, "peak": r} for p, r in groups if p], betas=(0.9, 0.95)
        )
        seconds = None if run.seconds is None else run.seconds * share
        tokens = None if run.tokens is None else run.tokens * share
        if seconds is None and tokens is None:
            tokens = self.epochs * sum(_count(t) for t in traces)
        started, spent, step, dtype = time.monotonic(), 0, 0, precision(run)
        while (fraction := _fraction(time.monotonic() - started, spent, seconds, tokens)) < 1:
            one = traces[step % len(traces)]
            with torch.autocast(one.inputs[0].device.type, torch.bfloat16, enabled=dtype == "bf16"):
                loss = self.distance(play(blocks, one.rest, one.inputs[0]), one.output, one.mask)  # type: ignore[arg-type]
            if not math.isfinite(float(loss.detach())):
                raise UserError(f"the loss became {float(loss.detach())}: take a lower lr")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            for each in optimizer.param_groups:
                each["lr"] = each["peak"] * factor(fraction, 0.0, "cosine")
            optimizer.step()
            spent, step = spent + _count(one), step + 1
            run.progress({"step": step, "loss": float(loss.detach()), "fraction": fraction})
        for parameter in parameters.values():
            parameter.grad = None

    def distance(self, own: Tensor, goal: Tensor, mask: Tensor | None) -> Tensor:
        """The loss of states (batch, length, width) against those of the whole group."""
        if self.loss == "batch-kl":
            terms = nn.functional.kl_div(
                own.float().log_softmax(0), goal.float().log_softmax(0), reduction="none", log_target=True
            )
            return terms.sum() / len(own)
        own, goal = calibration.real_tokens(own, mask), calibration.real_tokens(goal, mask)
        if self.loss == "mse":
            return (own.float() - goal.float()).square().mean()
        return losses.logits_kl(own, goal)


def macro_influences(bundle: Bundle, blocks: Sequence[nn.Module], batches: Sequence[Any]) -> list[float]:
    """Per block, how far the stack's last states turn without it (before the final norm); padding does not count."""
    totals, rows = [0.0] * len(blocks), 0
    with ExitStack() as stack:
        stack.enter_context(calibration.evaluating(bundle.model))
        for batch in batches:
            one = trace(bundle.model, bundle.module(), blocks, batch)
            assert one.output is not None
            whole = calibration.real_tokens(one.output, one.mask)
            for i in range(len(blocks)):
                last = play(blocks[i + 1 :], one.rest[i + 1 :], one.inputs[i])
                totals[i] += influence(whole, calibration.real_tokens(last, one.mask)) * len(whole)
            rows += len(whole)
    return [t / rows for t in totals]


@torch.no_grad()
def _cut(one: Trace, blocks: Sequence[nn.Module], group: range, target: int) -> Trace:
    """What the survivors of a group get, and what the whole group made of it."""
    end = group.stop
    output = one.inputs[end] if end < len(blocks) else one.output
    rest = [one.rest[i] for i in group if i != target]
    return Trace([one.inputs[group.start]], rest, output, one.mask)


def _check(model: nn.Module, found: anatomy.Anatomy) -> None:
    if len(found.stacks) > 1 or any(b.cross_attention for b in found.blocks):
        raise ModelError("blocks of several stacks are not fused: only a model of one stack is")
    if found.stacks[0].shared:
        raise ModelError("one shared block runs many times: there is nothing to fuse")
    first = [
        (n, anatomy.linear(model, f"{found.blocks[0].path}.{n}")[0].shape) for n in _names(found.blocks[0])
    ]
    for block in found.blocks[1:]:
        names = _names(block)
        if names != [n for n, _ in first] or any(
            anatomy.linear(model, f"{block.path}.{n}")[0].shape != s for n, s in first
        ):
            raise ModelError(
                f"{block.path} has other matrices than {found.blocks[0].path}: only equal ones can be fused"
            )


def _names(block: anatomy.Block) -> list[str]:
    """Paths of a block's projections, relative to it."""
    paths = (*(block.attention.projections if block.attention else ()),
             *(block.feed_forward.projections if block.feed_forward else ()))  # fmt: skip
    return [p[len(block.path) + 1 :] for p in paths]


@torch.no_grad()
def _write(model: nn.Module, path: str, weight: Tensor, bias: Tensor | None) -> None:
    old, old_bias = anatomy.linear(model, path)
    old.copy_(weight)
    if old_bias is not None and bias is not None:
        old_bias.copy_(bias)


def _count(one: Trace) -> int:
    return int(one.mask.sum()) if one.mask is not None else one.inputs[0].shape[0] * one.inputs[0].shape[1]


def _fraction(seconds: float, tokens: int, most_seconds: float | None, most_tokens: float | None) -> float:
    """Share of the budget that is spent, by the measure nearest to its end."""
    spent = [(seconds, most_seconds), (tokens, most_tokens)]
    return max(a / b for a, b in spent if b is not None)
