"""DeltaNet and linear attention as mixers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightformers.errors import UserError
from lightformers.kernels.delta_rule import delta_rule, reference
from lightformers.kernels.linear_attention import linear_attention
from lightformers.models.language.decoder import Decoder, DecoderConfig
from lightformers.models.patterns import stack
from lightformers.parts.mixers.deltanet import DeltaNet
from lightformers.parts.mixers.linear_attention import LinearAttention
from lightformers.parts.mixers.table import MIXERS, make
from mixer_contract import check_causal, inputs

FORMS = [
    {},
    {"gate": True, "chunk": 7},
    {"negative": True, "convolution": 0},
    {"expand_key": 0.5, "expand_value": 2.0},
]


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_deltanet_keeps_the_contract_of_mixers(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    check_causal(make(MIXERS, "deltanet", 16, heads=2, std=0.2, **options), 16)


@pytest.mark.parametrize("options", [{}, {"convolution": 0, "chunk": 5}, {"features": "elu"}], ids=str)
def test_linear_attention_keeps_the_contract_of_mixers(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    check_causal(make(MIXERS, "linear-attention", 16, heads=2, std=0.2, **options), 16)


@pytest.mark.parametrize("gate", [False, True])
def test_deltanet_is_the_layer_of_the_authors(gate: bool) -> None:
    """Written out: three maps, three convolutions, SiLU, unit length, the recurrence, a norm per head."""
    torch.manual_seed(0)
    mixer, x = DeltaNet(16, 2, gate=gate, std=0.3).double(), inputs(16, 21)
    maps = mixer.streams.map.weight.split(16)
    taps = mixer.streams.convolution.weight.split(16)
    q, k, v = (
        F.silu(F.conv1d((x @ w.T).mT, t, padding=3, groups=16)[..., :21].mT) for w, t in zip(maps, taps)
    )
    q, k, v = (s.view(2, 21, 2, 8).transpose(1, 2) for s in (q, k, v))
    q, k = (s * (s.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for s in (q, k))
    beta = (x @ mixer.beta.weight.T).sigmoid().transpose(1, 2)
    o, _ = reference(q, k, v, beta)
    o = o * (o.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * mixer.norm.weight
    o = o.transpose(1, 2).reshape(2, 21, 16)
    if mixer.gate is not None:
        o = o * F.silu(x @ mixer.gate.weight.T)
    torch.testing.assert_close(mixer(x), o @ mixer.out.weight.T)


def test_elu_features_are_the_weighted_mean_of_katharopoulos() -> None:
    torch.manual_seed(0)
    mixer, x = LinearAttention(16, 2, "elu", convolution=0, std=0.3).double(), inputs(16, 9)
    q, k, v = (s.view(2, 9, 2, 8).transpose(1, 2) for s in (x @ mixer.streams.map.weight.T).split(16, -1))
    weights = ((F.elu(q) + 1) @ (F.elu(k) + 1).mT).tril()
    wanted = (weights / weights.sum(-1, keepdim=True) @ v).transpose(1, 2).reshape(2, 9, 16)
    torch.testing.assert_close(mixer(x), wanted @ mixer.out.weight.T)


def test_parameters_are_those_of_the_paper() -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in DeltaNet(2048, 16).parameters())
    assert count == 4 * 2048**2 + 2048 * 16 + 3 * 2048 * 4 + 128


def test_planted_map_is_found_by_correcting_and_not_by_adding() -> None:
    """Values are a linear map of keys that overlap: correcting converges to the map, sums of products do not."""
    g = torch.Generator().manual_seed(0)
    k = F.normalize(torch.randn(1, 1, 1500, 8, generator=g) + 0.7, dim=-1)
    truth = torch.randn(8, 4, generator=g)
    v = k @ truth
    _, found = delta_rule(k, k, v, torch.ones(1, 1, 1500))
    _, summed = linear_attention(k, k, v)
    best = (summed[0, 0] * truth).sum() / summed[0, 0].square().sum()  # even at the best scale
    assert (found[0, 0] - truth).abs().max() < 0.01 * truth.abs().max()
    assert (best * summed[0, 0] - truth).norm() > 0.3 * truth.norm()


def test_a_state_that_swaps_needs_a_negative_eigenvalue() -> None:
    """I - 2 k k' exchanges two coordinates: parity in one state, forever."""
    k = torch.tensor([[[[0.5**0.5, -(0.5**0.5)]]]]).expand(1, 1, 101, 2)
    nothing, first = torch.zeros(1, 1, 101, 1), torch.tensor([[[[1.0], [0.0]]]])
    _, swapped = delta_rule(k, k, nothing, torch.full((1, 1, 101), 2.0), first)
    torch.testing.assert_close(swapped[0, 0, :, 0], torch.tensor([0.0, 1.0]), atol=1e-4, rtol=0)


@torch.no_grad()
def test_hybrids_of_the_paper_are_patterns_of_layers() -> None:
    torch.manual_seed(0)
    delta, forward = {"kind": "deltanet", "heads": 2, "chunk": 4}, {"kind": "swiglu", "hidden": 24}
    legend = {
        "D": {"mixer": delta, "ffn": forward},
        "W": {"mixer": {"kind": "attention", "heads": 2, "window": 3}, "ffn": forward},
        "G": {"mixer": {"kind": "attention", "heads": 2, "rotary": False}, "ffn": forward},
    }
    for pattern in ("DWDW", "DGDG"):
        model = Decoder(DecoderConfig(19, 16, stack(pattern, legend))).double().eval()
        ids = torch.arange(9)[None]
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, pad_token_id=0)  # fmt: skip
        assert torch.equal(model(input_ids=out[:, :-1]).logits[:, 8:].argmax(-1), out[:, 9:])


def test_autocast_keeps_the_state_in_float32() -> None:
    torch.manual_seed(0)
    for mixer in (DeltaNet(16, 2), LinearAttention(16, 2), LinearAttention(16, 2, "elu")):
        x = inputs(16, 70).float()
        with torch.autocast("cpu", torch.bfloat16):
            y, state = mixer.extend(x, mixer.begin(2, "cpu", torch.bfloat16))
            one, state = mixer.step(x[:, 0], state)
        assert state["memory"].dtype == torch.float32 and torch.isfinite(one).all()
        wanted = mixer(x)
        assert (y.float() - wanted).norm() < 0.05 * wanted.norm()


def test_half_weights_run(width: int = 16) -> None:
    for mixer in (DeltaNet(width, 2, gate=True), LinearAttention(width, 2)):
        y = mixer.bfloat16()(inputs(width, 5).bfloat16(), torch.tensor([[0, 1, 1, 1, 1]] * 2))
        assert y.dtype == torch.bfloat16 and isinstance(mixer, nn.Module)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="must divide"):
        DeltaNet(16, 3)
    with pytest.raises(UserError, match="at least 1 token"):
        DeltaNet(16, 2, chunk=0)
    with pytest.raises(UserError, match="features are one of"):
        LinearAttention(16, 2, "softmax")
    with pytest.raises(UserError, match="do not divide"):
        LinearAttention(16, 5)
