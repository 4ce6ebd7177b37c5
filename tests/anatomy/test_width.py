"""The hidden size is cut and all heads stay: in families whose config can't say so, and in speech encoders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import zoo
from torch import nn

import lightformers as lf
from lightformers import anatomy
from lightformers.errors import ModelError
from lightformers.manifest import build_from_manifest, write_manifest

BOUND = ("bert", "roberta", "distilbert", "electra", "mpnet", "gpt2", "gpt_neox", "opt", "wav2vec2", "hubert")
OWN_SIZE = ("llama", "llama-tied", "qwen3", "phi", "vit")


def narrowed(name: str, width: int) -> nn.Module:
    model = zoo.make(name)
    anatomy.surgery.keep_width(model, range(width), heads="keep")
    return model


@pytest.mark.parametrize("name", BOUND)
def test_all_heads_stay_and_the_model_comes_back(name: str, tmp_path: Path) -> None:
    """20 channels under 4 heads of 8: no config of these families can say it, lightformers.json can."""
    idle = zoo.without_gradient(zoo.make(name))
    model = narrowed(name, 20)
    found = anatomy.of(model)
    assert found.width == 20
    assert all((b.attention.heads, b.attention.head_dim) == (4, 8) for b in found.blocks if b.attention)
    assert zoo.without_gradient(model) <= idle
    assert anatomy.native_reasons(model)
    given = zoo.inputs(model)
    model.config.save_pretrained(tmp_path)
    write_manifest(model, tmp_path)
    again = build_from_manifest(tmp_path, type(model.config).from_pretrained(tmp_path))
    with torch.no_grad():
        assert zoo.difference(zoo.outputs(model, given), zoo.outputs(again, given)) == 0


@pytest.mark.parametrize("name", OWN_SIZE)
def test_families_with_a_head_size_are_cut_as_ever(name: str) -> None:
    model, other = narrowed(name, 24), zoo.make(name)
    anatomy.surgery.keep_width(other, range(24))
    given = zoo.inputs(model)
    with torch.no_grad():
        assert zoo.difference(zoo.outputs(model, given), zoo.outputs(other, given)) == 0
    if name != "vit":  # early releases don't heed its head size
        assert anatomy.native_reasons(model) == []


def test_weights_are_the_first_rows_and_columns() -> None:
    whole, model = zoo.make("bert"), narrowed("bert", 20)
    for name, weight in model.state_dict().items():
        old = whole.state_dict()[name]
        assert torch.equal(weight, old[tuple(slice(n) for n in weight.shape)])
    attention = model.bert.encoder.layer[1].attention
    assert attention.self.query.weight.shape == (32, 20) and attention.self.query.bias.shape == (32,)
    assert attention.output.dense.weight.shape == (20, 32) and attention.output.dense.bias.shape == (20,)


def test_loads_through_the_front_door(tmp_path: Path) -> None:
    """Heads cut to what the width holds in proportion: plain transformers reads it again."""
    model = narrowed("hubert:HubertModel", 20)
    anatomy.surgery.keep_heads(model, {0: range(3), 1: range(2)})
    anatomy.surgery.keep_channels(model, {1: range(11)})
    model.config.save_pretrained(tmp_path)
    write_manifest(model, tmp_path)
    given = zoo.inputs(model)
    with torch.no_grad():
        assert zoo.difference(zoo.outputs(model, given), zoo.outputs(lf.load(tmp_path).model, given)) == 0


@pytest.mark.parametrize("name", BOUND)
def test_heads_and_width_in_proportion_are_native_again(name: str) -> None:
    model = narrowed(name, 16)
    anatomy.surgery.keep_heads(model, {i: range(2) for i in range(3)})
    assert anatomy.native_reasons(model) == []
    given = zoo.inputs(model)
    with torch.no_grad():
        assert zoo.difference(zoo.outputs(model, given), zoo.outputs(zoo.reloaded(model), given)) < 1e-6


def test_the_normed_convolution_is_composed_and_split_again() -> None:
    """First rows, and as many first inputs of each group, of the composed weight; a copy keeps its own norm."""
    whole = zoo.make("hubert")
    weight = whole.hubert.encoder.pos_conv_embed.conv.weight.detach().clone()
    model = narrowed("hubert", 20)
    conv = model.hubert.encoder.pos_conv_embed.conv
    assert conv.weight.shape == (20, 10, 4) and (conv.in_channels, conv.out_channels) == (20, 20)
    assert torch.allclose(conv.weight, weight[:20, :10], atol=1e-6)
    assert {n.rpartition(".")[2] for n, _ in conv.named_parameters()} == {"bias", "original0", "original1"}
    assert torch.equal(whole.hubert.encoder.pos_conv_embed.conv.weight, weight)


def test_equal_places_of_each_group_are_a_restriction() -> None:
    """Idle channels, the same places in both groups of 16, go without a trace in the convolution."""
    whole = zoo.make("hubert").hubert.encoder.pos_conv_embed
    kept = [*range(12), *range(16, 28)]
    states = torch.randn(2, 9, 32)
    states[..., [i for i in range(32) if i not in kept]] = 0
    model = zoo.make("hubert")
    anatomy.surgery.keep_width(model, kept, heads="keep")
    with torch.no_grad():
        small = model.hubert.encoder.pos_conv_embed(states[..., kept])
        assert torch.allclose(small, whole(states)[..., kept], atol=1e-6)


def test_refusals_leave_the_model_whole() -> None:
    for name, keep, text in (
        ("hubert", range(15), "multiple of 2"),
        ("hubert", [0, 1, 2, 16], "same places"),
        ("bert", range(40), "0 to 31"),
        ("gemma", range(16), "root of the hidden size"),
        ("t5", range(16), "share one hidden size"),
    ):
        model = zoo.make(name)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(ModelError, match=text):
            anatomy.surgery.keep_width(model, keep, heads="keep")
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    model = zoo.make("bert")
    model.bert.encoder.layer[0].output.dense = nn.Sequential(nn.Linear(48, 4), nn.Linear(4, 32))
    with pytest.raises(ModelError, match="Cut the width first"):
        anatomy.surgery.keep_width(model, range(16), heads="keep")
