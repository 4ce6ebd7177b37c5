"""Pattention: the literal equation, growth that keeps the function, the paper's counts."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from lightformers.bundle import Batch
from lightformers.errors import ModelError, UserError
from lightformers.parts.ffn.pattention import Pattention, feed_forward, pattention
from lightformers.train import Settings, fit
from lightformers.train.growth import grow, grown_state


def literal(x: Tensor, keys: Tensor, values: Tensor, norm: str) -> Tensor:
    """Position by position, token by token."""
    n, rows = len(keys), []

    def gelu(v: float) -> float:
        return 0.5 * v * (1 + math.erf(v / math.sqrt(2)))

    for row in x.reshape(-1, x.shape[-1]):
        s = [float(row @ key) for key in keys]
        if norm == "l2_norm_gelu":
            a = [gelu(v / math.sqrt(sum(w * w for w in s)) * math.sqrt(n)) for v in s]
        elif norm == "gelu_l2_norm":
            b = [gelu(v) for v in s]
            a = [v / math.sqrt(sum(w * w for w in b)) * math.sqrt(n) for v in b]
        else:
            a = [n * math.exp(v) / sum(math.exp(w) for w in s) for v in s]
        rows.append(sum(w * value for w, value in zip(a, values)))
    return torch.stack(rows).view(*x.shape[:-1], -1)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", ["l2_norm_gelu", "gelu_l2_norm", "softmax"])
def test_it_is_the_literal_equation(norm: str) -> None:
    g = torch.Generator().manual_seed(0)
    x, keys, values = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((2, 3, 5), (7, 5), (7, 4)))
    wanted = literal(x, keys, values, norm)
    torch.testing.assert_close(pattention(x, keys, values, norm=norm), wanted, atol=1e-4, rtol=1e-4)  # type: ignore[arg-type]


def test_the_length_of_the_input_does_not_count_and_zeros_stay_zeros() -> None:
    layer = Pattention(6, 4, 9).double()
    with torch.no_grad():
        layer.keys.mul_(50)
    x = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(10 * x), layer(1000 * x), atol=1e-6, rtol=1e-4)
    zero = torch.zeros(2, 6, dtype=torch.float64, requires_grad=True)
    out = layer(zero)
    out.sum().backward()
    assert not out.any() and torch.isfinite(zero.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", ["l2_norm_gelu", "gelu_l2_norm"])
def test_growing_by_zero_keys_keeps_the_function(norm: str) -> None:
    torch.manual_seed(0)
    layer, x = Pattention(6, 4, 9, norm).double(), torch.randn(3, 6, dtype=torch.float64)  # type: ignore[arg-type]
    before, keys = layer(x).detach(), layer.keys.detach().clone()
    layer.grow(20)
    torch.testing.assert_close(layer(x), before)
    assert layer.tokens == 20 and layer.counted.item() == 9 and torch.equal(layer.keys[:9], keys)
    layer(x).square().sum().backward()
    assert layer.keys.grad is not None and layer.keys.grad[9:].abs().sum() > 0  # the new ones learn at once
    layer.grow(30, "random", keep=False)
    assert layer.counted.item() == 30 and layer.keys[20:].any()
    assert (layer(x) - before).abs().max() > 1e-3
    with pytest.raises(UserError, match="cannot grow to"):
        layer.grow(29)


def test_a_grown_layer_is_saved_with_its_scale() -> None:
    layer, twin, x = Pattention(6, 4, 9), Pattention(6, 4, 18), torch.randn(3, 6)
    layer.grow(18)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(x), layer(x))


def test_training_goes_on_with_the_moments_of_the_old_tokens() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Pattention(6, 6, 8), nn.LayerNorm(6))
    x = torch.randn(16, 6)
    batches = [Batch({"x": x}, {})]

    def objective(module: nn.Module, batch: Batch) -> Tensor:
        return (module(batch.inputs["x"]) - x.flip(-1)).square().mean()

    settings = Settings(steps=30, lr=0.01, precision="fp32")
    first = fit(model, batches, objective, settings)
    small = copy.deepcopy(first.state.tensors)
    assert grow(model, 2) == ["0"]
    state = grown_state(first.state, model)
    assert state.step == 0 and state.tensors["exp_avg/0.keys"].shape == (16, 6)
    assert torch.equal(state.tensors["exp_avg_sq/0.values"][:8], small["exp_avg_sq/0.values"])
    assert not state.tensors["exp_avg_sq/0.values"][8:].any()
    assert torch.equal(state.tensors["exp_avg/1.weight"], small["exp_avg/1.weight"])
    second = fit(model, batches, objective, settings, state=state)
    assert second.losses[0] == pytest.approx(float(objective_at(first, x)), rel=0.2)
    assert second.loss < first.loss
    with pytest.raises(ModelError, match="another one"):
        grown_state(first.state, nn.Linear(2, 2))
    with pytest.raises(ModelError, match="no parameter tokens"):
        grow(nn.Linear(2, 2))
    with pytest.raises(UserError, match="factor of at least 1"):
        grow(model, 0.5)


def objective_at(result: object, x: Tensor) -> float:
    return result.losses[-1]  # type: ignore[attr-defined]


def test_growing_beats_starting_anew_with_equal_steps() -> None:
    """Planted: a target that the small model has learnt in part. The large one from scratch has to learn it all."""
    better = 0
    for seed in range(3):
        torch.manual_seed(seed)
        x = torch.randn(256, 12)
        goal = torch.tanh(x @ torch.randn(12, 12))
        batches = [Batch({"x": x}, {})]

        def objective(module: nn.Module, batch: Batch, goal: Tensor = goal) -> Tensor:
            return (module(batch.inputs["x"]) - goal).square().mean()

        small, scratch = Pattention(12, 12, 24), Pattention(12, 12, 48)
        fit(small, batches, objective, Settings(steps=120, lr=0.02, precision="fp32"))
        small.grow(48)
        losses = [
            fit(m, batches, objective, Settings(steps=25, lr=0.02, precision="fp32")).losses[-1]
            for m in (small, scratch)
        ]
        better += losses[0] < losses[1]
    assert better == 3


def test_counts_of_the_paper() -> None:
    """150M: 12 layers of width 768, 768 tokens in each of q, k, v, o, 3072 in the feed-forward, 50304 tied words."""
    with torch.device("meta"):
        layers = [[*(Pattention(768, 768, 768) for _ in range(4)), feed_forward(768)] for _ in range(12)]
    held = sum(p.numel() for layer in layers for part in layer for p in part.parameters())
    assert held == 12 * 16 * 768**2
    assert held + 50304 * 768 + 2 * 768 == 151_881_216


def test_starts() -> None:
    torch.manual_seed(0)
    layer = Pattention(64, 64, 512, layers=4)
    assert layer.keys.std().item() == pytest.approx(0.02, rel=0.05)
    assert layer.values.std().item() == pytest.approx(2 / (4 * 8), rel=0.05)
    half = Pattention(64, 64, 511).bfloat16()
    assert half.counted.item() == 511
    assert half(torch.randn(2, 64).bfloat16()).dtype == torch.bfloat16


def test_bad_input_is_refused() -> None:
    with pytest.raises(UserError, match="at least 1"):
        Pattention(4, 4, 0)
    with pytest.raises(UserError, match="not one of"):
        Pattention(4, 4, 4, "relu")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="init"):
        Pattention(4, 4, 4).grow(5, "ones")  # type: ignore[arg-type]
