"""Dropout from bits: shares and factors, independence, gradients, seeds; and the MLP that drops before GELU."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lightformers.errors import UserError
from lightformers.kernels import dropout as kernel
from lightformers.kernels.dropout import dropout, spread
from lightformers.kernels.dropped_mlp import dropped_mlp, reference


@pytest.mark.parametrize("p", [0.5, 0.7, 0.1, 1 / 3])
def test_shares_and_factors(p: float) -> None:
    """As many stay as should, at every place of a word, and the mean stays what it was."""
    torch.manual_seed(0)
    x = torch.ones(4099, 64)
    y = dropout(x, p)
    deviation = (p * (1 - p)) ** 0.5
    kept = (y != 0).double()
    assert abs(kept.mean() - (1 - p)) < 4 * deviation / x.numel() ** 0.5 + 2**-16
    assert (kept.mean(0) - (1 - p)).abs().max() < 5 * deviation / 4099**0.5
    values = y[y != 0].unique()
    assert len(values) == 1 and abs(values.item() - 1 / (1 - p)) < 1e-4
    assert abs(y.mean() - 1) < 5 * deviation / (1 - p) / x.numel() ** 0.5


def test_neighbours_and_draws_are_independent() -> None:
    torch.manual_seed(0)
    for p in (0.5, 0.7):
        first, second = ((dropout(torch.ones(2**18), p) != 0).double() for _ in range(2))
        for a, b in (
            (first, second),
            (first[1:], first[:-1]),
            (first[8:], first[:-8]),
            (first[64:], first[:-64]),
        ):
            both = torch.stack([a, b])
            assert abs(torch.corrcoef(both)[0, 1]) < 5 / 2**9


def test_seeds_repeat_and_differ() -> None:
    x = torch.ones(1000)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(dropout(x, 0.3))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (7, 3), (65,)])
def test_the_gradient_goes_where_values_went(kind: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.rand(shape).add(1).to(kind).requires_grad_()
    y = dropout(x, 0.5)
    y.sum().backward()
    assert y.dtype == kind and x.grad is not None
    assert torch.equal(x.grad * x.detach(), y.detach())


def test_outside_training_nothing_is_drawn() -> None:
    x = torch.randn(5)
    assert dropout(x, 0.5, training=False) is x and dropout(x, 0.0) is x
    assert dropout(torch.empty(0), 0.5).numel() == 0
    for p in (1.0, -0.1):
        with pytest.raises(UserError, match="probability"):
            dropout(x, p)


def test_every_byte_is_spread_by_its_bits() -> None:
    made = spread(torch.arange(256, dtype=torch.int32), (256, 8), torch.float32, -1.0, 2.0)
    for number in range(256):
        assert made[number].tolist() == [2.0 if number >> i & 1 else -1.0 for i in range(8)]


def weights(k: int, hidden: int, out: int) -> list[torch.Tensor]:
    shapes = ((hidden, k), (hidden,), (out, hidden), (out,))
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 9])
def test_the_fused_mlp_is_the_layers_with_the_same_masks(left: bool, rows: int) -> None:
    """Outputs and gradients, where the masks of the layers are those that the fused form drew."""
    torch.manual_seed(0)
    given = weights(3, 7, 3)
    x = torch.randn(3, rows, dtype=torch.float64) if left else torch.randn(rows, 3, dtype=torch.float64)
    x.requires_grad_()
    torch.manual_seed(5)
    made = dropped_mlp(x, *given, p=0.4, left=left)
    torch.manual_seed(5)
    w1, b1, w2, b2 = given
    flat = x.T if left else x
    masks = []
    for count, shape in (
        (7 * rows, (7, rows) if left else (rows, 7)),
        (3 * rows, (3, rows) if left else (rows, 3)),
    ):
        bits, factor = kernel.draw(count, 0.4)
        mask = spread(bits, shape, torch.float64, 0.0, factor)
        masks.append(mask.T if left else mask)
    wanted = (F.gelu(flat @ w1.T + b1) * masks[0]) @ w2.T + b2
    wanted = wanted * masks[1]
    wanted = wanted.T if left else wanted
    assert (masks[0] == 0).sum() > 0 or rows == 1
    assert torch.allclose(made, wanted, atol=1e-12)
    towards = torch.randn_like(made)
    ours, theirs = (torch.autograd.grad(y, [x, *given], towards, retain_graph=True) for y in (made, wanted))
    for a, b in zip(ours, theirs):
        assert torch.allclose(a, b, atol=1e-12)


def test_dropping_before_gelu_is_exact() -> None:
    off = torch.tensor([-1e9 + 3.0, -1e9], requires_grad=True)
    y = F.gelu(off)
    y.sum().backward()
    assert off.grad is not None and torch.equal(y.abs() + off.grad.abs(), torch.zeros(2))


def test_without_dropout_and_while_recorded_it_is_the_reference() -> None:
    torch.manual_seed(0)
    given = [w.float() for w in weights(4, 8, 4)]
    x = torch.randn(6, 4)
    assert torch.equal(dropped_mlp(x, *given), reference(x, *given))
    assert torch.allclose(dropped_mlp(x.T, *given, left=True).T, reference(x, *given), atol=1e-5)


@pytest.mark.parametrize("left", [False, True])
def test_blocks_are_the_reference(left: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16 rows and one that is smaller; in half precision too."""
    monkeypatch.setattr("lightformers.kernels.dropped_mlp._BLOCK", 16 * 8)
    torch.manual_seed(0)
    given = [w.detach() for w in weights(4, 8, 4)]
    x = torch.randn(4, 37, dtype=torch.float64) if left else torch.randn(37, 4, dtype=torch.float64)
    assert torch.allclose(dropped_mlp(x, *given, left=left), reference(x, *given, left=left), atol=1e-12)
    halves = [t.float() for t in (x, *given)]
    with torch.autocast("cpu", torch.bfloat16):
        made = dropped_mlp(*halves, left=left)
        wanted = reference(*halves, left=left)
    assert made.dtype == torch.bfloat16 and (made - wanted).norm() < 0.02 * wanted.norm()


def test_under_autocast_it_computes_in_bfloat16() -> None:
    torch.manual_seed(0)
    given = [w.detach().float().requires_grad_() for w in weights(16, 32, 16)]
    x = torch.randn(64, 16, requires_grad=True)
    torch.manual_seed(1)
    exact = dropped_mlp(x, *given, p=0.5)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        made = dropped_mlp(x, *given, p=0.5)
    made.float().square().sum().backward()
    assert made.dtype == torch.bfloat16 and x.grad is not None and x.grad.dtype == torch.float32
    assert (made.float() - exact).norm() < 0.02 * exact.norm()
