"""Adaptive gradient clipping (Brock et al., 2021, arXiv 2102.06171): gradients in proportion to the weights they move."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightformers.errors import UserError


@torch.no_grad()
def clipped(gradient: Tensor, weight: Tensor, limit: float, floor: float = 1e-3) -> Tensor:
    """`gradient`, scaled down per output unit where its norm is more than `limit` times that of the unit's weights.

    A unit is a row along the first dimension; a vector is one unit. floor: smallest norm of weights that counts, so that
    weights at zero can leave it.
    """
    dims = tuple(range(1, gradient.ndim)) or (0,)
    most = limit * torch.linalg.vector_norm(weight.float(), dim=dims, keepdim=True).clamp(min=floor)
    norm = torch.linalg.vector_norm(gradient.float(), dim=dims, keepdim=True)
    return gradient * (most / norm.clamp(min=1e-12)).clamp(max=1.0).to(gradient.dtype)


@contextmanager
def adaptive_clipping(module: nn.Module, limit: float) -> Iterator[None]:
    """While the block runs, every gradient of `module` is clipped as soon as it is complete: one backward per update.

    limit: 0 for none. Raises UserError where it is negative.
    """
    if limit < 0:
        raise UserError(f"the limit of adaptive clipping must not be negative, got {limit}")

    def clip(parameter: Tensor) -> None:
        if parameter.grad is not None:
            parameter.grad = clipped(parameter.grad, parameter, limit)

    kept = [p.register_post_accumulate_grad_hook(clip) for p in module.parameters() if limit]
    try:
        yield
    finally:
        for hook in kept:
            hook.remove()
