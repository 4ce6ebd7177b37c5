"""Structures beyond the config: saved as differences from a closed table, rebuilt exactly."""

from __future__ import annotations

import json

import pytest
import torch
from export_models import BERT, WORDS, examples_of, make, outputs
from safetensors.torch import load_file
from torch import nn

from lightformers import manifest
from lightformers.errors import ModelError
from lightformers.parts.int8 import Int8Linear
from lightformers.parts.low_rank import LowRankLinear


def narrow(model, index, width):
    """Cut the feed-forward of one bert block to `width` channels, keeping their weights."""
    block = model.get_submodule("bert" if hasattr(model, "bert") else "").encoder.layer[index]
    up, down = block.intermediate.dense, block.output.dense
    block.intermediate.dense = nn.Linear(up.in_features, width)
    block.output.dense = nn.Linear(width, down.out_features)
    with torch.no_grad():
        block.intermediate.dense.weight.copy_(up.weight[:width])
        block.output.dense.weight.copy_(down.weight[:, :width])


def fewer_heads(model, index, heads):
    attention = model.bert.encoder.layer[index].attention
    size = attention.self.attention_head_size
    for name in ("query", "key", "value"):
        old = getattr(attention.self, name)
        setattr(attention.self, name, nn.Linear(old.in_features, heads * size))
    attention.output.dense = nn.Linear(heads * size, model.config.hidden_size)
    attention.self.num_attention_heads = heads
    attention.self.all_head_size = heads * size


def round_trip(bundle, folder):
    manifest.write_manifest(bundle, folder)
    return manifest.build_from_manifest(folder, bundle.model.config)


def same_outputs(bundle, model, kind):
    again = bundle.copy()
    again.model = model
    return torch.equal(outputs(again, examples_of(kind)), outputs(bundle, examples_of(kind)))


def test_unequal_widths_heads_and_kinds_round_trip_exactly(tmp_path):
    bundle = make("classifier")
    model = bundle.model
    narrow(model, 0, 20)
    narrow(model, 1, 48)
    fewer_heads(model, 1, 3)
    model.bert.encoder.layer[0].attention.output.dense = LowRankLinear(32, 32, 5)
    query = model.bert.encoder.layer[0].attention.self.query
    model.bert.encoder.layer[0].attention.self.query = Int8Linear.from_weight(query.weight, query.bias)
    again = round_trip(bundle, tmp_path)
    assert same_outputs(bundle, again, "classifier")
    held = json.loads((tmp_path / "lightformers.json").read_text())
    kinds = {what["kind"] for what in held["modules"].values()}
    assert kinds == {"linear", "low_rank", "int8_linear"}
    assert held["attributes"] == {
        "bert.encoder.layer.1.attention.self": {"num_attention_heads": 3, "all_head_size": 24}
    }
    assert not [n for n, t in [*again.named_parameters(), *again.named_buffers()] if t.is_meta]
    assert {n: t.dtype for n, t in again.state_dict().items()} == {
        n: t.dtype for n, t in model.state_dict().items()
    }


def test_the_rebuilt_model_trains(tmp_path):
    bundle = make("classifier")
    narrow(bundle.model, 0, 20)
    again = round_trip(bundle, tmp_path)
    again(**bundle.collate(examples_of("classifier")).inputs).logits.sum().backward()
    assert all(p.grad is not None for p in again.parameters())


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path):
    bundle = make("gpt2")
    bundle.model.transformer.h[0].mlp.c_proj = LowRankLinear(64, 32, 3)
    again = round_trip(bundle, tmp_path)
    assert same_outputs(bundle, again, "gpt2")
    assert again.lm_head.weight is again.transformer.wte.weight
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


def test_conv1d_of_another_shape(tmp_path):
    from transformers.pytorch_utils import Conv1D

    bundle = make("gpt2")
    bundle.model.transformer.h[1].mlp.c_fc = Conv1D(40, 32)
    bundle.model.transformer.h[1].mlp.c_proj = Conv1D(32, 40)
    assert same_outputs(bundle, round_trip(bundle, tmp_path), "gpt2")


def test_families_whose_file_keys_differ_from_memory_keys(tmp_path):
    bundle = make("vit")
    path = next(
        n for n, m in bundle.model.named_modules() if isinstance(m, nn.Linear) and m.out_features == 64
    )
    owner, _, leaf = path.rpartition(".")
    setattr(bundle.model.get_submodule(owner), leaf, LowRankLinear(32, 64, 4))
    assert same_outputs(bundle, round_trip(bundle, tmp_path), "vit")


