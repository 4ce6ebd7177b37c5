"""The decoder skeleton: masks, generation with every kind of search, packing, gradients, norms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoder_world import LAYER, LEARNED, WINDOW, greedy, made, tokens
from torch import nn

from lightformers.errors import UserError
from lightformers.models.patterns import stack


@pytest.mark.parametrize("fields", [{}, LEARNED], ids=["rotary", "learned"])
@torch.no_grad()
def test_prompts_of_unequal_length_generate_as_alone(fields: dict[str, Any]) -> None:
    model, ids = made(**fields), tokens(3, 7)
    mask = torch.ones_like(ids)
    mask[0, :4], mask[2, :1] = 0, 0
    found = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=9, do_sample=False, pad_token_id=0
    )
    for row, start in enumerate((4, 0, 1)):
        assert torch.equal(found[row : row + 1, start:], greedy(model, ids[row : row + 1, start:], 9))


@torch.no_grad()
def test_beams_with_states_are_beams_without() -> None:
    model, ids = made(), tokens(2, 5)
    options = {
        "num_beams": 3,
        "max_new_tokens": 8,
        "do_sample": False,
        "pad_token_id": 0,
        "num_return_sequences": 2,
    }
    found = model.generate(input_ids=ids, **options)
    assert torch.equal(found, model.generate(input_ids=ids, use_cache=False, **options))


@torch.no_grad()
def test_samples_with_states_are_samples_without() -> None:
    model, ids = made(), tokens(2, 5)
    out = []
    for use_cache in (True, False):
        torch.manual_seed(1)
        out.append(model.generate(input_ids=ids, max_new_tokens=12, do_sample=True, top_k=8, pad_token_id=0, use_cache=use_cache))  # fmt: skip
    assert torch.equal(*out)


@torch.no_grad()
def test_a_text_continues_in_pieces() -> None:
    model, ids = made(**LEARNED), tokens(2, 12)
    whole = model(input_ids=ids).logits
    first = model(input_ids=ids[:, :5], use_cache=True)
    second = model(input_ids=ids[:, 5:6], past_key_values=first.past_key_values)
    third = model(
        input_ids=ids[:, 6:], past_key_values=second.past_key_values, attention_mask=torch.ones(2, 12)
    )
    pieces = torch.cat([first.logits, second.logits, third.logits], 1)
    torch.testing.assert_close(pieces, whole, atol=1e-4, rtol=1e-4)
    assert third.past_key_values.get_seq_length() == 12
    again = model.generate(input_ids=ids, past_key_values=model(input_ids=ids[:, :-1], use_cache=True).past_key_values, max_new_tokens=4, do_sample=False, pad_token_id=0)  # fmt: skip
    assert torch.equal(again, greedy(model, ids, 4))


@pytest.mark.parametrize("fields", [{}, LEARNED], ids=["rotary", "learned"])
@torch.no_grad()
def test_packed_documents_are_documents_apart(fields: dict[str, Any]) -> None:
    model = made(**fields).double()
    a, b = tokens(1, 6), tokens(1, 9, seed=1)
    mask = torch.tensor([[1] * 6 + [2] * 9 + [0] * 2])
    ids = torch.cat([a, b, a[:, :2]], 1)
    packed = model(input_ids=ids, attention_mask=mask).logits[:, :15]
    torch.testing.assert_close(packed, torch.cat([model(input_ids=a).logits, model(input_ids=b).logits], 1))


def test_the_loss_is_the_usual_one_and_passes_over_starts() -> None:
    model, ids = made(), tokens(2, 8)
    loss = model(input_ids=ids, labels=ids).loss
    logits = model(input_ids=ids).logits[:, :-1]
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
    mask = torch.tensor([[1] * 4 + [2] * 4] * 2)
    found = model(input_ids=ids, labels=ids, attention_mask=mask).loss
    apart = [model(input_ids=ids[:, part], labels=ids[:, part]).loss for part in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(found, sum(apart) / 2)


def test_checkpointing_changes_no_gradient() -> None:
    grads = []
    for checkpointing in (False, True):
        model = made().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(input_ids=tokens(2, 9)).logits.square().mean().backward()
        grads.append({k: p.grad for k, p in model.named_parameters()})
    assert all(g is not None for g in grads[0].values())
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name])


def test_norms_behind_the_part_and_a_wide_stream() -> None:
    row = {**LAYER, "ffn_norm": "post-output"}
    model = made(layers=[row], residual_fp32=True)
    layer, x = model.layers[0], torch.randn(1, 3, 16)
    middle = x + layer.mixer(layer.mixer_norm(x))
    torch.testing.assert_close(layer(x), middle + layer.ffn_norm(layer.ffn(middle)))
    half = made(layers=[row, row], residual_fp32=True).bfloat16()
    _, read = half.features(tokens(1, 4), every=True)
    assert read[1].dtype == torch.float32 and half(input_ids=tokens(1, 4)).logits.dtype == torch.bfloat16


@torch.no_grad()
def test_hidden_states_logits_to_keep_and_tuples() -> None:
    model, ids = made(), tokens(2, 6)
    out = model(input_ids=ids, output_hidden_states=True)
    assert len(out.hidden_states) == 3
    torch.testing.assert_close(model.head(out.hidden_states[-1]), out.logits)
    torch.testing.assert_close(model(input_ids=ids, logits_to_keep=2).logits, out.logits[:, -2:])
    embedded = model(inputs_embeds=model.embedding(ids), return_dict=False)
    torch.testing.assert_close(embedded[0], out.logits)
    assert model(input_ids=ids).past_key_values is None


@torch.no_grad()
def test_compiled_it_is_the_same() -> None:
    model, ids = made(), tokens(2, 6)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(input_ids=ids).logits, model(input_ids=ids).logits)


def test_patterns() -> None:
    found = stack("AW" * 2, {"A": LAYER, "W": WINDOW})
    assert [row == LAYER for row in found] == [True, False, True, False]
    found[0]["mixer"]["heads"] = 7
    assert LAYER["mixer"]["heads"] == 2 and found[2]["mixer"]["heads"] == 2
    with pytest.raises(UserError, match="no X; it has A"):
        stack("AX", {"A": LAYER})
