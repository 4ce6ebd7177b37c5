"""Primer's attention as a mixer, and what else the paper changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightformers.errors import UserError
from lightformers.models.language.decoder import Decoder, DecoderConfig
from lightformers.parts.ffn.plain import squared_relu
from lightformers.parts.mixers.attention import Attention
from lightformers.parts.mixers.primer import PrimerAttention
from lightformers.parts.mixers.table import MIXERS, make
from mixer_contract import check_causal, inputs

FORMS = [{}, {"shared": True}, {"kernel": 1, "rotary": False}, {"kernel": 4, "window": 5}, {"head_size": 6}]


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_it_keeps_the_contract_of_mixers(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    check_causal(make(MIXERS, "primer", 16, heads=2, std=0.3, **options), 16)


@pytest.mark.parametrize("shared", [False, True])
def test_it_is_the_equation_of_the_paper(shared: bool) -> None:
    """y_t = w_0 x_t + w_1 x_{t-1} + w_2 x_{t-2} by explicit shifts, then plain attention."""
    torch.manual_seed(0)
    mixer, x = PrimerAttention(16, 2, shared=shared, rotary=False, std=0.3).double(), inputs(16, 11)
    nn.init.normal_(mixer.streams.convolution.weight)
    taps = mixer.streams.convolution.weight[:, 0].flip(1)  # w_0, w_1, w_2
    y = x @ mixer.streams.map.weight.T
    y = sum(taps[:, j] * F.pad(y, (0, 0, j, 0))[:, :11] for j in range(3))
    first, *rest = y.split(16, -1)
    q, k, v = (first @ mixer.query.weight.T, first, rest[0]) if shared else (first, *rest)
    q, k, v = (s.view(2, 11, 2, 8).transpose(1, 2) for s in (q, k, v))
    wanted = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixer(x), wanted @ mixer.out.weight.T)


def test_taps_start_as_in_the_paper() -> None:
    taps = PrimerAttention(16, 2).streams.convolution.weight
    assert taps.shape == (48, 1, 3)
    torch.testing.assert_close(taps[0, 0], torch.tensor([0.5 / 3, 0.5 / 3, 0.5]))


def test_without_a_convolution_it_is_attention() -> None:
    torch.manual_seed(0)
    plain, x = Attention(16, 2).double(), inputs(16, 9)
    mixer = PrimerAttention(16, 2, kernel=1).double()
    with torch.no_grad():
        mixer.streams.convolution.weight.fill_(1)
        mixer.streams.map.weight.copy_(torch.cat([plain.query.weight, plain.key.weight, plain.value.weight]))
        mixer.out.weight.copy_(plain.out.weight)
    torch.testing.assert_close(mixer(x), plain(x))


def test_the_custom_norm_is_layer_norm() -> None:
    """(x - mean) rsqrt(mean(x (x - mean)) + eps): the paper's code computes it so; mean(x (x - mean)) is the variance."""
    x = (inputs(16, 5) + 3).requires_grad_()
    mean = x.mean(-1, keepdim=True)
    wanted = (x - mean) * ((x * (x - mean)).mean(-1, keepdim=True) + 1e-6).rsqrt()
    found = F.layer_norm(x, (16,), eps=1e-6)
    torch.testing.assert_close(found, wanted)
    weight = torch.linspace(-1, 1, 160, dtype=torch.float64).view_as(x)
    a, b = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (found, wanted))
    torch.testing.assert_close(a, b)


def test_squared_relu_and_its_gradient_at_zero() -> None:
    x = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    squared_relu(x).sum().backward()
    assert squared_relu(x).tolist() == [0, 0, 9] and x.grad.tolist() == [0, 0, 6]


def test_planted_induction_in_one_layer_needs_the_convolution() -> None:
    """A head whose keys are the token before finds what followed the last time; without taps it finds the token itself."""
    mixer = PrimerAttention(8, 1, rotary=False)
    with torch.no_grad():
        eye = torch.eye(8)
        mixer.streams.map.weight.copy_(torch.cat([60 * eye, eye, eye]))
        mixer.out.weight.copy_(eye)
        taps = mixer.streams.convolution.weight.zero_()
        taps[:8, 0, 2], taps[8:16, 0, 1], taps[16:, 0, 2] = 1, 1, 1
        text = torch.tensor([3, 5, 1, 0, 6, 2, 4, 7, 0])
        assert mixer(F.one_hot(text, 8).float()[None])[0, -1].argmax() == 6
        taps[8:16, 0, 1], taps[8:16, 0, 2] = 0, 1
        assert mixer(F.one_hot(text, 8).float()[None])[0, -1].argmax() == 0


def test_a_primer_decoder_runs_as_a_whole() -> None:
    """Parameters beside the plain decoder: three taps for each of q, k and v; shared: a convolution less."""
    plain, width = {"kind": "attention", "heads": 2}, 16
    forward = {"kind": "mlp", "hidden": 32, "activation": "squared_relu"}

    def decoder(mixer: dict[str, object], placed: str = "pre") -> Decoder:
        torch.manual_seed(0)
        row = {"mixer": mixer, "ffn": forward, "ffn_norm": placed}
        return Decoder(DecoderConfig(11, width, [row] * 2, norm="layer", norm_eps=1e-6)).eval()

    count = {
        name: sum(p.numel() for p in model.parameters())
        for name, model in {
            "plain": decoder(plain),
            "ez": decoder({"kind": "primer", "heads": 2}),
            "primer": decoder({"kind": "primer", "heads": 2, "shared": True}, "post-output"),
        }.items()
    }
    assert count["ez"] - count["plain"] == 2 * 3 * 3 * width
    assert count["primer"] - count["plain"] == 2 * 2 * 3 * width
    model = decoder({"kind": "primer", "heads": 2, "shared": True}, "post-output")
    for n in (1, 2, 3, 7):  # the edge of the kernel
        ids = torch.arange(n)[None] + 1
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False, pad_token_id=0
        )
        whole = model(input_ids=out[:, :-1]).logits.argmax(-1)
        assert torch.equal(whole[:, n - 1 :], out[:, n:])


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="do not divide"):
        PrimerAttention(16, 3)
    with pytest.raises(UserError, match="hold the token itself"):
        PrimerAttention(16, 2, kernel=0)
    with pytest.raises(UserError, match="hold the token itself"):
        PrimerAttention(16, 2, window=0)
