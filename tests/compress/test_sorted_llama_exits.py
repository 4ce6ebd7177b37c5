"""Exits by confidence: the whole model at threshold 1, the first blocks at 0, and in between what the equations say."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from lightformers.compress.elastic.confident import ConfidentExits, Generated
from lightformers.errors import ModelError, UserError
from lightformers.models.language.decoder import Decoder, DecoderConfig

ATTENTION = {"mixer": {"kind": "attention", "heads": 2}, "ffn": {"kind": "swiglu", "hidden": 24}}
RECURRENT = {"mixer": {"kind": "mamba", "state": 4}}
FORMS: dict[str, dict[str, Any]] = {
    "rotary": {"layers": [ATTENTION] * 6},
    "learned positions": {
        "layers": [ATTENTION] * 6, "positions": "learned", "max_position_embeddings": 48, "embedding_scale": "sqrt",
        "residual_fp32": True,
    },
    "recurrent": {"layers": [RECURRENT] * 6},
}  # fmt: skip


def made(form: str = "rotary", seed: int = 0) -> Decoder:
    """Weights are large, so that exits differ in what they say and in how sure they are."""
    torch.manual_seed(seed)
    config = DecoderConfig(19, 16, initializer_range=0.4, tie_word_embeddings=False, **FORMS[form])
    model = Decoder(config).eval()
    with torch.no_grad():
        for layer in model.layers:
            for weight in layer.parameters():
                if weight.ndim == 2:
                    weight.mul_(6)
    return model


def prompts() -> tuple[Tensor, Tensor]:
    """Two of unequal length, padded on the left."""
    ids = torch.randint(1, 19, (2, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    return ids, mask


@pytest.mark.parametrize("form", FORMS)
def test_at_threshold_one_it_is_the_whole_model(form: str) -> None:
    model, (ids, mask) = made(form), prompts()
    found = ConfidentExits((2, 4, 6), 1.0).generate(model, ids, mask, 12)
    wanted = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
    assert found.tokens == wanted[:, 5:].tolist()
    assert found.depths == [[6] * 12] * 2 and found.depth == 6


@pytest.mark.parametrize("form", FORMS)
def test_at_threshold_zero_it_is_the_first_blocks(form: str) -> None:
    model, (ids, mask) = made(form), prompts()
    found = ConfidentExits((2, 4, 6), 0.0).generate(model, ids, mask, 12)
    small = copy.deepcopy(model)
    small.layers = nn.ModuleList(list(small.layers)[:2])
    wanted = small.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
    assert found.tokens == wanted[:, 5:].tolist() and found.depth == 2


@pytest.mark.parametrize("form", FORMS)
def test_in_between_it_is_the_literal_rule(form: str) -> None:
    """Every token anew through all blocks, its exit picked afterwards: nothing is lost by catching up later."""
    model, exits = made(form), (2, 3, 6)
    ids = prompts()[0][:1]
    sure = _sureness(model, ids, exits)
    threshold = float(sure.median())
    found = ConfidentExits(exits, threshold).generate(model, ids, max_new_tokens=20)
    tokens, depths, text = [], [], ids
    for _ in range(20):
        logits = _exits(model, text, exits)
        chances = logits.softmax(-1).amax(-1)
        place = next((i for i in range(2) if chances[i] >= threshold), 2)
        tokens.append(int(logits[place].argmax()))
        depths.append(exits[place])
        text = torch.cat([text, torch.tensor([[tokens[-1]]])], 1)
    assert len(set(depths)) > 1  # else nothing was caught up on
    assert found == Generated([tokens], [depths])


def _exits(model: Decoder, ids: Tensor, exits: tuple[int, ...]) -> Tensor:
    """(exits, words) logits after the last token."""
    with torch.no_grad():
        last, read = model.features(ids, every=True)
        assert read is not None
        states = [read[n] for n in exits[:-1]]
        normed = [model.norm(x.to(model.norm.weight.dtype)) for x in states] + [last]
        return torch.stack([model.head(x[0, -1]) for x in normed]).float()


def _sureness(model: Decoder, ids: Tensor, exits: tuple[int, ...]) -> Tensor:
    text, out = ids, []
    for _ in range(20):
        logits = _exits(model, text, exits)
        out.append(logits.softmax(-1).amax(-1)[:2])
        text = torch.cat([text, logits[-1].argmax()[None, None]], 1)
    return torch.stack(out)


def test_a_model_of_transformers_and_the_end_of_a_text() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=19, n_positions=32, n_embd=16, n_layer=4, n_head=2, bos_token_id=0, eos_token_id=0
        )
    ).eval()
    ids, mask = prompts()
    every = ConfidentExits((1, 4), 1.0).generate(model, ids, mask, 10).tokens
    wanted = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=10,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert every == wanted[:, 5:].tolist()
    last = every[0][3]
    cut = ConfidentExits((1, 4), 1.0).generate(model, ids[:1], max_new_tokens=10, eos_token_id=last)
    assert cut.tokens[0] == every[0][: every[0].index(last) + 1]


def test_refusals() -> None:
    model, (ids, mask) = made("learned positions"), prompts()
    for threshold in (-0.1, 1.1):
        with pytest.raises(UserError, match="probability"):
            ConfidentExits((2, 6), threshold)
    for exits in ((2, 5), (4, 2, 6), ()):
        with pytest.raises(ModelError, match="exits must rise"):
            ConfidentExits(exits).generate(model, ids)
    with pytest.raises(UserError, match="holds a token"):
        ConfidentExits((6,)).generate(model, ids, torch.zeros_like(mask))
    with pytest.raises(UserError, match="at least one new token"):
        ConfidentExits((6,)).generate(model, ids, max_new_tokens=0)
    with pytest.raises(UserError, match="48 positions"):
        ConfidentExits((6,), 0.0).generate(model, ids, max_new_tokens=60)
    with pytest.raises(ModelError, match="cannot be made a Decoder"):
        ConfidentExits((2,)).generate(nn.Linear(2, 2), ids)