def test_a_missing_pooler_stays_missing(tmp_path):
    from transformers import BertConfig, BertModel

    bundle = make("embedder")
    torch.manual_seed(0)
    bundle.model = BertModel(BertConfig(vocab_size=len(WORDS) + 5, **BERT), add_pooling_layer=False).eval()
    narrow(bundle.model, 0, 10)
    again = round_trip(bundle, tmp_path)
    assert again.pooler is None
    assert same_outputs(bundle, again, "embedder")


def test_a_buffer_that_the_config_does_not_give_is_carried(tmp_path):
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=20, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48
    )
    torch.manual_seed(0)
    model = LlamaModel(config).eval()
    assert not manifest.structure(model)
    model.rotary_emb.inv_freq = model.rotary_emb.inv_freq * 0.5
    assert manifest.structure(model).buffers == ["rotary_emb.inv_freq"]
    manifest.write_manifest(model, tmp_path)
    again = manifest.build_from_manifest(tmp_path, config)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).last_hidden_state, model(ids).last_hidden_state)


@pytest.mark.parametrize("kind", ["classifier", "embedder", "gpt2", "vit"])
def test_an_untouched_model_has_no_differences(kind):
    bundle = make(kind)
    for module in bundle.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # says nothing about inference
    assert not manifest.structure(bundle.model)


def test_reasons_name_the_layer_and_both_sizes():
    bundle = make("classifier")
    narrow(bundle.model, 1, 20)
    first = manifest.structure(bundle.model).reasons()[0]
    assert first.startswith("bert.encoder.layer.1.intermediate.dense is linear")
    assert "out=20" in first and "out=64" in first


def test_a_module_outside_the_table_is_refused_before_anything_is_written(tmp_path):
    bundle = make("classifier")
    bundle.model.classifier = nn.Bilinear(32, 32, 3)
    with pytest.raises(ModelError, match="classifier is a Bilinear"):
        manifest.write_manifest(bundle, tmp_path)
    assert not list(tmp_path.iterdir())


def edited(folder, change):
    path = folder / "lightformers.json"
    held = json.loads(path.read_text())
    change(held)
    path.write_text(json.dumps(held))


def saved(folder):
    bundle = make("classifier")
    narrow(bundle.model, 0, 20)
    manifest.write_manifest(bundle, folder)
    return bundle.model.config


def test_an_unknown_kind_says_which_version_is_needed(tmp_path):
    config = saved(tmp_path)
    path = "bert.encoder.layer.0.intermediate.dense"

    def change(held):
        held["modules"][path] = {"kind": "hologram"}
        held["needs"] = "0.7.0"

    edited(tmp_path, change)
    with pytest.raises(ModelError, match=r"uses hologram.*lightformers >= 0\.7\.0"):
        manifest.build_from_manifest(tmp_path, config)


def test_a_newer_format_says_which_version_is_needed(tmp_path):
    config = saved(tmp_path)
    edited(tmp_path, lambda held: held.update(format=2, needs="0.9.0"))
    with pytest.raises(ModelError, match=r"format 2.*lightformers >= 0\.9\.0"):
        manifest.build_from_manifest(tmp_path, config)


@pytest.mark.parametrize(
    "change",
    [
        lambda held: held["attributes"].update({"bert": {"__class__": 3}}),
        lambda held: held["attributes"].update({"bert": {"forward": 3}}),
        lambda held: held["attributes"].update(
            {"bert.encoder.layer.0.attention.self": {"num_attention_heads": "4"}}
        ),
        lambda held: held["modules"].update({"bert.nowhere": {"kind": "identity"}}),
        lambda held: held["modules"]["bert.encoder.layer.0.intermediate.dense"].update(out=21),
        lambda held: held.update({"class": "os"}),
        lambda held: held.update({"class": "BertTokenizer"}),
        lambda held: held.pop("tied"),
    ],
)
def test_a_damaged_or_malicious_manifest_is_refused(change, tmp_path):
    config = saved(tmp_path)
    edited(tmp_path, change)
    with pytest.raises(ModelError):
        manifest.build_from_manifest(tmp_path, config)
