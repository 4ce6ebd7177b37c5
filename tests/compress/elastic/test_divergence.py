"""The alpha divergence with clipped ratios, and clipping gradients by the norm of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightformers.compress.elastic.adaptive_clipping import adaptive_clipping, clipped
from lightformers.compress.elastic.divergence import adaptive_alpha
from lightformers.errors import UserError


def literal(student: torch.Tensor, p: torch.Tensor, alpha: float) -> torch.Tensor:
    q = student.softmax(-1)
    if alpha == 1:
        return (p * (p / q).log()).sum(-1)
    return (q * ((p / q) ** alpha - 1)).sum(-1) / (alpha * (alpha - 1))


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.5, 2.0)])
def test_the_alpha_divergence_is_the_larger_of_two(low: float, high: float) -> None:
    """Value and gradient against the definition, without clipping."""
    torch.manual_seed(0)
    student = torch.randn(7, 5, dtype=torch.float64).float().requires_grad_()
    p = torch.randn(7, 5).softmax(-1)
    loss = adaptive_alpha(student, p, low, high, clip=float("inf"))
    expected = torch.maximum(literal(student, p, low), literal(student, p, high)).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(value, student)[0] for value in (loss, expected)), rtol=1e-4, atol=1e-6
    )
    assert float(adaptive_alpha(p.log(), p)) == pytest.approx(0, abs=1e-6)


def test_clipping_bounds_the_gradient_of_a_sure_student() -> None:
    """At alpha -1 the ratio (p / q)^-1 = q / p is huge where the student is sure of what the target excludes."""
    student = torch.tensor([[8.0, 0.0]], requires_grad=True)
    p = torch.tensor([[1e-4, 1 - 1e-4]])
    free, held = (
        torch.autograd.grad(adaptive_alpha(student, p, -1.0, -1.0, clip=c), student)[0].abs().max()
        for c in (1e9, 5.0)
    )
    assert free > 1 and held < 0.01


def test_adaptive_clipping() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight[0] = 0.0
    x = torch.randn(5, 4)
    layer(x).square().sum().mul(100).backward()
    free = {n: p.grad.clone() for n, p in layer.named_parameters()}
    layer.zero_grad()
    with adaptive_clipping(layer, 0.1):
        layer(x).square().sum().mul(100).backward()
    for row in range(3):
        limit = 0.1 * max(float(layer.weight[row].detach().norm()), 1e-3)
        assert float(layer.weight.grad[row].norm()) == pytest.approx(
            min(limit, float(free["weight"][row].norm()))
        )
        cosine = nn.functional.cosine_similarity(layer.weight.grad[row], free["weight"][row], dim=0)
        assert float(cosine) == pytest.approx(1, abs=1e-5)
    small = torch.full((3, 4), 1e-6)
    assert torch.equal(clipped(small, torch.ones(3, 4), 0.1), small)
    layer.zero_grad()
    layer(x).square().sum().mul(100).backward()  # afterwards nothing is clipped
    assert torch.equal(layer.weight.grad, free["weight"])
    with pytest.raises(UserError, match="negative"), adaptive_clipping(layer, -1):
        pass
