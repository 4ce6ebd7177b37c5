"""Quantizable transformers: clipped softmax, gated heads, and the measures of outliers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lightformers.compress.quantize.outliers import affine, kurtosis, largest, min_max, outliers
from lightformers.errors import UserError
from lightformers.parts.attention.interface import clipped_softmax
from lightformers.parts.attention.quantizable import HeadGate, QuantizableAttention, stretch

GATES = ("linear", "mlp", "all-heads", "constant")


def literal(x: Tensor, low: float, high: float) -> Tensor:
    e = (x - x.amax(-1, keepdim=True)).exp()
    p = e / e.sum(-1, keepdim=True)
    return torch.tensor([[min(1.0, max(0.0, (high - low) * float(v) + low)) for v in row] for row in p])


def test_clipped_softmax_is_the_literal_one_and_kills_gradients_where_it_clips() -> None:
    torch.manual_seed(0)
    x = (torch.randn(4, 10) * 3).requires_grad_(True)
    found = clipped_softmax(x, -0.05, 1.03)
    torch.testing.assert_close(found, literal(x.detach(), -0.05, 1.03))
    assert bool((found == 0).any())
    # a row in which one key takes all: every probability is clipped, nothing is learnt there
    sure = torch.tensor([[50.0, 0.0, 0.0]], requires_grad=True)
    out = clipped_softmax(sure, -0.1, 1.1)
    assert out.tolist() == [[1, 0, 0]]
    out.pow(2).sum().backward()
    assert sure.grad is not None and not sure.grad.any()
    assert stretch(4, 128) == -0.03125


@pytest.mark.parametrize("causal", [False, True])
def test_plain_settings_are_torchs_attention(causal: bool) -> None:
    torch.manual_seed(0)
    attention, x = QuantizableAttention(16, 4, causal=causal), torch.randn(2, 7, 16)
    mask = torch.ones(2, 7)
    mask[1, 5:] = 0
    q, k, v = (f(x).view(2, 7, 4, 4).transpose(1, 2) for f in (attention.q, attention.k, attention.v))
    seen = mask.bool()[:, None, None, :].expand(2, 1, 7, 7)
    seen = seen & torch.ones(7, 7, dtype=torch.bool).tril() if causal else seen
    wanted = attention.o(nn.functional.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, mask), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gate", ["none", *GATES])
def test_parallel_is_step_by_step_and_causal(gate: str) -> None:
    torch.manual_seed(0)
    attention, x = QuantizableAttention(16, 2, low=-0.05, gate=gate, causal=True), torch.randn(3, 9, 16)  # type: ignore[arg-type]
    whole, state, rows = attention(x), None, []
    for i in range(9):
        row, state = attention.step(x[:, i], state)
        rows.append(row)
    torch.testing.assert_close(torch.stack(rows, 1), whole, rtol=1e-4, atol=1e-5)
    changed = x.clone()
    changed[:, 6:] = 0
    torch.testing.assert_close(attention(changed)[:, :6], whole[:, :6])
    whole.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in attention.parameters())


def test_masked_positions_stay_at_exactly_nothing() -> None:
    torch.manual_seed(0)
    attention, x = QuantizableAttention(8, 2, low=-0.02, high=1.05), torch.randn(2, 6, 8)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]])
    weights = attention.probabilities(x, mask)
    assert not weights[0, :, :, 4:].any() and not weights[1].any()
    changed = x.clone()
    changed[0, 4:] = 100
    torch.testing.assert_close(attention(changed, mask)[0, :4], attention(x, mask)[0, :4])
    assert torch.isfinite(attention(x, mask)).all()


def test_gates_are_the_literal_ones() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 16)
    linear, mlp = HeadGate(16, 2, "linear"), HeadGate(16, 2, "mlp")
    for head in range(2):
        part = x[..., 8 * head : 8 * head + 8]
        logit = part @ linear.last[head, 0] + linear.bias[head]  # type: ignore[index]
        torch.testing.assert_close(linear(x)[:, head, :, 0], torch.sigmoid(logit))
        inner = torch.relu(part @ mlp.first[head].t() + mlp.first_bias[head])  # type: ignore[index]
        logit = inner @ mlp.last[head, 0] + mlp.bias[head]  # type: ignore[index]
        torch.testing.assert_close(mlp(x)[:, head, :, 0], torch.sigmoid(logit))
    every = HeadGate(16, 2, "all-heads")
    torch.testing.assert_close(
        every(x)[..., 0].transpose(1, 2), torch.sigmoid(x @ every.last[0].t() + every.bias)
    )
    for kind in GATES:
        assert HeadGate(16, 2, kind)(x).shape[:2] == (2, 2)
    counts = {k: sum(p.numel() for p in HeadGate(16, 2, k).parameters()) for k in GATES}
    assert counts == {"linear": 2 * 9, "mlp": 2 * (2 * 8 + 2 + 2 + 1), "all-heads": 34, "constant": 2}


def test_gates_start_as_far_open_as_asked() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 30, 16)
    assert float(HeadGate(16, 2, "constant", opening=0.25)(x).mean()) == pytest.approx(0.25)
    plain, gated = (
        QuantizableAttention(16, 2),
        QuantizableAttention(16, 2, gate="linear", opening=0.25, unchanged=True),
    )
    gated.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(gated(x), plain(x), rtol=0.1, atol=0.05)  # fine-tuning starts from the model


def test_a_planted_head_must_do_nothing() -> None:
    """Values that no key is free of: softmax must write one of them, clipping and gates need not."""
    torch.manual_seed(0)
    x = torch.randn(64, 6, 8)

    def left(**fields: object) -> float:
        torch.manual_seed(1)
        attention = QuantizableAttention(8, 1, **fields)  # type: ignore[arg-type]
        attention.v.requires_grad_(False)
        attention.o.requires_grad_(False)
        nn.init.constant_(attention.v.bias, 1.0)
        nn.init.zeros_(attention.o.bias)
        optimizer = torch.optim.Adam([p for p in attention.parameters() if p.requires_grad], 0.05)
        for _ in range(60):
            loss = attention(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(loss)

    plain = left()
    assert left(gate="linear") < 0.1 * plain
    assert left(low=-0.3) < 0.2 * plain  # uniform attention is clipped away


def test_measures() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 2000)
    assert float(kurtosis(x).mean()) == pytest.approx(3, abs=0.1)
    x[:, 7] = 60
    assert float(kurtosis(x).mean()) > 300 and largest(x) == 60
    row = torch.tensor([1.0, 2.0, 4.0, 9.0])
    s2 = sum((v - 4) ** 2 for v in (1, 2, 4, 9)) / 3
    assert float(kurtosis(row)) == pytest.approx(
        sum((v - 4) ** 4 for v in (1, 2, 4, 9)) / 4 / s2**2, rel=1e-5
    )
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    (found,) = outliers(model, [model[0]], [torch.ones(2, 4), torch.zeros(2, 4)])
    a, b = model[0](torch.ones(2, 4)), model[0](torch.zeros(2, 4))
    assert found.largest == pytest.approx((largest(a) + largest(b)) / 2)
    with pytest.raises(UserError, match="batch"):
        outliers(model, [model[0]], [])


def test_affine_rounding() -> None:
    x = torch.tensor([-1.0, 0.0, 0.4, 3.0, 9.0])
    found = affine(x, -1.0, 3.0, 3)
    step = 4 / 7
    assert found[1] == 0
    assert found.tolist() == pytest.approx([-2 * step, 0, step, 5 * step, 5 * step])
    assert float((affine(x, -1, 9, 8) - x).abs().max()) <= 10 / 255
    assert affine(torch.tensor([2.0]), 2.0, 2.0, 8).item() == pytest.approx(2.0, abs=1e-2)


def test_planted_outliers_break_min_max_and_weights_are_put_back() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(32, 16, bias=False), torch.randn(40, 32)
    loud, matching = x.clone(), nn.Linear(32, 16, bias=False)
    loud[:, 3] *= 200
    with torch.no_grad():
        matching.weight.copy_(layer.weight)
        matching.weight[:, 3] = 0

    def error(module: nn.Linear, inputs: Tensor) -> float:
        exact, before = module(inputs), module.weight.detach().clone()
        with min_max(module, [module], [inputs]):
            rounded = module(inputs)
        assert torch.equal(module.weight, before) and not module._forward_hooks
        return float((rounded - exact).norm() / exact.norm())

    quiet = error(layer, x)
    assert quiet < 0.03 and error(matching, loud) > 5 * quiet


def test_bad_settings_are_refused() -> None:
    for fields in ({"low": 0.1}, {"high": 0.9}, {"heads": 3}, {"gate": "cubic"}, {"gate": "linear", "opening": 1.0},
                   {"gate": "linear", "unchanged": True}):  # fmt: skip
        with pytest.raises(UserError):
            QuantizableAttention(16, **{"heads": 2, **fields})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="quarter"):
        HeadGate(12, 2, "mlp")
    for alpha, length in ((-1, 10), (4, 0)):
        with pytest.raises(UserError):
            stretch(alpha, length)
    with pytest.raises(UserError, match="causal"):
        QuantizableAttention(8, 2).step(torch.zeros(1, 8))
    with pytest.raises(UserError, match="bits"):
        affine(torch.zeros(1), 0, 1, 1)
    with pytest.raises(UserError, match="two"):
        kurtosis(torch.zeros(3, 1))
    assert math.isfinite(largest(torch.empty(0)))
