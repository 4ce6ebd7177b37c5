"""What the decoder skeleton refuses: configurations that make no sense, inputs that cannot run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoder_world import ATTENTION, LAYER, made, tokens
from torch import nn

from lightformers.errors import UserError
from lightformers.models.language.decoder import Decoder, DecoderConfig


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"layers": [{"mixer": {"kind": "mambo"}}]}, "layer 0: 'mambo' is not one of"),
        ({"layers": [{"mixer": {"kind": "attention", "headz": 2}}]}, "no option headz; it takes heads"),
        ({"layers": [{"mixer": {"kind": "attention"}}]}, "attention needs heads"),
        (
            {"layers": [LAYER, {"mixer": {**ATTENTION, "causal": False}}]},
            "layer 1: attention looks both ways",
        ),
        ({"layers": [{"mixer": {"kind": "fourier", "heads": 2}}]}, "looks both ways"),
        ({"layers": [{"mixer": None, "ffn": None}]}, "neither a mixer nor"),
        ({"layers": [{**LAYER, "mlp": {}}]}, "a layer has mixer, ffn"),
        ({"layers": [{**LAYER, "ffn_norm": "after"}]}, "ffn_norm is one of pre"),
        ({"layers": [{"mixer": "attention"}]}, "a mixer is a mapping"),
        ({"layers": [{"mixer": {**ATTENTION, "heads": nn.Linear}}]}, "plain mappings"),
        ({"norm": "batch"}, "norm is one of rms, layer"),
        ({"positions": "rotary"}, "positions are 'learned' or None"),
        ({"positions": "learned"}, "need max_position_embeddings"),
        ({"vocab_size": 0}, "nothing to model"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        DecoderConfig(**fields)


def test_what_cannot_run_is_refused() -> None:
    with pytest.raises(UserError, match="names no layers"):
        Decoder(DecoderConfig())
    with pytest.raises(UserError, match="layer 0: 3 heads"):
        Decoder(DecoderConfig(40, 16, [{"mixer": {"kind": "attention", "heads": 3}}]))
    model, ids = made(max_position_embeddings=8), tokens(2, 6)
    with pytest.raises(UserError, match="9 tokens are more than the 8"):
        model(input_ids=tokens(1, 9))
    with pytest.raises(UserError, match="9 tokens are more than the 8"):
        model.generate(input_ids=ids, max_new_tokens=5, pad_token_id=0)
    packed = torch.tensor([[1] * 5 + [2] * 7])
    assert model(input_ids=tokens(1, 12), attention_mask=packed).logits.shape[1] == 12  # each is short enough
    with pytest.raises(UserError, match="pack without use_cache"):
        model(input_ids=ids, attention_mask=torch.tensor([[1, 1, 2, 2, 2, 2]] * 2), use_cache=True)
    with pytest.raises(UserError, match="attention_mask is"):
        model(input_ids=ids, attention_mask=torch.ones(2, 5))
    with pytest.raises(UserError, match="padded on the left"):
        model.generate(input_ids=ids, attention_mask=torch.tensor([[1, 1, 1, 1, 0, 0]] * 2), pad_token_id=0)
    states = made(layers=[LAYER])(input_ids=ids, use_cache=True).past_key_values
    with pytest.raises(UserError, match="hold 1 layers of 2 texts"):
        model(input_ids=ids, past_key_values=states)
    with pytest.raises(UserError, match="hold 2 layers of 3 texts"):
        model(input_ids=ids, past_key_values=model.begin(3))
    with pytest.raises(UserError, match="cut back"):
        states.crop(-1)
    with pytest.raises(UserError, match="leave position_ids out"):
        model(input_ids=ids, position_ids=torch.arange(6)[None])
    with pytest.raises(UserError, match="one of them"):
        model()
    with pytest.raises(ValueError, match="not supported with stateful"):
        model.generate(input_ids=ids[:1], assistant_model=made(), max_new_tokens=2, pad_token_id=0)
