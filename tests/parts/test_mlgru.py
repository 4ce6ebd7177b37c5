"""MLGRU as a mixer, and its lower bounds shared over layers."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from lightformers.errors import UserError
from lightformers.models.language.decoder import Decoder, DecoderConfig
from lightformers.parts.bit_linear import BitLinear, pack
from lightformers.parts.mixers.mlgru import MLGRU
from lightformers.parts.mixers.table import MIXERS, make
from mixer_contract import check_causal, inputs


def tower(count: int = 3, width: int = 12, **options: object) -> list[MLGRU]:
    torch.manual_seed(0)
    made = [make(MIXERS, "mlgru", width, layer=i, layers=count, std=0.5, **options) for i in range(count)]
    for i, mixer in enumerate(made):
        torch.nn.init.normal_(mixer.bound)
        mixer.connect([None, *made, None] if i % 2 else made)
    return made


@pytest.mark.parametrize("options", [{}, {"gate": "paper"}, {"ternary": False}], ids=str)
def test_it_keeps_the_contract_of_mixers(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    check_causal(make(MIXERS, "mlgru", 12, std=0.5, **options), 12)


def test_a_layer_of_several_keeps_it_too() -> None:
    made = tower()
    for mixer in made:
        mixer.double()
    check_causal(made[2], 12)


@pytest.mark.parametrize("gate", ["norm", "paper"])
def test_it_is_the_recurrence_of_the_authors(gate: str) -> None:
    made = [m.double() for m in tower(3, gate=gate)]
    mixer, x = made[2], inputs(12, 20)
    shares = torch.stack([m.bound for m in made]).softmax(0)
    low = shares.cumsum(0)[2] - shares[0]
    f = low + (1 - low) * mixer.forget(x).sigmoid()
    i = F.silu(mixer.input(x)) * (1 - f)
    h, rows = torch.zeros(2, 12, dtype=torch.float64), []
    for t in range(20):
        h = f[:, t] * h + i[:, t]
        rows.append(h)
    h, g = torch.stack(rows, 1), mixer.gating(x)
    if gate == "norm":
        out = g * (g.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * mixer.norm.weight * F.silu(h)
    else:
        out = h * g.sigmoid()
    torch.testing.assert_close(mixer(x), mixer.out(out))


def test_bounds_grow_with_depth_from_zero() -> None:
    bounds = torch.stack([m.lower() for m in tower(5)])
    assert (bounds[0] == 0).all() and (bounds.diff(dim=0) > 0).all() and (bounds < 1).all()
    fresh = [MLGRU(4, layer=i, layers=4) for i in range(4)]
    for mixer in fresh:
        mixer.connect(fresh)
    torch.testing.assert_close(fresh[3].lower(), torch.full((4,), 0.75))
    moved = copy.deepcopy(torch.nn.ModuleList(fresh))
    torch.nn.init.constant_(moved[1].bound, 3.0)
    torch.testing.assert_close(fresh[3].lower(), torch.full((4,), 0.75))  # copies have fellows of their own
    assert moved[1].lower()[0] > 0.8


def test_planted_long_memory_needs_a_bound() -> None:
    """A high layer forgets at most 1 - bound per token, whatever its gates say."""
    made = tower(20)
    mixer = made[-1].double()
    for other in made:
        torch.nn.init.zeros_(other.bound)
    x = inputs(12, 20)
    forget, _ = mixer._gates(x, None)
    free, _ = MLGRU(12, std=0.5).double()._gates(x, None)
    assert forget.min() >= 0.95 - 1e-12 > free.min()


def test_parameters_are_those_of_the_paper() -> None:
    with torch.device("meta"):
        mixer = MLGRU(2048, layer=1, layers=24)
    assert sum(p.numel() for p in mixer.parameters()) == 4 * (2048**2 + 2048) + 2048 + 2048


def test_a_decoder_connects_its_layers_and_keeps_them(tmp_path: Path) -> None:
    rows = [{"mixer": {"kind": "mlgru"}, "ffn": {"kind": "bit-swiglu", "hidden": 16}}] * 3
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(11, 12, rows, tie_word_embeddings=False, head="bit")).eval()
    for layer in model.layers:
        torch.nn.init.normal_(layer.mixer.bound)
    ids = torch.arange(9)[None]
    wanted = model(input_ids=ids).logits
    assert model.layers[2].mixer.lower().min() > 0 == model.layers[0].mixer.lower().max()
    model.save_pretrained(tmp_path)
    again = Decoder.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(input_ids=ids).logits, wanted)
    torch.nn.init.constant_(again.layers[1].mixer.bound, 5.0)
    assert again.layers[2].mixer.lower().min() > 0.5  # its own fellows, not those of the first model
    model.train()(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert isinstance(model.head, BitLinear) and len(pack(model)) == 3 * 6 + 1
    torch.testing.assert_close(model.eval()(input_ids=ids).logits, wanted, atol=1e-4, rtol=1e-3)
    with pytest.raises(UserError, match="head is"):
        DecoderConfig(11, 12, rows, head="softmax")


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UserError, match="gate is one of"):
        MLGRU(12, gate="sigmoid")
    with pytest.raises(UserError, match="connect"):
        MLGRU(12, layer=1, layers=2)(inputs(12, 3).float())
