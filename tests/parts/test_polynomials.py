"""PolyReLU and PolyNorm: the literal sums with their gradients, the identities, the counts, fewer units for a curve."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.ffn import polycom
from lightformers.parts.ffn.polycom import PolyNorm, PolyReLU, poly_norm, poly_relu, ungated


def literal_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    order = len(weight)
    return sum(weight[order - k] * torch.relu(x) ** k for k in range(1, order + 1)) + bias  # type: ignore[return-value]


def literal_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    order, out = len(weight), bias
    for k in range(1, order + 1):
        power = x**k
        out = out + weight[order - k] * power / (power.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return out


PAIRS = {"relu": (poly_relu, literal_relu), "norm": (poly_norm, literal_norm)}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(7,), (1, 3), (2, 5, 63)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_outputs_and_gradients_are_the_literal_ones(
    name: str, order: int, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    fast, literal = PAIRS[name]
    g = torch.Generator().manual_seed(order)
    x = torch.randn(shape, generator=g, dtype=torch.float64)
    a, b = (
        torch.randn(order, generator=g, dtype=torch.float64),
        torch.randn(1, generator=g, dtype=torch.float64),
    )
    along = torch.randn(shape, generator=g, dtype=torch.float64)
    x, a, b, along = (t.to(dtype).double() for t in (x, a, b, along))
    found, wanted = [], []
    for function, kind, into in ((fast, dtype, found), (literal, torch.float64, wanted)):
        leaves = [t.to(kind, copy=True).requires_grad_() for t in (x, a, b)]
        out = function(*leaves)
        (out * along.to(kind)).sum().backward()
        into += [out.detach(), *(leaf.grad for leaf in leaves)]
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    for mine, theirs in zip(found, wanted):
        within = tolerance * (1 + float(theirs.abs().max()))
        torch.testing.assert_close(mine.double(), theirs, atol=within, rtol=0)


@pytest.mark.parametrize("name", PAIRS)
def test_pieces_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than fit one piece, gradients that are not contiguous."""
    fast, literal = PAIRS[name]
    x = torch.randn(3, 50, 7, dtype=torch.float64).mT.requires_grad_()
    a, b = (
        torch.randn(3, dtype=torch.float64, requires_grad=True),
        torch.zeros(1, dtype=torch.float64, requires_grad=True),
    )
    along = torch.randn(3, 50, 7, dtype=torch.float64).mT
    monkeypatch.setattr(polycom, "_PIECE", 170)
    for mine, theirs in zip(*(torch.autograd.grad(f(x, a, b), (x, a, b), along) for f in (fast, literal))):
        torch.testing.assert_close(mine, theirs)
    empty = torch.zeros(0, 5, dtype=torch.float64)
    assert fast(empty, a, b).shape == (0, 5)


def test_a_polynomial_can_be_the_relu() -> None:
    act, x = PolyReLU(), torch.randn(4, 9)
    with torch.no_grad():
        act.weight.copy_(torch.tensor([0.0, 0.0, 1.0]))
    torch.testing.assert_close(act(x), x.relu())


def test_polynorm_forgets_the_scale_and_survives_a_row_of_zeros() -> None:
    act, x = PolyNorm(), torch.randn(3, 33, dtype=torch.float64)
    torch.testing.assert_close(act(10 * x), act(100 * x), atol=1e-6, rtol=1e-6)
    with torch.no_grad():
        act.bias.fill_(0.25)
    zero = torch.zeros(2, 5, requires_grad=True)
    out = act(zero)
    out.sum().backward()
    assert (out == 0.25).all() and torch.isfinite(zero.grad).all()  # type: ignore[arg-type]


def test_they_start_at_a_third_and_run_in_half_precision() -> None:
    for act in (PolyReLU(), PolyNorm()):
        assert act.weight.tolist() == pytest.approx([1 / 3] * 3) and act.bias.item() == 0
        assert sum(p.numel() for p in act.parameters()) == 4 and all(p.ndim < 2 for p in act.parameters())
        x = torch.randn(2, 64).bfloat16().requires_grad_()
        out = act(x)
        out.float().sum().backward()
        assert out.dtype == x.grad.dtype == torch.bfloat16  # type: ignore[union-attr]
        torch.testing.assert_close(out.float(), act(x.detach().float()), atol=0.05, rtol=0.01)


def test_the_papers_feed_forward_has_as_many_weights_as_the_gated_one() -> None:
    assert ungated(5504) == 8256
    assert 2 * 2048 * 8256 == 3 * 2048 * 5504 == 33_816_576
    with pytest.raises(UserError, match="even"):
        ungated(7)


@pytest.mark.parametrize("units", [16, 32])
def test_as_many_units_fit_a_curve_better(units: int) -> None:
    """The same random first layer, the best second one: cubes of ReLU against ReLU on a smooth target."""
    x = torch.linspace(-1, 1, 200, dtype=torch.float64)[:, None]
    goal = torch.sin(3 * x) * torch.exp(x)
    errors: dict[str, list[float]] = {"relu": [], "poly": []}
    for seed in range(10):
        g = torch.Generator().manual_seed(seed)
        w, b = (torch.randn(1, units, generator=g, dtype=torch.float64) for _ in range(2))
        z = x @ w + b
        act = PolyReLU().double()
        for name, features in (("relu", z.relu()), ("poly", act(z).detach())):
            features = torch.cat([features, torch.ones_like(x)], 1)
            best = torch.linalg.lstsq(features, goal, driver="gelsd").solution
            errors[name].append(float((features @ best - goal).square().mean()))
    better = sum(p < 0.5 * r for p, r in zip(errors["poly"], errors["relu"]))
    assert better >= 8


def test_bad_input_is_refused() -> None:
    with pytest.raises(UserError, match="at least 1"):
        PolyNorm(0)
    with pytest.raises(UserError, match="floating-point"):
        PolyReLU()(torch.arange(4))
    with pytest.raises(UserError, match="one vector"):
        poly_relu(torch.randn(3), torch.ones(2, 2), torch.zeros(1))
    with pytest.warns(UserWarning, match="sign"):
        PolyNorm()(torch.randn(3, 1))


def test_weights_decay_nowhere() -> None:
    from lightformers.train.optim import adamw

    layer = nn.Sequential(nn.Linear(4, 4), PolyNorm())
    groups = adamw(dict(layer.named_parameters()), 1e-3, 0.1, (0.9, 0.95)).param_groups
    assert sum(p.numel() for p in groups[0]["params"]) == 16 and groups[1]["weight_decay"] == 0
