"""What cores share: softmax over what is seen, positions in blocks, padding brought to the right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.recording import recorded


def softmax(scores: Tensor, seen: Tensor | None) -> Tensor:
    """Over the last dimension, among what is seen (bool, broadcast); rows that see nothing are 0."""
    if seen is None:
        return scores.softmax(-1)
    hidden = ~seen
    return scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(hidden, 0)


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
    """softmax(qk' / sqrt(size)) v among the keys that are seen: (..., n, size), (..., m, size) -> (..., n, size)."""
    return softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, seen) @ v


def blocks(x: Tensor, block: int) -> Tensor:
    """(..., n, size) -> (..., blocks, block, size), zeros after the end."""
    x = nn.functional.pad(x, (0, 0, 0, -x.shape[-2] % block))
    return x.unflatten(-2, (-1, block))


def real(mask: Tensor | None, n: int, block: int, device: torch.device) -> Tensor:
    """Where tokens are, in blocks: (batch or 1, 1, blocks, block), False at padding and after the end."""
    there = torch.ones(1, n, dtype=torch.bool, device=device) if mask is None else mask
    return nn.functional.pad(there, (0, -n % block)).unflatten(1, (-1, block))[:, None]


def neighbours(x: Tensor, dim: int) -> Tensor:
    """Blocks with those before and after them: `dim` counts blocks, the next one positions, which become three times
    as many; beyond the ends are zeros."""
    pad = [0, 0] * (x.dim() - 1 - dim) + [1, 1]
    wide, count = nn.functional.pad(x, pad), x.shape[dim]
    return torch.cat([wide.narrow(dim, i, count) for i in range(3)], dim + 1)


def precise(*tensors: Tensor) -> list[Tensor]:
    """In float32 or better."""
    return [t if t.dtype == torch.float64 else t.float() for t in tensors]


def run(
    core: Any, q: Tensor | None, k: Tensor | None, v: Tensor, mask: Tensor | None = None,
    second: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """A core on heads with padding anywhere: tokens go to the front, in order, and back. mask: (batch, n), 0 at padding.

    Raises UserError for a mask of another shape.
    """
    extra = {} if second is None else {"second": second}
    if mask is None:
        return core(q, k, v, **extra)
    if mask.dim() != 2 or mask.shape[1] != v.shape[2]:
        raise UserError(f"a padding mask is (batch, {v.shape[2]}), not {tuple(mask.shape)}")
    there = mask != 0
    if getattr(core, "anywhere", False):
        return core(q, k, v, there, **extra)
    if not (recorded() or torch.compiler.is_compiling()):  # a graph must hold for other masks too
        if bool(there.all()):
            return core(q, k, v, **extra)
        if not bool((there[:, 1:] & ~there[:, :-1]).any()):
            return core(q, k, v, there, **extra)
    order = (~there).to(torch.int8).argsort(dim=1, stable=True)

    def to(x: Tensor | None, index: Tensor) -> Any:
        return None if x is None else x.gather(2, index[:, None, :, None].expand_as(x))

    if second is not None:
        extra = {"second": tuple(to(x, order) for x in second)}
    out = core(to(q, order), to(k, order), to(v, order), there.gather(1, order), **extra)
    return to(out, order.argsort(1))
