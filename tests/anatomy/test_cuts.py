"""Every cut on every family: forward, backward, save and reload, in plain transformers where the table says so."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
import transformers
import zoo
from torch import nn

from lightformers import anatomy
from lightformers.anatomy.settings import attentions
from lightformers.errors import ModelError

CUTS = ("blocks", "heads", "channels", "width", "vocabulary")
# The facts, by hand: what a uniform cut of each family reloads as in plain transformers.
BOUND = {"bert", "roberta", "distilbert", "electra", "mpnet", "gpt2", "gpt_neox", "opt", "bart", "clip", "wav2vec2",
         "hubert", "whisper"}  # fmt: skip
VITS = {"vit", "deit", "dinov2"}
if "head_dim" not in inspect.getsource(transformers.models.vit.modeling_vit):
    BOUND |= VITS  # early releases don't heed a head size in these configs; the rehearsal notices
NO_WIDTH = {"albert", "gemma", "t5", "bart", "dinov2", "clip", "wav2vec2", "hubert", "whisper"}
NO_WORDS = {"vit", "deit", "dinov2"}
REFUSED = (
    {(f, "width") for f in NO_WIDTH}
    | {("albert", cut) for cut in ("blocks", "heads", "channels")}
    | {(f, "vocabulary") for f in NO_WORDS}
)
VOCABULARY = [0, 1, 2, 3, 4, 5, 40, 7, 9, 11, 12, 14, 63, *range(15, 35)]


def cut_it(model: nn.Module, cut: str) -> None:
    """One uniform cut that fits any family."""
    found = anatomy.of(model)
    if cut == "blocks":
        for stack in found.stacks:
            depth = len(found.stack(stack.name))
            anatomy.surgery.keep_blocks(model, range(1, depth), stack.name if len(found.stacks) > 1 else None)
    elif cut == "heads":
        keeps = [
            {i: [2, 3] for i, b in enumerate(found.blocks) if getattr(b, name)}
            for name in ("attention", "cross_attention")
        ]
        anatomy.surgery.keep_heads(model, *keeps)
    elif cut == "channels":
        width = 32  # dinov2: a multiple of the hidden size
        anatomy.surgery.keep_channels(model, {i: range(1, width + 1) for i in range(len(found.blocks))})
    elif cut == "width":
        anatomy.surgery.keep_width(model, range(0, 32, 2))
    else:
        anatomy.surgery.keep_vocabulary(model, VOCABULARY)


CASES = [(name, cut) for name in zoo.MODELS for cut in CUTS]


def family(name: str) -> str:
    return name.split(":")[0].split("-")[0]


@pytest.mark.parametrize(("name", "cut"), CASES, ids=[f"{n}-{c}" for n, c in CASES])
def test_cut(name: str, cut: str) -> None:
    model = zoo.make(name)
    if (family(name), cut) in REFUSED:
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ModelError) as error:
            cut_it(model, cut)
        assert len(str(error.value)) > 40
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        assert anatomy.native(model, cut) is not None
        return
    idle = zoo.without_gradient(zoo.make(name))
    size = model.num_parameters()
    cut_it(model, cut)
    assert model.num_parameters() < size
    assert {n for n in zoo.without_gradient(model) if "relative_attention_bias" not in n} <= idle
    given = zoo.inputs(model, vocabulary=len(VOCABULARY) if cut == "vocabulary" else None)
    if cut == "heads" and family(name) in BOUND:
        assert anatomy.native_reasons(model)
        assert "head" in anatomy.native_reasons(model)[0]
        assert anatomy.native(zoo.make(name), cut) is not None
        assert anatomy.of(model).native.heads is not None or family(name) in VITS
        return
    assert anatomy.native_reasons(model) == []
    assert anatomy.native(zoo.make(name), cut) is None
    with torch.no_grad():
        assert zoo.difference(zoo.outputs(model, given), zoo.outputs(zoo.reloaded(model), given)) < 1e-6


OTHERS = [(name, cut) for name in zoo.OTHERS for cut in CUTS if (family(name), cut) not in REFUSED]


@pytest.mark.parametrize("name", list(zoo.OTHERS))
def test_other_heads_and_towers(name: str) -> None:
    """All cuts that a family allows, one after another, on its other classes; then save and reload."""
    model = zoo.make(name)
    cuts = [c for c in ("width", "blocks", "heads", "channels") if (family(name), c) not in REFUSED]
    if family(name) in BOUND:
        cuts.remove("heads")
    has_words = anatomy.of(model).embeddings is not None
    idle = zoo.without_gradient(zoo.make(name))
    for cut in (*cuts, *(["vocabulary"] if has_words else [])):
        cut_it(model, cut)
    given = zoo.inputs(model, vocabulary=len(VOCABULARY) if has_words else None)
    assert {n for n in zoo.without_gradient(model) if "relative_attention_bias" not in n} <= idle
    if "swiglu" in name:
        assert "multiples" in anatomy.native_reasons(model)[0]
        return
    assert anatomy.native_reasons(model) == []
    with torch.no_grad():
        assert zoo.difference(zoo.outputs(model, given), zoo.outputs(zoo.reloaded(model), given)) < 1e-6


@pytest.mark.parametrize("name", ["bert", "gpt2", "gpt_neox", "llama", "t5", "vit", "whisper"])
def test_unequal_cuts_run_and_say_why_they_do_not_reload(name: str) -> None:
    model = zoo.make(name)
    anatomy.surgery.keep_channels(model, {0: range(7), 1: range(20)})
    assert "one number for all" in anatomy.native_reasons(model)[0]
    if name != "t5":
        anatomy.surgery.keep_heads(model, {1: [0, 1]})
        assert len(anatomy.native_reasons(model)) == 2
    assert zoo.without_gradient(model) <= zoo.without_gradient(zoo.make(name))
    again = anatomy.of(model)
    assert [b.feed_forward.width for b in again.blocks[:2] if b.feed_forward] == [7, 20]
    # equal again, and the config can say it
    anatomy.surgery.keep_channels(model, {i: range(7) for i in range(len(again.blocks))})
    if name != "t5":
        keep = {i: [0, 1] for i, b in enumerate(again.blocks) if i != 1}
        cross = {i: [0, 1] for i, b in enumerate(again.blocks) if b.cross_attention}
        anatomy.surgery.keep_heads(model, keep, cross)
    if name in ("llama", "vit", "t5") and name not in BOUND:
        assert anatomy.native_reasons(model) == []


@pytest.mark.parametrize("name", ["bert", "mpnet", "gpt2", "llama-tied", "t5", "clip", "whisper", "wav2vec2"])
def test_vocabulary_rows_keep_their_logits(name: str) -> None:
    """With inputs of kept tokens, renumbered, the logits of kept rows are the same numbers."""
    model = zoo.make(name)
    whole = copy.deepcopy(model)
    if name == "whisper":
        model.generation_config.suppress_tokens = [40, 50, 63]
    anatomy.surgery.keep_vocabulary(model, VOCABULARY)
    given = zoo.inputs(model, vocabulary=len(VOCABULARY))
    old = {
        key: torch.tensor(VOCABULARY)[value] if key.endswith("input_ids") else value
        for key, value in given.items()
    }
    with torch.no_grad():
        new_outputs, old_outputs = zoo.outputs(model, given), zoo.outputs(whole, old)
    cut = [o[..., VOCABULARY] if o.shape[-1] == zoo.VOCABULARY else o for o in old_outputs]
    assert zoo.difference(new_outputs, cut) < 1e-6
    config = getattr(model.config, "text_config", model.config)
    assert config.vocab_size == len(VOCABULARY)
    found = anatomy.of(model)
    assert found.tied == anatomy.of(whole).tied
    if name == "whisper":
        assert model.generation_config.suppress_tokens == [6, 12]


def test_blocks_without_effect_can_go_exactly() -> None:
    """Dropping a block whose outputs are zero changes nothing (pre-norm models); indices and lists are renumbered."""
    for name in ("gpt2:GPT2LMHeadModel-inverse", "llama", "qwen2", "qwen3"):
        model = zoo.make(name)
        block = anatomy.of(model).blocks[1]
        with torch.no_grad():
            for path in (block.attention.o, block.feed_forward.down):
                for parameter in anatomy.get(model, path).parameters():
                    parameter.zero_()
        given = zoo.inputs(model)
        before = zoo.outputs(model, given)
        types = getattr(model.config, "layer_types", None)
        anatomy.surgery.keep_blocks(model, [0, 2])
        assert zoo.difference(before, zoo.outputs(model, given)) < 1e-6
        assert zoo.difference(before, zoo.outputs(zoo.reloaded(model), given)) < 1e-6
        if types is not None:
            assert model.config.layer_types == [types[0], types[2]]
        found = [m.layer_idx for m in model.modules() if hasattr(m, "layer_idx")]
        assert found == [0, 1]
        if name in ("llama", "qwen2"):
            with torch.no_grad():
                text = model.generate(given["input_ids"], max_new_tokens=3, do_sample=False)
            assert text.shape == (2, zoo.LENGTH + 3)


def test_t5_keeps_its_position_bias() -> None:
    """The bias of block 0 serves the stack, and goes to the first block that stays."""
    model = zoo.make("t5")
    bias = model.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    anatomy.surgery.keep_blocks(model, [1, 2], "decoder")
    attention = model.decoder.block[0].layer[0].SelfAttention
    assert attention.relative_attention_bias.weight is bias
    assert (model.config.num_layers, model.config.num_decoder_layers, model.decoder.config.num_layers) == (
        2,
        2,
        2,
    )
    assert not {n for n in zoo.without_gradient(model) if "decoder" in n}
    assert bias.grad is not None and bias.grad.abs().sum() > 0
    with pytest.raises(ModelError, match="same heads"):
        anatomy.surgery.keep_heads(model, {0: [0, 1]})


def test_whisper_alignment_heads_follow() -> None:
    model = zoo.make("whisper")
    model.generation_config.alignment_heads = [[0, 1], [1, 3], [2, 2]]
    anatomy.surgery.keep_blocks(model, [1, 2], "decoder")
    assert model.generation_config.alignment_heads == [[0, 3], [1, 2]]
    anatomy.surgery.keep_heads(model, {}, {2: [2, 3], 3: [0, 1]})
    assert model.generation_config.alignment_heads == [[0, 1]]


def test_dinov2_backbone_keeps_stages_that_exist() -> None:
    import transformers

    config = transformers.Dinov2Config(**zoo.MODELS["dinov2"][2], out_indices=[1, 3])
    model = transformers.Dinov2Backbone(config).eval()
    anatomy.surgery.keep_blocks(model, [0, 2])
    assert model.config.stage_names == ["stem", "stage1", "stage2"]
    assert list(model.config.out_indices) == [1, 2]
    given = zoo.inputs(model)
    assert len(model(**given).feature_maps) == 2
    assert zoo.difference(zoo.outputs(model, given), zoo.outputs(zoo.reloaded(model), given)) < 1e-6


def test_width_keeps_function_when_channels_are_idle() -> None:
    """qwen-like RMS norms and idle channels: nothing is lost but the mean square, which scales by the width."""
    model = zoo.make("llama")
    found = anatomy.of(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter[1::2] = 0
            if "embed_tokens" in name:
                parameter[:, 1::2] = 0
    given = zoo.inputs(model)
    before = zoo.outputs(model, given)
    anatomy.surgery.keep_width(model, range(0, 32, 2))
    with torch.no_grad():  # the mean square is now over half as many channels
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.mul_(2**0.5)
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon *= 2
    assert zoo.difference(before, zoo.outputs(model, given)) < 1e-4
    assert found.blocks[0].attention.heads == anatomy.of(model).blocks[0].attention.heads == 4


def test_refusals_leave_the_model_whole() -> None:
    model = zoo.make("llama")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    surgery = anatomy.surgery
    for call, text in (
        (lambda: surgery.keep_heads(model, {0: [0, 1], 1: [0, 1, 2]}), "whole groups"),
        (lambda: surgery.keep_heads(model, {0: [0, 9]}), "0 to 3"),
        (lambda: surgery.keep_heads(model, {9: [0, 1]}), "no block 9"),
        (lambda: surgery.keep_heads(model, {0: []}), "at least one"),
        (lambda: surgery.keep_channels(model, {0: [1, 2], 2: [3, 3]}), "named twice"),
        (lambda: surgery.keep_channels(model, {0: [5, 2]}), "ascending"),
        (lambda: surgery.keep_blocks(model, []), "at least one"),
        (lambda: surgery.keep_blocks(model, [0, 7]), "0 to 2"),
        (lambda: surgery.keep_blocks(model, [0], "encoder"), "no stack"),
        (lambda: surgery.keep_vocabulary(model, range(3, 60)), "Special tokens"),
        (lambda: surgery.replace(model, "model.layers.0.nothing", nn.Identity()), "nothing"),
        (
            lambda: surgery.replace_linear(model, "model.layers.0.mlp.up_proj", nn.Linear(3, 4)),
            "32 features to 48",
        ),
    ):
        with pytest.raises(ModelError, match=text):
            call()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    with pytest.raises(ModelError, match="multiple of 8"):
        surgery.keep_width(zoo.make("bert"), range(20))
    with pytest.raises(ModelError, match="say which: encoder, decoder"):
        surgery.keep_blocks(zoo.make("bart"), [0])
    with pytest.raises(ModelError, match="padding stays 1"):
        surgery.keep_vocabulary(zoo.make("roberta"), [1, 0, 2, 3, 4, 5])
    bert = zoo.make("bert")
    surgery.replace_linear(
        bert, "bert.encoder.layer.0.output.dense", nn.Sequential(nn.Linear(48, 4), nn.Linear(4, 32))
    )
    with pytest.raises(ModelError, match="cut before it is replaced"):
        surgery.keep_channels(bert, {0: range(3)})
    assert "Sequential where transformers builds Linear" in anatomy.native_reasons(bert)[0]
    assert len(attentions(anatomy.of(bert).blocks[0])) == 1
