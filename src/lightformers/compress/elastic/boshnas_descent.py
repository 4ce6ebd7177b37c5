"""Second-order descent on the input of a surrogate, AdaHessian (Yao et al., 2020, arXiv 2006.00719)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_BETAS = (0.9, 0.999)
_EPS = 1e-4
_STILL = 6  # steps in a row that change nothing
_CHANGE = 1e-5


def descend(
    objective: Callable[[Tensor], Tensor], start: Tensor, low: Tensor, high: Tensor, generator: torch.Generator,
    rate: float = 0.5, steps: int = 200,
) -> Tensor:  # fmt: skip
    """Minimise `objective` ((k, d) -> (k,), each row by itself) from k points, inside the box low, high (d,).

    The step is the mean gradient over the root mean square of the Hessian's diagonal, which a random +-1 vector probes.
    The rate falls and rises along a cosine of two steps. A row rests once its value has changed by less than 1e-5 six
    times in a row; all end after `steps`. Returns (k, d).
    """
    x = start.clone()
    gradients, curvatures = torch.zeros_like(x), torch.zeros_like(x)
    before = x.new_full((len(x),), math.inf)
    still = torch.zeros(len(x), dtype=torch.long)
    for step in range(1, steps + 1):
        point = x.detach().requires_grad_()
        value = objective(point)
        (slope,) = torch.autograd.grad(value.sum(), point, create_graph=True)
        with torch.no_grad():
            still = torch.where((value - before).abs() < _CHANGE, still + 1, 0)
            moving = (still < _STILL)[:, None]
        if not bool(moving.any()):
            break
        before = value.detach()
        probe = torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1
        (curved,) = torch.autograd.grad(slope, point, probe)
        gradients = _BETAS[0] * gradients + (1 - _BETAS[0]) * slope.detach()
        curvatures = _BETAS[1] * curvatures + (1 - _BETAS[1]) * curved.square()
        scale = (curvatures / (1 - _BETAS[1] ** step)).sqrt() + _EPS
        pace = rate * 0.5 * (1 + math.cos(math.pi * (step - 1) / 2))
        moved = x - pace * gradients / (1 - _BETAS[0] ** step) / scale
        x = torch.where(moving, moved.clamp(low, high), x)
    return x


def snap(points: Tensor, library: Tensor) -> Tensor:
    """Index (k,) of the library's point (n, d) nearest to each of points (k, d), by mean absolute difference."""
    return torch.cdist(points, library, p=1).argmin(1)
