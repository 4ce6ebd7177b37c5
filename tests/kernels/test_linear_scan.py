"""The elementwise recurrence: fast form against the equation, in outputs and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightformers.errors import UserError
from lightformers.kernels import linear_scan as kernel
from lightformers.kernels.linear_scan import linear_scan, reference

LENGTHS = (1, 2, 63, 65, 1000)


def world(
    n: int, width: tuple[int, ...] = (5,), dtype: torch.dtype = torch.float64, batch: int = 2
) -> list[Tensor]:
    """a in (0, 1) with some zeros (documents), b, and a first state."""
    drawn = torch.Generator().manual_seed(n)
    a = torch.rand(batch, n, *width, generator=drawn, dtype=dtype)
    a = a * (torch.rand(batch, n, *width, generator=drawn, dtype=dtype) > 0.05)
    b = torch.randn(batch, n, *width, generator=drawn, dtype=dtype)
    return [a, b, torch.randn(batch, *width, generator=drawn, dtype=dtype)]


def results(fn: object, inputs: list[Tensor], whole: bool = True, last: bool = True) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    h, end = fn(*leaves)  # type: ignore[operator]
    weight = torch.cos(torch.arange(h.numel(), dtype=h.dtype)).view_as(h)
    loss = (h * weight).sum() * whole + end.square().sum() * last
    loss.backward()
    return [h.detach(), end.detach(), *(x.grad for x in leaves if x.grad is not None)]


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("first", [True, False])
def test_equals_the_equation(n: int, dtype: torch.dtype, tolerance: float, first: bool) -> None:
    inputs = world(n, dtype=dtype)[: 3 if first else 2]
    found, wanted = results(linear_scan, inputs), results(reference, inputs)
    assert len(found) == len(inputs) + 2
    for f, w in zip(found, wanted, strict=True):
        assert f.dtype == dtype and (f - w).abs().max() <= tolerance * (1 + w.abs().max())


@pytest.mark.parametrize("enough", [1, 7, 100, 10**9])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 37])
def test_however_many_lanes(enough: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where lanes do not divide the length."""
    monkeypatch.setattr(kernel, "ENOUGH", enough)
    for found, wanted in zip(results(linear_scan, world(n)), results(reference, world(n)), strict=True):
        assert torch.allclose(found, wanted, atol=1e-11)


def test_only_the_last_state_or_only_the_sequence_is_used() -> None:
    for whole, last in ((True, False), (False, True)):
        found, wanted = (results(f, world(40), whole, last) for f in (linear_scan, reference))
        assert all(torch.allclose(f, w, atol=1e-11) for f, w in zip(found, wanted, strict=True))


def test_any_dimensions_behind_time() -> None:
    for width in ((), (1,), (3, 4)):
        found, wanted = results(linear_scan, world(20, width)), results(reference, world(20, width))
        assert all(f.shape == w.shape and torch.allclose(f, w) for f, w in zip(found, wanted, strict=True))


def test_continued_is_the_same_and_zero_forgets() -> None:
    a, b, first = world(50)
    whole, last = linear_scan(a, b, first)
    one, middle = linear_scan(a[:, :20], b[:, :20], first)
    two, end = linear_scan(a[:, 20:], b[:, 20:], middle)
    assert torch.allclose(torch.cat([one, two], 1), whole) and torch.allclose(end, last)
    a[:, 30] = 0
    assert torch.allclose(
        linear_scan(a, b, first)[0][:, 30:], linear_scan(a[:, 30:], b[:, 30:])[0], atol=1e-12
    )


def test_half_precision_is_computed_in_float32() -> None:
    a, b, _ = world(64, dtype=torch.float32)
    h, _ = linear_scan(a.bfloat16(), b.bfloat16())
    assert h.dtype == torch.float32
    assert torch.allclose(h, reference(a.bfloat16().float(), b.bfloat16().float())[0], atol=1e-5)


def test_shapes_that_do_not_fit_are_refused() -> None:
    a, b, first = world(10)
    with pytest.raises(UserError, match="one shape"):
        linear_scan(a[:, :9], b)
    with pytest.raises(UserError, match="one shape"):
        linear_scan(a[:, :0], b[:, :0])
    with pytest.raises(UserError, match="state"):
        linear_scan(a, b, first[:1])
