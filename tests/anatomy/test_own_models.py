"""Our own decoder and encoder: found, cut and reloaded like any other family, and unequal layers reload too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import zoo
from typer.testing import CliRunner

from lightformers import anatomy
from lightformers.cli.inspect import inspect
from lightformers.errors import ModelError
from lightformers.models.language.decoder import Decoder, DecoderConfig
from lightformers.models.language.encoder import EncoderConfig, EncoderForSequenceClassification

ATTENTION = {"kind": "attention", "heads": 4, "kv_heads": 2, "qk_norm": True}
PLAIN = {"mixer": ATTENTION, "ffn": {"kind": "swiglu", "hidden": 48}}
SMALL = {
    "mixer": {"kind": "attention", "heads": 4, "bias": True, "window": 4},
    "ffn": {"kind": "mlp", "hidden": 48},
}
MAMBA = {"mixer": {"kind": "mamba", "state": 4}, "ffn": {"kind": "mlp", "hidden": 40}}
ALONE = {"mixer": {"kind": "mamba2", "state": 8, "head": 16}}
BASE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {"layers": [PLAIN, SMALL, PLAIN]},
    "untied": {
        "layers": [SMALL] * 3, "tie_word_embeddings": False, "positions": "learned", "max_position_embeddings": 20, "norm": "layer",
    },
    "hybrid": {"layers": [MAMBA, PLAIN, ALONE, {"ffn": SMALL["ffn"]}]},
    "recurrent": {"layers": [ALONE] * 3},
}  # fmt: skip
CUTS = ("blocks", "heads", "channels", "vocabulary")
WORDS = [*range(6), *range(20, 50)]


def make(name: str) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(**BASE, **MODELS[name])).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def cut_it(model: Any, cut: str) -> bool:
    """Whether there was something to cut."""
    found = anatomy.of(model)
    heads = {i: [2, 3] for i, b in enumerate(found.blocks) if b.attention}
    channels = {i: range(1, 33) for i, b in enumerate(found.blocks) if b.feed_forward}
    if cut == "blocks":
        anatomy.surgery.keep_blocks(model, range(1, len(found.blocks)))
    elif cut == "heads":
        anatomy.surgery.keep_heads(model, heads)
    elif cut == "channels":
        anatomy.surgery.keep_channels(model, channels)
    else:
        anatomy.surgery.keep_vocabulary(model, WORDS)
    return bool({"heads": heads, "channels": channels}.get(cut, True))


def same_again(model: Any) -> None:
    given = zoo.inputs(model)
    with torch.no_grad():
        assert zoo.difference(zoo.outputs(model, given), zoo.outputs(zoo.reloaded(model), given)) < 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_every_cut_reloads(name: str) -> None:
    for cut in CUTS:
        model = make(name)
        size = model.num_parameters()
        assert anatomy.native_reasons(model) == [] and anatomy.native(model, cut) is None
        assert cut_it(model, cut) == (model.num_parameters() < size)
        assert anatomy.native_reasons(model) == []
        assert not zoo.without_gradient(model)
        same_again(model)


def test_cuts_are_written_into_the_layers_of_the_config() -> None:
    model = make("hybrid")
    config = model.config
    found = anatomy.of(model)
    assert [bool(b.attention) for b in found.blocks] == [False, True, False, False]
    assert [b.feed_forward.width if b.feed_forward else 0 for b in found.blocks] == [40, 48, 0, 48]
    assert [b.others for b in found.blocks] == [("layers.0.mixer",), (), ("layers.2.mixer",), ()]
    anatomy.surgery.keep_heads(model, {1: [0, 1]})
    anatomy.surgery.keep_channels(model, {0: range(5), 3: range(7)})
    anatomy.surgery.keep_blocks(model, [0, 1, 3])
    assert [row.get("mixer", {}).get("kind") for row in config.layers] == ["mamba", "attention", None]
    assert {k: config.layers[1]["mixer"][k] for k in ("heads", "kv_heads", "head_size")} == {
        "heads": 2, "kv_heads": 1, "head_size": 8,
    }  # fmt: skip
    assert [row["ffn"]["hidden"] for row in config.layers] == [5, 48, 7] and config.num_hidden_layers == 3
    assert [(layer.index, layer.layers, layer.row) for layer in model.layers] == [
        (i, 3, row) for i, row in enumerate(config.layers)
    ]
    assert anatomy.native_reasons(model) == []  # unequal layers, and yet it reloads
    same_again(model)
    ids = torch.randint(3, 60, (2, 5))
    text = model.generate(ids, max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert torch.equal(text[:, 5], model(input_ids=ids).logits[:, -1].argmax(-1))


def test_heads_and_channels_are_what_they_are_called() -> None:
    """Zeroing what a head or channel gives equals removing it; a layer without effect can go."""
    model, cut, shorter = make("plain"), make("plain"), make("plain")
    given = zoo.inputs(model)
    with torch.no_grad():
        before = zoo.outputs(model, given)
        for layer in model.layers:
            layer.mixer.out.weight[:, :16] = 0
            layer.ffn.down.weight[:, 1::2] = 0
        zeroed = zoo.outputs(model, given)
        assert zoo.difference(before, zeroed) > 1e-3
        anatomy.surgery.keep_heads(cut, {i: [2, 3] for i in range(3)})
        anatomy.surgery.keep_channels(cut, {i: range(0, 48, 2) for i in range(3)})
        assert zoo.difference(zeroed, zoo.outputs(cut, given)) < 1e-5
        for path in ("mixer.out", "ffn.down"):
            for p in shorter.layers[1].get_submodule(path).parameters():
                p.zero_()
        before = zoo.outputs(shorter, given)
        anatomy.surgery.keep_blocks(shorter, [0, 2])
        assert zoo.difference(before, zoo.outputs(shorter, given)) < 1e-6


def test_an_encoder_is_cut_too() -> None:
    torch.manual_seed(0)
    layers = [SMALL, {**SMALL, "ffn": {"kind": "swiglu", "hidden": 48}}, SMALL]
    config = EncoderConfig(64, 32, layers, max_position_embeddings=20, num_labels=3, pad_token_id=0)
    for cut in CUTS:
        model = EncoderForSequenceClassification(config=EncoderConfig.from_dict(config.to_dict())).eval()
        assert cut_it(model, cut) and anatomy.native_reasons(model) == []
        same_again(model)


def test_refusals_leave_the_model_whole() -> None:
    model = make("hybrid")
    rows = json.dumps(model.config.layers)
    for call, text in (
        (lambda: anatomy.surgery.keep_heads(model, {0: [0]}), "no attention"),
        (lambda: anatomy.surgery.keep_channels(model, {2: [0]}), "no feed-forward"),
        (lambda: anatomy.surgery.keep_width(model, range(16)), "names sizes of its own"),
        (lambda: anatomy.surgery.keep_heads(model, {1: [0, 1, 2]}), "whole groups"),
    ):
        with pytest.raises(ModelError, match=text):
            call()
    assert json.dumps(model.config.layers) == rows and anatomy.native_reasons(model) == []


def test_inspect_prints_it(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(inspect)
    model = make("hybrid")
    model.save_pretrained(tmp_path)
    result = CliRunner().invoke(app, [str(tmp_path)])
    assert result.exception is None, result.exception
    said = " ".join(result.output.split())  # lines are broken where a terminal ends
    for text in (
        "Decoder (decoder)",
        "4 heads of 8 over 2",
        "Mamba, not cut inside",
        "Mamba2",
        "48 channels",
    ):
        assert text in said, text
    assert "reload with lightformers imported" in said
    facts = json.loads(CliRunner().invoke(app, [str(tmp_path), "--json", "--length", "9"]).output)
    assert facts["parameters"] == model.num_parameters() and facts["native_reasons"] == []
    assert facts["native"]["width"] is not None and all(b["flops"] > 0 for b in facts["stacks"][0]["blocks"])
