"""Attention relations of sub-networks against a teacher's: the only thing AutoDistil learns from."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Batch, Bundle
from lightformers.compress.distill import common
from lightformers.compress.elastic.shared import Shared
from lightformers.compress.elastic.size import Size
from lightformers.errors import ModelError
from lightformers.runners.named import plain_arguments
from lightformers.train import losses
from lightformers.train.capture import Capture

Kind = Literal["mse", "kl"]


def relation_heads(x: Tensor, heads: int) -> Tensor:
    """(B, A, S, d) -> (B, heads, S, A*d // heads): the concatenated heads cut anew, surplus columns dropped."""
    joined = x.transpose(1, 2).flatten(2)
    size = joined.shape[-1] // heads
    return joined[..., : size * heads].unflatten(-1, (heads, size)).transpose(1, 2)


def relation_mse(student: Tensor, teacher: Tensor, mask: Tensor, causal: bool = False) -> Tensor:
    """Mean over heads and pairs of real tokens of the squared difference of X X' / sqrt(d).

    student, teacher: (B, R, S, d) with equal R, each scaled by its own d; mask: (B, S).
    """
    pairs = losses.allowed(mask, causal)
    mine, theirs = (x.float() @ x.float().transpose(-1, -2) * x.shape[-1] ** -0.5 for x in (student, teacher))
    squared = (mine - theirs).pow(2).mean(1, keepdim=True)
    return (squared * pairs).sum() / pairs.sum().clamp(min=1)


class Relations:
    """The loss of a sub-network: how far the query, key and value relations of its last block are from the teacher's.

    heads: into how many heads both are cut anew; None: as many as the teacher has.
    """

    def __init__(self, bundle: Bundle, teacher: Bundle, kind: Kind = "mse", heads: int | None = None) -> None:
        self.bundle, self.teacher, self.kind = bundle, teacher, kind
        self.theirs = anatomy.of(teacher.model)
        self.block = len(self.theirs.blocks) - 1
        attention = self.theirs.blocks[self.block].attention
        if attention is None:
            raise ModelError(f"{self.theirs.blocks[self.block].path} has no attention to distil")
        self.heads = heads or attention.heads
        if self.heads > attention.out_features:
            raise ModelError(
                f"{self.heads} relation heads are more than the teacher's {attention.out_features} columns"
            )
        vocabulary = common.vocabulary_map(bundle, teacher)
        self.rows = None if vocabulary is None else torch.tensor(vocabulary)
        self.arguments = plain_arguments(bundle.module())

    def check(self, model: nn.Module) -> None:
        """Raises ModelError where a sub-network has fewer columns than there are relation heads."""
        attention = anatomy.of(model).blocks[-1].attention
        if attention is None or attention.out_features < self.heads:
            raise ModelError(
                f"{attention.out_features if attention else 0} columns of queries cannot be cut into {self.heads} "
                "relation heads: give fewer relation_heads"
            )

    def of_teacher(self, device: str) -> _Teacher:
        """A context in which the teacher tells its relations: a function of batches."""
        return _Teacher(self, device)

    def __call__(self, shared: Shared, size: Size, batch: Batch, theirs: Sequence[Tensor]) -> Tensor:
        skeleton = shared.network(size).skeleton
        own = anatomy.of(skeleton)
        with Capture(skeleton, own, relations=[len(own.blocks) - 1]) as caught:
            shared(size, **batch.inputs, **self.arguments)
            mine = [relation_heads(caught.qkv(len(own.blocks) - 1, piece), self.heads) for piece in "qkv"]
        mask = batch.inputs.get("attention_mask")
        if mask is None:  # images: every patch counts
            mask = torch.ones(mine[0].shape[0], mine[0].shape[2], device=mine[0].device)
        measure = relation_mse if self.kind == "mse" else losses.self_relation_kl
        causal = self.bundle.task == "causal-lm"
        return torch.stack([measure(s, t, mask, causal) for s, t in zip(mine, theirs)]).sum()

    @torch.no_grad()
    def mean(self, shared: Shared, sizes: Sequence[Size], batches: Sequence[Batch]) -> list[float]:
        """Mean loss of each size over batches, weighted by their examples. The bundle is in eval mode meanwhile.

        batches: on the device of the bundle's model.
        """
        device = str(next(self.bundle.model.parameters()).device)
        total, count, mode = np.zeros(len(sizes)), 0, self.bundle.model.training
        self.bundle.model.eval()
        try:
            with self.of_teacher(device) as goal:
                for batch in batches:
                    rows = len(next(iter(batch.inputs.values())))
                    theirs, count = goal(batch), count + rows
                    total += [rows * float(self(shared, size, batch, theirs)) for size in sizes]
        finally:
            self.bundle.model.train(mode)
        return [float(x) for x in total / max(count, 1)]


class _Teacher:
    def __init__(self, relations: Relations, device: str) -> None:
        self.relations, self.device, self.stack = relations, device, ExitStack()

    def __enter__(self) -> _Teacher:
        to = self.relations
        self.call: Any = self.stack.enter_context(common.live(to.teacher, self.device))
        self.caught = self.stack.enter_context(Capture(to.teacher.model, to.theirs, relations=[to.block]))
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.close()

    def __call__(self, batch: Batch) -> list[Tensor]:
        to = self.relations
        rows = None if to.rows is None else to.rows.to(batch.inputs["input_ids"].device)
        self.call(common.translated(batch.inputs, rows))
        found = [relation_heads(self.caught.qkv(to.block, piece), to.heads) for piece in "qkv"]
        self.caught.clear()
        return found
