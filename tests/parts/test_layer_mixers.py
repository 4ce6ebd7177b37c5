"""Tokenformer's, MemoryFormer's and the quantizable attention as mixers: the contract, and what they are with others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightformers.errors import UserError
from lightformers.models.language.decoder import Decoder, DecoderConfig
from lightformers.parts.attention.quantizable import QuantizableAttention
from lightformers.parts.mixers.attention import Attention
from lightformers.parts.mixers.memory import MemoryAttention
from lightformers.parts.mixers.quantizable import QuantizableMixer
from lightformers.parts.mixers.tokenformer import TokenformerAttention
from lightformers.train.growth import grow
from mixer_contract import check_causal, inputs


def test_tokenformer_keeps_the_contract_of_mixers() -> None:
    torch.manual_seed(0)
    check_causal(TokenformerAttention(16, 2, tokens=24), 16)
    check_causal(TokenformerAttention(16, 2, window=3), 16)


def test_memoryformer_keeps_the_contract_of_mixers() -> None:
    torch.manual_seed(0)
    check_causal(MemoryAttention(16, 2, bits=4), 16)


@pytest.mark.parametrize("options", [{"low": -0.02}, {"gate": "linear"}, {"gate": "all-heads", "opening": 0.25}, {"window": 3, "rotary": False}])  # fmt: skip
def test_the_quantizable_keeps_the_contract_of_mixers(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    check_causal(QuantizableMixer(16, 2, std=0.3, **options), 16)


@pytest.mark.parametrize("window", [None, 4])
def test_without_clipping_and_gates_it_is_the_plain_attention(window: int | None) -> None:
    torch.manual_seed(0)
    mine = QuantizableMixer(16, 2, window=window, std=0.3).double()
    plain = Attention(16, 2, window=window).double()
    plain.load_state_dict(mine.state_dict())
    x = inputs(16, 19)
    torch.testing.assert_close(mine(x), plain(x))


def test_with_them_it_is_the_part_it_is_made_of() -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"low": -0.03, "gate": "mlp", "opening": 0.25}
    mine = QuantizableMixer(16, 2, rotary=False, std=0.5, **options).double()
    part = QuantizableAttention(16, 2, causal=True, bias=False, **options).double()
    names = {"query": "q", "key": "k", "value": "v", "out": "o"}
    part.load_state_dict(
        {
            f"{names.get(k.split('.')[0], k.split('.')[0])}.{k.split('.', 1)[1]}": v
            for k, v in mine.state_dict().items()
        }
    )
    x = inputs(16, 33)
    torch.testing.assert_close(mine(x), part(x))
    assert (part.probabilities(x)[..., -1, :] == 0).any()  # something is clipped


def test_pattention_attends_as_attention_over_its_projections() -> None:
    torch.manual_seed(0)
    mixer, x = TokenformerAttention(16, 2).double(), inputs(16, 9)
    inner = mixer.attention
    q, k, v = (getattr(inner, name)(x) for name in ("query", "key", "value"))
    assert inner.turned == 2  # a quarter of a head of 8
    assert sum(p.numel() for p in mixer.parameters()) == 8 * 16**2
    assert q.shape == k.shape == v.shape == x.shape and q.ne(k).any()


def test_a_grown_decoder_says_the_same_and_is_saved(tmp_path: Any) -> None:
    torch.manual_seed(0)
    layer = {"mixer": {"kind": "tokenformer", "heads": 2}, "ffn": {"kind": "pattention", "tokens": 40}}
    model, ids = Decoder(DecoderConfig(20, 16, [layer] * 2)).eval(), torch.arange(10)[None]
    before = model(input_ids=ids).logits
    grow(model, 1.5)
    torch.testing.assert_close(model(input_ids=ids).logits, before)
    assert model.config.layers[1]["ffn"]["tokens"] == 60 and model.config.layers[0]["mixer"]["tokens"] == 24
    model.save_pretrained(tmp_path)
    again = Decoder.from_pretrained(tmp_path).eval()
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_bad_input_is_refused() -> None:
    with pytest.raises(UserError, match="do not divide"):
        QuantizableMixer(10, 4)
    with pytest.raises(UserError, match="not one of"):
        QuantizableMixer(8, 2, gate="open")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="low <= 0"):
        QuantizableMixer(8, 2, low=0.1)
    with pytest.raises(UserError, match="do not divide"):
        MemoryAttention(16, 2, bits=5)
