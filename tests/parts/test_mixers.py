"""Sequence mixers: equal to maintained implementations and literal sums, blind to padding, every parameter used."""

from __future__ import annotations

import math

import pytest
import scipy.fft
import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts import mixers
from lightformers.parts.mixers import places
from lightformers.parts.mixers.mixed import MixedAttention
from lightformers.parts.mixers.multiplicative import MultiplicativeAttention
from lightformers.parts.mixers.spectral import SpectralMixer, transform

MADE = {
    "sdp": lambda relative: MultiplicativeAttention(16, 4, False, relative),
    "wma": lambda relative: MultiplicativeAttention(16, 4, True, relative),
    "dft": lambda relative: SpectralMixer(16, 4, "dft", relative),
    "dct": lambda relative: SpectralMixer(16, 2, "dct", relative),
    "conv": lambda relative: MixedAttention(16, 4, 5, relative),
}


@pytest.mark.parametrize("kind", ["dft", "dct"])
@pytest.mark.parametrize("shape", [(2, 7, 6), (1, 1, 8), (3, 12, 5)])
def test_transforms_are_scipys(kind: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    wanted = (
        torch.fft.fft2(x).real.numpy() if kind == "dft" else scipy.fft.dctn(x.numpy(), type=2, axes=(1, 2))
    )
    torch.testing.assert_close(transform(x, kind), torch.from_numpy(wanted), atol=1e-9, rtol=1e-9)


def test_a_long_transform_keeps_its_digits() -> None:
    """Products of frequencies and places go beyond what float32 holds."""
    x = torch.randn(1, 4001, 2)
    wanted = torch.fft.fft2(x.double()).real
    assert float((transform(x, "dft").double() - wanted).abs().max() / wanted.abs().max()) < 1e-4


@pytest.mark.parametrize("relative", [0, 12])
@pytest.mark.parametrize("name", MADE)
def test_padding_on_either_side_changes_nothing(name: str, relative: int) -> None:
    torch.manual_seed(0)
    mixer = MADE[name](relative).eval()
    x, noise = torch.randn(2, 6, 16), 100 * torch.randn(2, 3, 16)
    there, gone = torch.ones(2, 6), torch.zeros(2, 3)
    alone = mixer(x)
    torch.testing.assert_close(mixer(x, there), alone, atol=2e-5, rtol=1e-4)
    right = mixer(torch.cat([x, noise], 1), torch.cat([there, gone], 1))[:, :6]
    left = mixer(torch.cat([noise, x], 1), torch.cat([gone, there], 1))[:, 3:]
    torch.testing.assert_close(right, alone, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(left, alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("relative", [0, 12])
@pytest.mark.parametrize("name", MADE)
def test_every_parameter_is_used(name: str, relative: int) -> None:
    mixer = MADE[name](relative)
    mixer(torch.randn(2, 5, 16)).square().sum().backward()
    for key, p in mixer.named_parameters():
        assert p.grad is not None, key
    assert not torch.isnan(mixer(torch.randn(2, 5, 16), torch.zeros(2, 5))).any()
    assert mixer.bfloat16()(torch.randn(1, 5, 16).bfloat16(), torch.ones(1, 5)).dtype == torch.bfloat16


def literal(mixer: MultiplicativeAttention, x: Tensor) -> Tensor:
    size, out = 16 // mixer.heads, []
    q, k, v = mixer.query(x), mixer.key(x), mixer.value(x)
    for h in range(mixer.heads):
        part = slice(h * size, (h + 1) * size)
        rows = []
        for i in range(len(x)):
            scores = []
            for j in range(len(x)):
                left = q[i, part] if mixer.weight is None else q[i, part] @ mixer.weight
                score = left @ k[j, part]
                if mixer.positions is not None:
                    score = (
                        score + q[i, part] @ mixer.positions.table.weight[i - j + mixer.positions.length - 1]
                    )
                scores.append(score / math.sqrt(size))
            rows.append(torch.stack(scores).softmax(0) @ v[:, part])
        out.append(torch.stack(rows))
    return mixer.out(torch.cat(out, -1))


@pytest.mark.parametrize("relative", [0, 9])
@pytest.mark.parametrize("name", ["sdp", "wma"])
def test_attention_is_the_literal_one(name: str, relative: int) -> None:
    torch.manual_seed(1)
    mixer = MADE[name](relative)
    x = torch.randn(5, 16)
    torch.testing.assert_close(mixer(x[None])[0], literal(mixer, x), atol=1e-5, rtol=1e-4)
    if mixer.weight is not None:
        assert float(mixer.weight.detach().abs().max()) <= 0.1
        with torch.no_grad():
            mixer.weight.copy_(torch.eye(4))
        plain = MADE["sdp"](relative)
        plain.load_state_dict({k: v for k, v in mixer.state_dict().items() if k != "weight"})
        torch.testing.assert_close(mixer(x[None]), plain(x[None]), atol=1e-5, rtol=1e-4)


def test_linear_mixing_without_positions_is_a_mean() -> None:
    mixer, x = SpectralMixer(8, 2, "dct"), torch.randn(2, 4, 8)
    wanted = mixer.out(mixer.value(x).mean(1, keepdim=True) + transform(x, "dct"))
    torch.testing.assert_close(mixer(x), wanted, atol=1e-5, rtol=1e-4)


def test_mixed_attention_is_that_of_transformers() -> None:
    from transformers import ConvBertConfig
    from transformers.models.convbert.modeling_convbert import ConvBertSelfAttention

    torch.manual_seed(0)
    config = ConvBertConfig(hidden_size=16, num_attention_heads=4, conv_kernel_size=5, head_ratio=2)
    theirs, mine = ConvBertSelfAttention(config).eval(), MixedAttention(16, 4, 5)
    names = {
        "query": mine.query, "key": mine.key, "value": mine.value, "conv_kernel_layer": mine.kernels,
        "conv_out_layer": mine.values, "key_conv_attn_layer.depthwise": mine.near,
    }  # fmt: skip
    state: dict[str, Tensor] = {
        f"{name}.{k}": p for name, part in names.items() for k, p in part.named_parameters()
    }
    state["key_conv_attn_layer.pointwise.weight"] = mine.far.weight
    state["key_conv_attn_layer.bias"] = mine.far.bias[:, None]
    theirs.load_state_dict(state)
    mine.out = nn.Identity()
    x = torch.randn(2, 7, 16)
    torch.testing.assert_close(mine(x), theirs(x)[0], atol=1e-5, rtol=1e-4)


def test_dynamic_kernels_see_the_text_around_alone() -> None:
    mixer = MixedAttention(16, 4, 3).eval()
    mixer.out = nn.Identity()
    x = torch.randn(1, 9, 16)
    changed = x.clone()
    changed[:, 6] += 1
    moved = (mixer(x) - mixer(changed)).abs().amax(0)[:, 8:].amax(-1) > 1e-6
    assert moved.tolist() == [i in (5, 6, 7) for i in range(9)]


def test_bad_shapes_are_refused() -> None:
    for make in (lambda: MultiplicativeAttention(10, 4), lambda: SpectralMixer(10, 4)):
        with pytest.raises(UserError, match="do not divide"):
            make()
    with pytest.raises(UserError, match="even"):
        MixedAttention(16, 1)
    with pytest.raises(UserError, match="odd"):
        MixedAttention(16, 2, 4)
    with pytest.raises(UserError, match="dft, dct"):
        SpectralMixer(16, 2, "fft")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="more than the 4"):
        MultiplicativeAttention(16, 2, relative=4)(torch.randn(1, 5, 16))


def test_places_are_the_same_where_they_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.tensor([[0, 1, 1, 2, 2, 2], [1, 1, 0, 0, 1, 1], [3, 3, 3, 1, 1, 0]])
    plain = places(mask)
    monkeypatch.setattr(mixers, "recorded", lambda: True)
    assert torch.equal(places(mask), plain)
