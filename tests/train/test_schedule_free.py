"""Schedule-free AdamW against the three sequences of its paper."""

from __future__ import annotations

import pytest
import torch

from lightformers.errors import UserError
from lightformers.train.schedule_free import ScheduleFreeAdamW


def quadratic(at: torch.Tensor) -> torch.Tensor:
    return 2 * (at - 3)


def test_the_published_equations() -> None:
    lr, beta, beta2, eps, decay, warmup = 0.1, 0.9, 0.99, 1e-8, 0.05, 4
    start = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = start.clone().requires_grad_()
    mine = ScheduleFreeAdamW({"w": y}, lr, (beta, beta2), decay, warmup, eps)
    x = z = start.clone()
    v, squares = torch.zeros_like(start), 0.0
    for t in range(1, 12):
        at = (1 - beta) * z + beta * x
        torch.testing.assert_close(y.detach(), at)
        g = quadratic(at)
        v = beta2 * v + (1 - beta2) * g * g
        rate = lr * (1 - beta2**t) ** 0.5 * min(1, t / warmup)
        z = z - rate * (g / (v.sqrt() + eps) + decay * at)
        squares += rate**2
        c = rate**2 / squares
        x = (1 - c) * x + c * z
        y.grad = quadratic(y.detach())
        mine.step()
        torch.testing.assert_close(mine.averages()["w"], x)


def test_vectors_do_not_decay() -> None:
    y = torch.full((3,), 5.0, requires_grad=True)
    mine = ScheduleFreeAdamW({"b": y}, 0.1, weight_decay=0.5)
    y.grad = torch.zeros(3)
    mine.step()
    assert torch.equal(y.detach(), torch.full((3,), 5.0))


def test_it_comes_to_the_minimum() -> None:
    y = torch.zeros(4, requires_grad=True)
    mine = ScheduleFreeAdamW({"w": y}, 0.1, (0.9, 0.99), 0.0, 5)
    for _ in range(400):
        y.grad = quadratic(y.detach()) + 0.5 * torch.randn(
            4, generator=torch.Generator().manual_seed(mine.steps)
        )
        mine.step()
    torch.testing.assert_close(mine.averages()["w"], torch.full((4,), 3.0), atol=0.1, rtol=0)


def test_it_goes_on_where_it_stopped() -> None:
    whole, first, second = (torch.zeros(2, 2, requires_grad=True) for _ in range(3))

    def steps(y: torch.Tensor, by: ScheduleFreeAdamW, count: int) -> None:
        for _ in range(count):
            y.grad = quadratic(y.detach())
            by.step()

    one = ScheduleFreeAdamW({"w": whole}, 0.1)
    steps(whole, one, 6)
    two = ScheduleFreeAdamW({"w": first}, 0.1)
    steps(first, two, 3)
    three = ScheduleFreeAdamW({"w": second}, 0.1)
    three.restore({k: t.clone() for k, t in two.state().items()})
    steps(second, three, 3)
    assert torch.equal(whole, second) and torch.equal(one.averages()["w"], three.averages()["w"])
    with pytest.raises(UserError, match="another model"):
        three.restore({"w": torch.zeros(1)})


def test_senseless_settings_are_refused() -> None:
    with pytest.raises(UserError, match="positive rate"):
        ScheduleFreeAdamW({"w": torch.zeros(1)}, lr=0.0)
    with pytest.raises(UserError, match="parameters"):
        ScheduleFreeAdamW({})
