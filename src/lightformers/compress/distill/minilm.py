"""MiniLM: the student imitates self-attention relations of one block (Wang et al., 2020, arXiv 2002.10957; v2: 2012.15828).

What differs from the papers: the student is a cut copy of the teacher (any family that anatomy knows) instead of a
randomly initialised one, so its word embeddings stay frozen while its width is the teacher's; the budget is that
of the run. Relations of rotary models are taken before rotation, those of t5 without its position bias. The output
projection, norms and feed-forward of the student's matched block get no gradient: that is the method, not a fault.
"""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.anatomy.records import Anatomy, Attention
from lightformers.bundle import Batch, Bundle
from lightformers.compress.distill import common
from lightformers.compress.distill.assistant import assistant
from lightformers.errors import ModelError, UserError
from lightformers.runners.named import plain_arguments
from lightformers.steps import Run, Stage
from lightformers.train import losses
from lightformers.train.capture import Capture

#: v2's usual numbers of relation heads, most wished first.
_RELATION_HEADS = (48, 64, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1)


@dataclass(frozen=True)
class MiniLM:
    """Distil attention relations of the teacher's last block (or another) into the student's last block.

    version: "v1" matches attention distributions and value relations, and needs equal head counts; "v2" matches
        query, key and value relations over `relation_heads` heads cut anew, so head counts may differ.
    attention, values: weights of v1's two terms. relations: weights of v2's Q, K and V terms.
    relation_heads: None takes the largest usual number (48 first) that divides both widths.
    teacher_block, student_block: places among the blocks, negative from the end. For large teachers the v2 paper
        prefers an upper-middle block.
    assistant: v1's teacher assistant, of the teacher's depth and the student's width; None: as in the paper, where the
        student has at most half the blocks and half the width. It takes half of the budget.
    lr, epochs, seconds, share, train_embeddings, max_tokens, warmup, weight_decay: as in `Recover`.

    Raises ModelError where heads or vocabularies do not fit, UserError for bad weights.
    """

    version: Literal["v1", "v2"] = "v2"
    attention: float = 1.0
    values: float = 1.0
    relations: tuple[float, float, float] = (1 / 3, 1 / 3, 1 / 3)
    relation_heads: int | None = None
    teacher_block: int = -1
    student_block: int = -1
    assistant: bool | None = None
    lr: float = 5e-4
    epochs: float = 3.0
    seconds: float | None = None
    share: float = 1.0
    train_embeddings: bool | None = None
    max_tokens: int | None = None
    warmup: float = 0.05
    weight_decay: float = 0.01
    stage: ClassVar[Stage] = Stage.RECOVER

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        self._validate(task)
        teacher = common.teacher_of(bundle, run)
        run = common.shared(run, self.share, self.seconds)
        if self.assistant or (self.assistant is None and self.version == "v1" and _far(bundle, teacher)):
            half = common.shared(run, 0.5)
            teacher = self._distil(assistant(bundle, teacher), teacher, task, half)
            run = half
        return self._distil(bundle, teacher, task, run)

    def _validate(self, task: Any) -> None:
        if task is None:
            raise UserError(
                "distillation needs a task: its training examples are what the models are compared on"
            )
        if self.version not in ("v1", "v2"):
            raise UserError(f"version {self.version!r} is not one of v1, v2")
        weights = (self.attention, self.values) if self.version == "v1" else tuple(self.relations)
        if min(weights) < 0 or max(weights) == 0:
            raise UserError("the weights of the relations must not be negative, and one must be positive")

    def _distil(self, bundle: Bundle, teacher: Bundle, task: Any, run: Run) -> Bundle:
        started = time.monotonic()
        own, theirs = anatomy.of(bundle.model), anatomy.of(teacher.model)
        pair = _pair(own, theirs, self.student_block, self.teacher_block)
        heads = self._heads(_attention(own, pair[0]), _attention(theirs, pair[1]))
        vocabulary = common.vocabulary_map(bundle, teacher)
        rows = None if vocabulary is None else torch.tensor(vocabulary, device=run.device)
        frozen = common.frozen_embeddings(bundle, teacher, self.train_embeddings)
        batches = common.feed(bundle, task, run, self.max_tokens)
        arguments = plain_arguments(bundle.module())
        with ExitStack() as stack:
            call = stack.enter_context(common.live(teacher, run.device))
            student = stack.enter_context(Capture(bundle.model, own, relations=[pair[0]]))
            source = stack.enter_context(Capture(teacher.model, theirs, relations=[pair[1]]))

            def objective(module: nn.Module, batch: Batch) -> Tensor:
                module(**batch.inputs, **arguments)
                call(common.translated(batch.inputs, rows))
                mine = [student.qkv(pair[0], piece) for piece in "qkv"]
                goal = [source.qkv(pair[1], piece) for piece in "qkv"]
                causal = bundle.task == "causal-lm"
                mask = batch.inputs.get("attention_mask")
                if mask is None:  # images: every patch counts
                    mask = torch.ones(mine[0].shape[0], mine[0].shape[2], device=mine[0].device)
                loss = self._loss(mine, goal, mask, causal, heads)
                student.clear()
                source.clear()
                return loss

            plan = common.Plan(self.lr, self.epochs, self.warmup, self.weight_decay)
            common.train(bundle, batches, objective, plan, run, started, frozen)
        return bundle

    def _heads(self, own: Attention, theirs: Attention) -> int:
        if self.version == "v1":
            if own.heads != theirs.heads:
                raise ModelError(
                    f"MiniLM v1 needs equal head counts, got {own.heads} and {theirs.heads}: use version 'v2'"
                )
            return own.heads
        common_width = math.gcd(own.out_features, theirs.out_features)
        if self.relation_heads is None:
            return next(h for h in _RELATION_HEADS if common_width % h == 0)
        if self.relation_heads < 1 or common_width % self.relation_heads:
            raise ModelError(
                f"{self.relation_heads} relation heads do not divide {own.out_features} and {theirs.out_features}"
            )
        return self.relation_heads

    def _loss(
        self, own: list[Tensor], theirs: list[Tensor], mask: Tensor, causal: bool, heads: int
    ) -> Tensor:
        if self.version == "v1":
            q, k, v = 0, 1, 2
            loss = own[0].new_zeros((), dtype=torch.float32)
            if self.attention:
                loss = loss + self.attention * losses.attention_kl(
                    (own[q], own[k]), (theirs[q], theirs[k]), mask, causal
                )
            if self.values:
                loss = loss + self.values * losses.self_relation_kl(own[v], theirs[v], mask, causal)
            return loss
        terms = [
            weight
            * losses.self_relation_kl(
                losses.relation_heads(s, heads), losses.relation_heads(t, heads), mask, causal
            )
            for weight, s, t in zip(self.relations, own, theirs)
            if weight
        ]
        return torch.stack(terms).sum()


def _attention(own: Anatomy, block: int) -> Attention:
    found = own.blocks[block].attention
    if found is None:
        raise ModelError(f"{own.blocks[block].path} has no attention to distil")
    return found


def _pair(own: Anatomy, theirs: Anatomy, student: int, teacher: int) -> tuple[int, int]:
    for name, blocks, place in (("student", own.blocks, student), ("teacher", theirs.blocks, teacher)):
        if not -len(blocks) <= place < len(blocks):
            raise UserError(f"{name}_block {place} does not exist: the {name} has {len(blocks)} blocks")
    return student % len(own.blocks), teacher % len(theirs.blocks)


def _far(bundle: Bundle, teacher: Bundle) -> bool:
    own, theirs = anatomy.of(bundle.model), anatomy.of(teacher.model)
    return 2 * len(own.blocks) <= len(theirs.blocks) and 2 * own.width <= theirs.width
