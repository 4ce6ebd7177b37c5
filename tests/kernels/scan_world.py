"""What the tests of scans with a reference share: outputs and gradients of both forms, compared."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LENGTHS = (1, 63, 65, 1000)
PRECISIONS = [(torch.float64, 1e-9), (torch.float32, 1e-4)]


def results(
    fn: Callable[..., tuple[Tensor, Tensor]], leaves: dict[str, Tensor], **fixed: object
) -> dict[str, Tensor]:
    """Both outputs, and the gradient of a loss that weighs all of them unequally, by name."""
    held = {name: x.clone().requires_grad_() for name, x in leaves.items()}
    y, last = fn(**held, **fixed)
    weight = torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    ((y * weight).sum() + last.square().sum()).backward()
    grads = {f"d{name}": x.grad for name, x in held.items() if x.grad is not None}
    assert len(grads) == len(leaves)
    return {"y": y.detach(), "last": last.detach(), **grads}


def same(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, w in wanted.items():
        worst = (found[name] - w).abs().max().item()
        assert found[name].dtype == w.dtype
        assert worst <= tolerance * (1 + w.abs().max().item()), f"{name} differs by {worst:.2e}"
