"""The adaptive alpha-divergence, a loss of in-place distillation (AlphaNet: Wang et al., 2021, arXiv 2102.07954)."""

from __future__ import annotations

import torch
from torch import Tensor

_NEAR = 1e-3


def adaptive_alpha(
    student: Tensor, target: Tensor, low: float = -1.0, high: float = 1.0, clip: float = 5.0
) -> Tensor:
    """Mean over examples of the larger one of D_low(p || q) and D_high(p || q).

    student: logits (batch, classes) of q; target: probabilities p of the same shape, which get no gradient.
    D_a(p || q) = sum q ((p / q)^a - 1) / (a (a - 1)); at 1 KL(p || q), at 0 KL(q || p). A negative a punishes a student
    that is sure where the target is not, a positive one a student that misses what the target holds possible.
    clip: largest (p / q)^a, which keeps the gradient's variance finite; not applied at 1, where q cancels.
    """
    q = student.float().log_softmax(-1)
    p = target.detach().float().clamp(min=1e-12).log()
    (left, toward_left), (right, toward_right) = (_divergence(p, q, alpha, clip) for alpha in (low, high))
    worse = left > right
    value = torch.where(worse, left, right)
    surrogate = torch.where(worse, toward_left, toward_right)
    return (
        surrogate + (value - surrogate).detach()
    ).mean()  # the value of the one, the gradient of the other


def _divergence(log_p: Tensor, log_q: Tensor, alpha: float, clip: float) -> tuple[Tensor, Tensor]:
    """Value per example without gradient, and a term with its gradient: -sum q w(p / q) grad(log q).

    w(r) = r f'(r) - f(r) for the f of the divergence; constants fall out, for sum q grad(log q) = 0.
    """
    q = log_q.detach().exp()
    log_ratio = log_p - log_q.detach()
    if abs(alpha) < _NEAR:
        f, weight = -log_ratio, log_ratio
    elif abs(alpha - 1) < _NEAR:
        ratio = log_ratio.exp()
        f, weight = ratio * log_ratio, ratio
    else:
        power = (alpha * log_ratio).exp().clamp(max=clip)
        f, weight = (power - 1) / (alpha * (alpha - 1)), power / alpha
    return (q * f).sum(-1), -(q * weight * log_q).sum(-1)
