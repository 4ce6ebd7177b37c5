"""Models of transformers as decoders of ours: equal logits, equal generation, clear refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MambaModel,
)

from lightformers.errors import UserError
from lightformers.models.language.convert import from_transformers

SMALL: dict[str, Any] = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "pad_token_id": 0}


def mamba(**changed: Any) -> MambaForCausalLM:
    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(**SMALL, state_size=4, **changed)).eval()


def mamba2(**changed: Any) -> Mamba2ForCausalLM:
    torch.manual_seed(0)
    options = {"state_size": 8, "num_heads": 4, "head_dim": 8, "n_groups": 2, "chunk_size": 16, **changed}
    return Mamba2ForCausalLM(Mamba2Config(**SMALL, **options)).eval()


@torch.no_grad()
@pytest.mark.parametrize("make", [mamba, mamba2])
def test_logits_and_generation_are_equal(make: Any) -> None:
    theirs = make()
    mine = from_transformers(theirs)
    ids = torch.randint(1, 30, (2, 21))
    wanted = theirs(input_ids=ids).logits
    assert torch.allclose(mine(input_ids=ids).logits, wanted, atol=1e-5 * float(wanted.abs().max()))
    spoken = [
        m.generate(input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
        for m in (theirs, mine)
    ]
    assert torch.equal(*spoken)


@torch.no_grad()
def test_weights_are_copies_of_the_same_type() -> None:
    theirs = mamba().bfloat16()
    mine = from_transformers(theirs)
    assert {p.dtype for p in mine.parameters()} == {torch.bfloat16} and not mine.training
    before = theirs.backbone.embeddings.weight.clone()
    mine.embedding.weight.zero_()
    assert torch.equal(theirs.backbone.embeddings.weight, before)
    assert mine.head.weight is mine.embedding.weight


def test_what_a_decoder_does_not_have_is_refused() -> None:
    for model in (mamba(use_bias=True), mamba(hidden_act="relu"), mamba2(time_step_limit=(0.0, 0.1))):
        with pytest.raises(UserError, match=r"a decoder has"):
            from_transformers(model)
    with pytest.raises(UserError, match="of mamba, mamba2"):
        from_transformers(GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1)))
    with pytest.raises(UserError, match="not a causal language model"):
        from_transformers(MambaModel(MambaConfig(**SMALL)))
