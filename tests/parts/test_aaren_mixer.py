"""Aaren as a mixer."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightformers.errors import UserError
from lightformers.parts.mixers.aaren import Aaren
from lightformers.parts.mixers.table import MIXERS, make
from mixer_contract import check_causal, inputs


@pytest.mark.parametrize("block", [32, 4])
def test_it_keeps_the_contract_of_mixers(block: int) -> None:
    torch.manual_seed(0)
    check_causal(make(MIXERS, "aaren", 12, heads=3, std=0.5, block=block), 12)


@pytest.mark.parametrize("bias", [False, True])
def test_it_is_attention_with_one_query(bias: bool) -> None:
    torch.manual_seed(0)
    mixer, x = Aaren(12, 3, bias, std=0.5).double(), inputs(12, 40)
    if bias:
        for layer in (mixer.query, mixer.key, mixer.value, mixer.out):
            nn.init.normal_(layer.bias)
    q = mixer.query(mixer.token).expand(2, 40, 12)
    q, k, v = (s.unflatten(-1, (3, 4)).transpose(1, 2) for s in (q, mixer.key(x), mixer.value(x)))
    wanted = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixer(x), mixer.out(wanted))


def test_it_has_one_vector_more_than_a_transformer() -> None:
    """The paper compares 3,152,384 with 3,152,896: one layer of torch's encoder with biases, width 512."""
    with torch.device("meta"):
        plain = nn.TransformerEncoderLayer(512, 8, 2048)
        mixer = Aaren(512, 8, bias=True)
    whole = sum(p.numel() for p in plain.parameters())
    attention = sum(p.numel() for p in plain.self_attn.parameters())
    assert whole == 3_152_384
    assert whole - attention + sum(p.numel() for p in mixer.parameters()) == 3_152_896


def test_planted_mean_of_marked_tokens() -> None:
    """What it can do: the mean of what bears a mark. Built by hand, and exact where the mark is strong."""
    mixer = Aaren(4, 1)
    with torch.no_grad():
        mixer.token.copy_(torch.tensor([1.0, 0, 0, 0]))
        mixer.query.weight.copy_(40 * torch.eye(4))
        for layer in (mixer.key, mixer.value, mixer.out):
            layer.weight.copy_(torch.eye(4))
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 50, 4, generator=g)
    x[..., 0] = (torch.arange(50) % 5 == 2).float()
    y = mixer(x)[0]
    for i in (4, 12, 49):
        marked = x[0, : i + 1][x[0, : i + 1, 0] == 1]
        torch.testing.assert_close(y[i], marked.mean(0), atol=1e-4, rtol=1e-4)


def test_a_stream_costs_the_same_at_every_token() -> None:
    torch.manual_seed(0)
    mixer = Aaren(12, 3)
    state = mixer.begin(1, "cpu", torch.bfloat16)
    sizes = set()
    for t in range(40):
        _, state = mixer.step(inputs(12, 1, 1, t)[:, 0].float(), state)
        sizes.add(sum(held.numel() for held in state.values()))
    assert sizes == {3 * (2 + 4)} and all(held.dtype == torch.float32 for held in state.values())


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="do not divide"):
        Aaren(12, 5)
    with pytest.raises(UserError, match="at least 2"):
        Aaren(12, 3, block=1)
