"""Models of transformers become a `Decoder` of equal logits, or it is said why not."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated

from lightformers import anatomy
from lightformers.errors import ModelError
from lightformers.models.language.convert import FORMS, from_transformers

LLAMA = {
    "vocab_size": 40, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
}  # fmt: skip
#: An older transformers norms over all groups at once, unlike the paper's code.
GROUPS = 2 if "group_size" in inspect.signature(MambaRMSNormGated.__init__).parameters else 1
MAMBA = {"vocab_size": 40, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2}
SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 40, "n_positions": 64, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_inner": 20},
    "llama": {**LLAMA, "attention_bias": True, "mlp_bias": True, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "mistral": {**LLAMA, "sliding_window": 3, "tie_word_embeddings": True},
    "qwen2": {k: v for k, v in LLAMA.items() if k != "head_dim"}
    | {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    "qwen3": {**LLAMA, "hidden_act": "gelu_pytorch_tanh"},
    "mamba": {**MAMBA, "conv_kernel": 3, "time_step_rank": 3},
    "mamba2": {**MAMBA, "num_heads": 8, "head_dim": 4, "n_groups": GROUPS, "tie_word_embeddings": False},
}  # fmt: skip


def theirs(kind: str, **fields: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**SIZES[kind], **fields})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "A_log" not in name:
                p.add_(torch.randn_like(p) * 0.3)
    return model


def equal(model: Any, ours: Any) -> None:
    """Logits of whole texts and of texts padded on the left."""
    ids = torch.randint(3, 40, (2, 9))
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    given = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if model.config.model_type == "gpt2" else {}
    real = mask.bool()
    with torch.no_grad():
        assert (model(input_ids=ids).logits - ours(input_ids=ids).logits).abs().max() < 1e-4
        a = model(input_ids=ids, attention_mask=mask, **given).logits[real]
        assert (a - ours(input_ids=ids, attention_mask=mask).logits[real]).abs().max() < 1e-4
        assert a.std() > 0.1


@pytest.mark.parametrize("kind", FORMS)
def test_logits_are_equal(kind: str) -> None:
    model = theirs(kind)
    ours = from_transformers(model)
    equal(model, ours)
    assert ours.num_parameters() == model.num_parameters()
    assert ours.config.tie_word_embeddings == (model.lm_head.weight is model.get_input_embeddings().weight)
    assert (ours.head.weight is ours.embedding.weight) == ours.config.tie_word_embeddings
    assert not {p.data_ptr() for p in ours.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert all(p.requires_grad for p in ours.parameters()) and not ours.training


@pytest.mark.parametrize("kind", ["gpt2", "mistral", "mamba", "mamba2"])
def test_both_generate_the_same(kind: str) -> None:
    model = theirs(kind)
    ids = torch.randint(3, 40, (2, 6))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    more = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = model.generate(input_ids=ids, attention_mask=mask, **more)
    assert torch.equal(
        from_transformers(model).generate(input_ids=ids, attention_mask=mask, **more), expected
    )


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_cuts_that_their_config_cannot_say(kind: str) -> None:
    model = theirs(kind)
    anatomy.surgery.keep_heads(model, {0: [0, 1]} if kind == "llama" else {0: [0, 2]})
    anatomy.surgery.keep_channels(model, {1: range(7)})
    assert anatomy.native_reasons(model)
    ours = from_transformers(model)
    equal(model, ours)
    assert [row["mixer"]["heads"] for row in ours.config.layers] == [2, 3 if kind == "gpt2" else 4]
    assert [row["ffn"]["hidden"] for row in ours.config.layers] == [20, 7]


def test_dtype_and_ids_come_along() -> None:
    model = theirs("llama", pad_token_id=2, eos_token_id=[1, 2]).to(torch.bfloat16).train()
    ours = from_transformers(model)
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16} and ours.training
    assert (ours.config.pad_token_id, ours.config.eos_token_id) == (2, [1, 2])


def test_what_cannot_be_said_is_refused() -> None:
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    for model, why in (
        (theirs("llama", rope_parameters=scaled), "scaled .linear."),
        (theirs("llama", hidden_act="tanh"), "activation tanh"),
        (theirs("qwen3", rms_norm_eps=1e-3), "epsilon of 0.001"),
        (theirs("gpt2", scale_attn_by_inverse_layer_idx=True), "root of the head size"),
        (theirs("gpt2", add_cross_attention=True), "cross-attention"),
        (theirs("mamba2", time_step_limit=(0.0, 0.5)), "time_step_limit"),
        (theirs("mamba", use_bias=True), "biases"),
        (theirs("llama").model, "no plain language model head"),
        (nn.Linear(2, 2), "a Linear cannot be made a Decoder; gpt2, llama"),
    ):
        with pytest.raises(ModelError, match=why):
            from_transformers(model)
    model = theirs("llama")
    model.model.layers[1].self_attn.extra = nn.Linear(2, 2)
    with pytest.raises(ModelError, match=r"no place for model\.layers\.1\.self_attn\.extra\.weight"):
        from_transformers(model)
