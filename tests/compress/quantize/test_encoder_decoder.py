"""Quantizing steps on an encoder with a decoder: cross-attention is quantized too, or refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, T5Config, T5ForConditionalGeneration

from lightformers import anatomy, manifest
from lightformers.bundle import Bundle
from lightformers.compress import BlockwiseQuantize, FloatQuantize
from lightformers.compress.quantize.formats import relative_error
from lightformers.compress.quantize.intervention import Watch
from lightformers.errors import ModelError
from lightformers.parts.packed_layers import PackedLinear
from lightformers.steps import Recipe, Step


def model() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(
        d_model=32, num_layers=2, num_heads=4, d_kv=8, d_ff=64, vocab_size=50, decoder_start_token_id=0
    )
    return T5ForConditionalGeneration(config).eval()


@torch.no_grad()
def outputs(made: torch.nn.Module) -> Tensor:
    ids = torch.arange(24).reshape(2, 12) % 50
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    found: Tensor = made(input_ids=ids, attention_mask=mask, decoder_input_ids=ids[:, :7]).logits
    return found


@pytest.mark.parametrize(
    "step", [BlockwiseQuantize(), FloatQuantize(("int8",), (), candidates=0)], ids=["bct", "rounding"]
)
def test_both_stacks_are_quantized_and_reload_equal(step: Step, tmp_path: Path) -> None:
    original = Bundle(model())
    edited = Recipe([step]).apply(original)
    cross = anatomy.of(original.model).stack("decoder")[0].cross_attention
    assert cross is not None and isinstance(anatomy.get(edited.model, cross.k or ""), PackedLinear)
    out = outputs(edited.model)
    assert 0 < relative_error(out, outputs(original.model)) < 0.2
    manifest.write_manifest(edited, tmp_path)
    edited.model.config.save_pretrained(tmp_path)
    again = manifest.build_from_manifest(tmp_path, AutoConfig.from_pretrained(tmp_path))
    assert torch.equal(outputs(again), out)


def test_a_teacher_does_not_intervene_between_stacks() -> None:
    made = model()
    with pytest.raises(ModelError, match="one self-attention"):
        Watch(made, made)
