"""What recurrences with a matrix as their state share: sequences cut into chunks, documents, the scan over chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightformers.errors import UserError


def exact(x: Tensor) -> torch.dtype:
    """The dtype in which a recurrence runs: float32, or float64 for inputs of float64."""
    return torch.promote_types(x.dtype, torch.float32)


def cut(x: Tensor, chunk: int, dim: int = 2) -> Tensor:
    """(..., n, ...) -> (..., ceil(n / chunk), chunk, ...), the last chunk filled up with zeros."""
    n = x.shape[dim]
    if n % chunk:
        shape = list(x.shape)
        shape[dim] = -n % chunk
        x = torch.cat([x, x.new_zeros(shape)], dim)
    return x.unflatten(dim, (-1, chunk))


def joined(x: Tensor, n: int) -> Tensor:
    """The inverse of `cut` along dimension 2."""
    return x.flatten(2, 3)[:, :, :n]


@dataclass(frozen=True)
class Documents:
    """Which tokens of a chunk see each other and the state: all bool, to be broadcast over heads.

    same: (batch, 1, chunks, chunk, chunk), two tokens of one document. carried: (batch, 1, chunks, chunk), tokens of
    the document that the state comes from. kept: tokens of the document that the chunk ends with, which alone are in
    the state that leaves. whole: (batch, 1, chunks), no document starts in the chunk.
    """

    same: Tensor
    carried: Tensor
    kept: Tensor
    whole: Tensor


def documents(starts: Tensor, chunk: int) -> Documents:
    """starts: (batch, n) bool, true at the first token of every document."""
    number = cut(starts.long()[:, None], chunk).cumsum(-1)
    last = number[..., -1:]
    return Documents(
        number[..., :, None] == number[..., None, :], number == 0, number == last, last[..., 0] == 0
    )


def check(q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, starts: Tensor | None, chunk: int) -> None:
    """Raises UserError where the shapes of a recurrence over (batch, heads, n, size) do not agree."""
    if chunk < 1:
        raise UserError(f"a chunk needs at least 1 token, not {chunk}")
    if q.shape != k.shape or k.shape[:3] != v.shape[:3] or q.dim() != 4 or v.dim() != 4:
        raise UserError(
            "queries, keys and values must be (batch, heads, n, size) of the same tokens, not "
            f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    if not q.shape[2]:
        raise UserError("a recurrence needs at least one token")
    wanted = (*q.shape[:2], k.shape[3], v.shape[3])
    if state is not None and state.shape != wanted:
        raise UserError(
            f"the state is {tuple(state.shape)}, not {wanted}: it belongs to another model or batch"
        )
    if starts is not None and starts.shape != (q.shape[0], q.shape[2]):
        raise UserError(
            f"the starts of documents are {tuple(starts.shape)}, not {(q.shape[0], q.shape[2])}: (batch, n)"
        )


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, added: Tensor, first: Tensor) -> Tensor:
        count = len(matrix)
        states = first.new_empty(count + 1, *first.shape)
        states[0] = first
        for i in range(count):
            torch.baddbmm(added[i], matrix[i], states[i], out=states[i + 1])
        ctx.save_for_backward(matrix, states)
        return states

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        matrix, states = ctx.saved_tensors
        total = grads[0].clone(memory_format=torch.contiguous_format)
        for i in range(len(matrix) - 1, -1, -1):
            total[i].baddbmm_(matrix[i].mT, total[i + 1])
        return total[1:] @ states[:-1].mT, total[1:], total[0]


def affine(matrix: Tensor, added: Tensor, first: Tensor) -> Tensor:
    """S_0 = first, S_{i+1} = matrix_i S_i + added_i, with one product per chunk forward and one backward.

    matrix (m, b, k, k), added (m, b, k, v), first (b, k, v) -> (m + 1, b, k, v). Only the states are kept for the
    gradient, and that of the matrices is one product over all chunks.
    """
    out: Tensor = _Affine.apply(matrix.contiguous(), added.contiguous(), first.contiguous())
    return out
