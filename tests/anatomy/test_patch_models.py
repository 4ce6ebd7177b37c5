"""Forecasters of transformers: PatchTST is cut in depth and channels, PatchTSMixer in depth, and both reload."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightformers import anatomy
from lightformers.errors import ModelError


def patch_tst(**more: Any) -> Any:
    from transformers import PatchTSTConfig, PatchTSTForPrediction

    torch.manual_seed(0)
    sizes = {
        "d_model": 16,
        "num_attention_heads": 4,
        "ffn_dim": 32,
        "num_hidden_layers": 3,
        "patch_length": 4,
        "patch_stride": 4,
    }
    fixed = {"context_length": 24, "prediction_length": 6, "num_input_channels": 2, "scaling": "std"}
    return PatchTSTForPrediction(PatchTSTConfig(**sizes, **fixed, **more)).eval()


def patch_mixer(**more: Any) -> Any:
    from transformers import PatchTSMixerConfig, PatchTSMixerForPrediction

    torch.manual_seed(0)
    sizes = {"d_model": 8, "num_layers": 3, "patch_length": 4, "patch_stride": 4, "scaling": "std"}
    fixed = {"context_length": 24, "prediction_length": 6, "num_input_channels": 2}
    return PatchTSMixerForPrediction(PatchTSMixerConfig(**sizes, **fixed, **more)).eval()


def said(model: Any) -> torch.Tensor:
    past = torch.randn(2, 24, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(past_values=past).prediction_outputs


@pytest.mark.parametrize("more", [{}, {"norm_type": "layernorm", "channel_attention": True}])
def test_patchtst_is_found(more: dict[str, Any]) -> None:
    found = anatomy.of(patch_tst(**more))
    assert (found.family, found.width, len(found.blocks)) == ("patchtst", 16, 3)
    block = found.blocks[1]
    assert block.attention is not None and (block.attention.heads, block.attention.head_dim) == (4, 4)
    assert block.feed_forward is not None and block.feed_forward.width == 32
    assert len(block.norms) == (3 if more else 2) and found.head == "head.projection"


@pytest.mark.parametrize("cut", ["blocks", "channels", "heads"])
def test_cuts_of_patchtst(cut: str, tmp_path) -> None:
    """What is cut computes as before with the rest switched off, and reloads where the table says so."""
    model = patch_tst()
    twin = patch_tst()
    if cut == "blocks":
        twin.model.encoder.layers = torch.nn.ModuleList(twin.model.encoder.layers[i] for i in (0, 2))
        anatomy.surgery.keep_blocks(model, [0, 2])
    elif cut == "channels":
        for layer in twin.model.encoder.layers:
            layer.ff[3].weight.data[:, 24:] = 0
        anatomy.surgery.keep_channels(model, {i: range(24) for i in range(3)})
    else:
        for layer in twin.model.encoder.layers:
            layer.self_attn.out_proj.weight.data[:, 8:] = 0
        anatomy.surgery.keep_heads(model, {i: [0, 1] for i in range(3)})
    torch.testing.assert_close(said(model), said(twin), atol=1e-5, rtol=1e-5)
    model.train()
    model(past_values=torch.randn(2, 24, 2)).prediction_outputs.sum().backward()
    model.eval()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    if cut == "heads":
        assert "head size" in anatomy.native_reasons(model)[0]
        return
    assert anatomy.native_reasons(model) == []
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(said(again), said(model))


def test_patchtsmixer_is_cut_in_depth_alone(tmp_path) -> None:
    model, twin = patch_mixer(), patch_mixer()
    found = anatomy.of(model)
    assert (found.family, found.width, len(found.blocks)) == ("patchtsmixer", 8, 3)
    assert len(found.blocks[0].others) == 2 and anatomy.native(model, "blocks") is None
    for cut in ("heads", "channels", "width"):
        assert "patchtsmixer" in str(anatomy.native(model, cut))
    with pytest.raises(ModelError):
        anatomy.surgery.keep_channels(model, {0: range(4)})
    anatomy.surgery.keep_blocks(model, [0, 2])
    mixers = twin.model.encoder.mlp_mixer_encoder
    mixers.mixers = torch.nn.ModuleList(mixers.mixers[i] for i in (0, 2))
    torch.testing.assert_close(said(model), said(twin))
    assert anatomy.native_reasons(model) == [] and model.config.num_layers == 2
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(said(type(model).from_pretrained(tmp_path).eval()), said(model))


def test_what_patchtst_cannot_give_up() -> None:
    model = patch_tst()
    assert anatomy.native(model, "blocks") is None and anatomy.native(model, "channels") is None
    assert "head size" in str(anatomy.native(model, "heads"))
    with pytest.raises(ModelError, match="prediction head"):
        anatomy.surgery.keep_width(model, range(8))


def test_what_a_block_is_given() -> None:
    states = torch.zeros(1)
    assert anatomy.entering((states, 1), {}) is states
    assert anatomy.entering((), {"hidden_states": states}) is anatomy.entering((), {"hidden_state": states})
