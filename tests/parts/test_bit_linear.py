"""Ternary linear layers, their packed form, and the feed-forward made of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightformers.errors import UserError
from lightformers.parts.bit_linear import (
    BitLinear,
    PackedBitLinear,
    pack,
    ternarize,
    ternary_codes,
    token_codes,
)
from lightformers.parts.ffn.bit_swiglu import BitSwiGLU
from lightformers.parts.ffn.table import FEED_FORWARDS
from lightformers.parts.mixers.table import make


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(bias: bool = False) -> BitLinear:
    made = BitLinear(24, 10, bias)
    with torch.no_grad():
        made.weight.copy_(drawn(10, 24, seed=1))
        made.norm.weight.copy_(1 + 0.3 * drawn(24, seed=2))
        if made.bias is not None:
            made.bias.copy_(drawn(10, seed=3))
    return made


@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_product_of_whole_numbers(bias: bool) -> None:
    """y recomputed from 8-bit codes of the token and ternary codes of the weight, in integers."""
    made, x = layer(bias), drawn(3, 7, 24)
    normed = F.rms_norm(x, (24,), made.norm.weight, 1e-8)
    codes, scale = token_codes(normed)
    levels, step = ternary_codes(made.weight)
    assert codes.abs().max() == 127 and set(levels.unique().tolist()) == {-1.0, 0.0, 1.0}
    whole = codes.to(torch.int32).unsqueeze(-2).mul(levels.to(torch.int32)).sum(-1)
    wanted = whole / scale / step + (0 if made.bias is None else made.bias)
    torch.testing.assert_close(made(x), wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(made.packed()(x), wanted, atol=1e-4, rtol=1e-4)


def test_scales_are_those_of_the_paper() -> None:
    x = torch.tensor([[0.5, -2.0, 1.0], [0.0, 0.0, 0.0]])
    codes, scale = token_codes(x)
    assert codes.tolist() == [[32, -127, 64], [0, 0, 0]]  # 31.75 and 63.5: halves go to the even number
    assert scale[0, 0] == 63.5 and torch.isfinite(scale).all()
    levels, step = ternary_codes(torch.tensor([[0.1, -0.9], [1.0, -2.0]]))
    assert step.item() == 1.0 and levels.tolist() == [[0, -1], [1, -1]]


def test_a_token_of_zeros_gives_zero_and_no_nan() -> None:
    made, x = layer(), torch.zeros(2, 24, requires_grad=True)
    made(x).sum().backward()
    assert (made(x) == 0).all() and torch.isfinite(x.grad).all()


def test_what_a_token_gives_depends_on_no_other() -> None:
    made, x = layer(), drawn(4, 24)
    torch.testing.assert_close(made(torch.cat([x, 100 * drawn(4, 24, seed=5)]))[:4], made(x))


def test_gradients_pass_the_roundings() -> None:
    made, x = layer(), drawn(5, 24).requires_grad_()
    made(x).square().sum().backward()
    normed = F.rms_norm(x, (24,), made.norm.weight, 1e-8).detach()
    codes, scale = token_codes(normed)
    levels, step = ternary_codes(made.weight)
    y = codes / scale @ (levels / step).T
    torch.testing.assert_close(made.weight.grad, (2 * y).T @ (codes / scale))
    plain = x.detach().requires_grad_()
    (F.rms_norm(plain, (24,), made.norm.weight, 1e-8) * (2 * y @ (levels / step)).detach()).sum().backward()
    torch.testing.assert_close(x.grad, plain.grad)


def test_a_weight_that_changes_is_rounded_anew() -> None:
    """Without gradients the rounded weight is kept; training, loading and conversion are noticed."""
    made, other, x = layer().eval(), BitLinear(24, 10).eval(), drawn(5, 24)
    with torch.no_grad():
        assert torch.equal(made(x), made(x)) and made._kept is not None
        made.weight.mul_(-1)
        torch.testing.assert_close(made(x), -layer()(x))
        made.load_state_dict(other.state_dict())
        torch.testing.assert_close(made(x), other(x))
        assert made.double()(x.double()).dtype == torch.float64
    made = made.float()
    optimizer = torch.optim.AdamW(made.parameters(), lr=0.1, fused=True)
    made(x).square().sum().backward()
    with torch.no_grad():
        made(x)
    optimizer.step()
    fresh = BitLinear(24, 10)
    fresh.load_state_dict(made.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(made(x), fresh(x))
    with torch.inference_mode():
        torch.testing.assert_close(made(x), fresh(x))
        assert BitLinear(24, 10)(x).shape == (5, 10)


def test_without_rounding_it_is_a_norm_and_a_product() -> None:
    made = BitLinear(24, 10, ternary=False)
    x = drawn(5, 24)
    torch.testing.assert_close(made(x), F.rms_norm(x, (24,), None, 1e-8) @ made.weight.T)
    with pytest.raises(UserError, match="no codes to pack"):
        made.packed()


def test_planted_ternary_weights_survive_rounding() -> None:
    """Weights that are ternary at any scale are lost nothing by; gaussian ones are."""
    kept, lost = BitLinear(64, 32), BitLinear(64, 32)
    with torch.no_grad():
        truth = torch.randint(0, 2, (32, 64), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
        kept.weight.copy_(0.07 * truth)
        lost.weight.copy_(0.07 * drawn(32, 64))
    x = drawn(100, 64, seed=3)

    def error(made: BitLinear) -> float:
        exact = F.rms_norm(x, (64,), None, 1e-8) @ made.weight.T
        return float(((made(x) - exact).norm() / exact.norm()).detach())

    assert error(kept) < 0.01 and error(lost) > 0.3


def test_packed_weights_take_less_than_two_bits_and_are_saved() -> None:
    made = BitLinear(200, 100)
    packed = made.packed()
    assert packed.bytes == 100 * 40 + 4  # five weights to a byte, one float32 scale
    other = PackedBitLinear(200, 100)
    other.load_state_dict(packed.state_dict())
    x = drawn(3, 200)
    torch.testing.assert_close(other(x), packed(x))
    assert packed.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_it_takes_the_place_of_linear_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Sequential(nn.Linear(6, 4, bias=False)))
    weights = [model[0].weight, model[0].bias, model[2][0].weight]
    assert ternarize(model, skip=["2.*"]) == ["0"] and isinstance(model[2][0], nn.Linear)
    assert ternarize(model) == ["2.0"]
    assert model[0].weight is weights[0] and model[0].bias is weights[1] and model[2][0].weight is weights[2]
    x = drawn(3, 8)
    before = model(x)
    assert pack(model) == ["0", "2.0"]
    torch.testing.assert_close(model(x), before, atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match="no linear layer"):
        ternarize(model)
    with pytest.raises(UserError, match="no BitLinear"):
        pack(nn.Sequential(nn.ReLU()))


def test_the_feed_forward_has_the_sizes_of_the_paper() -> None:
    with torch.device("meta"):
        made = make(FEED_FORWARDS, "bit-swiglu", 2048)
    assert isinstance(made, BitSwiGLU) and made.down.in_features == 5632
    assert sum(p.numel() for p in made.parameters()) == 3 * 2048 * 5632 + 2048 + 5632
    small = BitSwiGLU(16, 24, ternary=False)
    x = drawn(2, 5, 16)
    gate, up = small.gate(x).split(24, -1)
    torch.testing.assert_close(small(x), small.down(F.silu(gate) * up))


def test_bad_input_is_refused() -> None:
    with pytest.raises(UserError, match="takes 24"):
        layer()(drawn(2, 23))
    broken = layer()
    broken.weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        broken.packed()
    with pytest.raises(UserError, match="at least 1"):
        BitSwiGLU(16, 0)
