"""The heterogeneous encoder: the paper's counts, saving, padding, refusals. (Its search: tests/compress.)"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import lightformers as lf
from lightformers.bundle import Bundle, Pooling
from lightformers.errors import ModelError, UserError
from lightformers.models.language.flexibert import (
    PRESETS,
    FlexiBERT,
    FlexiBERTConfig,
    FlexiBERTForMaskedLM,
    Layer,
)

MIXED = FlexiBERTConfig(
    (Layer("sa", "wma", 16, 2, (24,)), Layer("l", "dct", 24, 2, (16, 32, 16)), Layer("c", 3, 16, 4, (24,))),
    words=40, length=20,
)  # fmt: skip


def made(config: FlexiBERTConfig = MIXED, seed: int = 0) -> FlexiBERT:
    torch.manual_seed(seed)
    return FlexiBERT(config).eval()


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[0, 5:] = 0
    return {"input_ids": torch.randint(1, 40, (3, 9), generator=generator) * mask, "attention_mask": mask}


def unread(config: FlexiBERTConfig) -> int:
    """Weights that the paper's code holds with relative positions, and nothing reads."""
    size = {i: (x.width // x.heads) ** 2 for i, x in enumerate(config.layers) if x.variant == "sdp"}
    keys = sum(x.width * x.width + x.width for x in config.layers if x.operation == "l")
    return config.length * config.layers[0].width + sum(size.values()) + keys


@pytest.mark.parametrize("name, paper, here", [("flexibert_mini", 11_119_808, 10_922_944), ("bert_mini", 11_448_832, 11_301_376)])  # fmt: skip
def test_parameters_are_the_papers(name: str, paper: int, here: int) -> None:
    with torch.device("meta"):
        model = FlexiBERT(PRESETS[name])
    counted = sum(p.numel() for p in model.parameters())
    assert counted == here and counted + unread(PRESETS[name]) == paper


@pytest.mark.parametrize("relative", [True, False])
def test_saved_and_loaded_it_is_the_same(relative: bool, tmp_path: Path) -> None:
    config = FlexiBERTConfig(MIXED.layers, words=40, length=20, relative=relative)
    for kind in (FlexiBERT, FlexiBERTForMaskedLM):
        torch.manual_seed(0)
        model = kind(config).eval()
        model.save_pretrained(tmp_path / kind.__name__)
        again = kind.from_pretrained(tmp_path / kind.__name__).eval()
        assert again.config == model.config
        for one, other in zip(model(**batch()).values(), again(**batch()).values()):
            assert torch.equal(one, other)


def test_a_folder_is_opened_by_its_class_name(tmp_path: Path) -> None:
    for kind, task in ((FlexiBERT, None), (FlexiBERTForMaskedLM, "masked-lm")):
        torch.manual_seed(0)
        model = kind(MIXED).eval()
        model.save_pretrained(tmp_path / kind.__name__)
        bundle = lf.load(tmp_path / kind.__name__)
        assert type(bundle.model) is kind and bundle.task == task and bundle.max_length == MIXED.length
        assert bundle.processor is None and not bundle.model.training
        for one, other in zip(model(**batch()).values(), bundle.model(**batch()).values()):
            assert torch.equal(one, other)
    whole = lf.load(tmp_path / "FlexiBERT", "embedding")
    assert whole.pooling is not None
    mask = torch.ones(3, 9, dtype=torch.long)
    ids = batch()["input_ids"]
    assert whole.module()(input_ids=ids, attention_mask=mask)["embedding"].shape == (3, whole.model.width)
    with pytest.raises(ModelError, match="no trained head for text-classification"):
        lf.load(tmp_path / "FlexiBERT", "text-classification")
    (tmp_path / "FlexiBERT" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be loaded"):
        lf.load(tmp_path / "FlexiBERT")


def test_every_parameter_gets_a_gradient() -> None:
    for relative in (True, False):
        model = FlexiBERT(FlexiBERTConfig(MIXED.layers, words=40, length=20, relative=relative))
        out = model(**batch())
        (out.last_hidden_state.square().sum() + out.pooler_output.sum()).backward()
        assert all(p.grad is not None for p in model.parameters())
    head = FlexiBERTForMaskedLM(MIXED)
    logits = head(**batch())["logits"]
    assert logits.shape == (3, 9, 40)
    nn.functional.cross_entropy(logits.flatten(0, 1), batch()["input_ids"].flatten()).backward()
    assert all(p.grad is not None for p in head.parameters())


def test_words_do_not_see_padding_and_do_see_each_other() -> None:
    model, inputs = made(), batch()
    whole = model(**inputs).last_hidden_state
    alone = model(inputs["input_ids"][:1, :5]).last_hidden_state
    torch.testing.assert_close(whole[:1, :5], alone, atol=1e-4, rtol=1e-4)
    assert whole.shape == (3, 9, 16)
    changed = inputs["input_ids"].clone()
    changed[1, 8] = changed[1, 8] % 39 + 1
    moved = model(changed, inputs["attention_mask"]).last_hidden_state - whole
    assert bool((moved[1, 0].abs() > 1e-6).any()) and not moved[2].any()


def test_it_is_the_backbone_of_a_bundle() -> None:
    bundle = Bundle(made(), task="embedding", pooling=Pooling("mean"))
    assert bundle.module()(**batch())["embedding"].shape == (3, 16)
    half = made().bfloat16()(**batch()).last_hidden_state
    assert half.dtype == torch.bfloat16 and torch.isfinite(half).all()
    compiled = torch.export.export(made(), (), batch()).module()
    torch.testing.assert_close(compiled(**batch()).last_hidden_state, made()(**batch()).last_hidden_state)


def test_dictionaries_go_both_ways_and_bad_ones_are_refused() -> None:
    model = PRESETS["flexibert_mini"].to_model()
    assert model["o"] == ["sa", "sa", "l", "l"] and model["f"][0] == (512, 512, 512)
    assert FlexiBERTConfig.from_model(model) == PRESETS["flexibert_mini"]
    with pytest.raises(UserError, match="lists of 4, 4, 3"):
        FlexiBERTConfig.from_model({**model, "h": [256, 256, 128]})
    for change, said in (
        ({"operation": "rnn"}, "unknown operation"), ({"variant": "dct"}, "sdp, wma"), ({"heads": 3}, "do not divide"),
        ({"hidden": ()}, "inner widths"), ({"operation": "c", "variant": 4}, "odd number"),
        ({"operation": "c", "variant": 5, "heads": 1}, "attend"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            Layer(**{"operation": "sa", "variant": "sdp", "width": 16, "heads": 2, "hidden": (8,), **change})
    with pytest.raises(UserError, match="more than the 20"):
        made()(torch.ones(1, 21, dtype=torch.long))
