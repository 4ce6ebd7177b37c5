"""Turned pairs: the literal equation in values and gradients, and positions looked up in a table."""

from __future__ import annotations

import pytest
import torch

from lightformers.kernels.rotary import reference, rotate
from lightformers.parts import positions


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize(("n", "size"), [(1, 8), (63, 6), (65, 8), (1000, 4)])
def test_it_is_the_reference(n: int, size: int, dtype: torch.dtype, close: float) -> None:
    torch.manual_seed(n)
    x, pull = (torch.randn(2, n, 3, 8, dtype=dtype).transpose(1, 2) for _ in range(2))
    x.requires_grad_()
    cos, sin = positions.turns(torch.arange(n)[None], size, 1e4, dtype)
    found = []
    for f in (rotate, reference):
        y = f(x, cos, sin)
        found.append((y.detach(), *torch.autograd.grad(y, x, pull)))
    for mine, theirs in zip(*found):
        assert (mine - theirs).abs().max() < close
    assert torch.allclose(found[0][0].norm(dim=-1), x.norm(dim=-1))  # turning keeps lengths


def test_it_can_be_differentiated_again() -> None:
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    cos, sin = positions.turns(torch.arange(3)[None], 4, 10.0, torch.float64)
    torch.autograd.gradcheck(lambda x: rotate(x, cos, sin), x)
    torch.autograd.gradgradcheck(lambda x: rotate(x, cos, sin), x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_table_is_the_equation(dtype: torch.dtype) -> None:
    positions._TABLES.clear()
    for place in (torch.tensor([[0, 5, 2], [7, 7, 1]]), torch.tensor([[255, 3]]), torch.tensor([[4000, 0]])):
        found = positions.turns(place, 6, 1e4, dtype)
        for mine, theirs in zip(found, positions._turns(place, 6, 1e4, dtype)):
            assert mine.dtype == dtype and mine.shape == (len(place), 1, place.shape[1], 3)
            assert torch.equal(mine, theirs.to(dtype))
    assert [len(t) for t in positions._TABLES.values()] == [8002]


def test_a_table_made_for_speaking_serves_learning() -> None:
    positions._TABLES.clear()
    x = torch.randn(1, 1, 4, 4, requires_grad=True)
    with torch.inference_mode():
        positions.turns(torch.arange(4)[None], 4, 1e4, torch.float32)
    positions.turn(x, *positions.turns(torch.arange(4)[None], 4, 1e4, torch.float32)).sum().backward()
    assert x.grad is not None
