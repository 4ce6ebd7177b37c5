"""MixedSpans: which blocks of a transformers decoder see everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import steps_world as world
import torch
import transformers as T

import lightformers as lf
from lightformers.bundle import Bundle
from lightformers.compress.spans import MixedSpans
from lightformers.errors import ModelError, UserError
from lightformers.steps import Recipe, Run

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}


def decoder(kind: str = "Qwen2") -> Any:
    torch.manual_seed(0)
    if kind == "GPTNeo":
        given = {"num_layers": 4, "attention_types": [[["global", "local"], 2]], "window_size": 8}
    else:
        given = {"num_hidden_layers": 4, "num_key_value_heads": 1}
    config = getattr(T, f"{kind}Config")(**SIZES, **given, max_position_embeddings=32)
    made = getattr(T, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return made.eval()


def mixed(model: Any, **fields: Any) -> Any:
    return MixedSpans(**{"full": 1, "window": 4} | fields).apply(Bundle(model), None, Run()).model


def moved(model: Any, place: int = 2) -> float:
    """How far the last logits of 28 tokens go if the token at a place changes."""
    ids = torch.randint(40, (1, 28), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[:, place] = (ids[:, place] + 1) % 40
    with torch.no_grad():
        return float((model(input_ids=ids).logits - model(input_ids=other).logits)[:, -1].abs().max())


@pytest.mark.parametrize("kind", ["GPTNeo", "Qwen2", "Qwen3"])
def test_full_blocks_carry_what_windows_cannot(kind: str, tmp_path: Path) -> None:
    model = decoder(kind)
    tensors = {k: v.clone() for k, v in model.state_dict().items()}
    short = torch.randint(40, (1, 4), generator=torch.Generator().manual_seed(1))
    few = mixed(model)
    with torch.no_grad():  # within the window nothing changes
        torch.testing.assert_close(few(input_ids=short).logits, model(input_ids=short).logits)
    # four blocks of windows of 4 reach 12 tokens back
    assert moved(mixed(model, full=0)) == 0 < moved(few) and moved(mixed(model, full=0), 17) > 0
    assert all(torch.equal(v, tensors[k]) for k, v in few.state_dict().items())
    few.save_pretrained(tmp_path)
    again = T.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(40, (1, 28))
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, few(input_ids=ids).logits)
        assert torch.equal(
            mixed(few, full=4)(input_ids=ids).logits, mixed(model, full=4)(input_ids=ids).logits
        )


def test_which_blocks() -> None:
    model = mixed(decoder(), full=(3, 0))
    assert model.config.layer_types == [
        "full_attention",
        "sliding_attention",
        "sliding_attention",
        "full_attention",
    ]
    neo = mixed(decoder("GPTNeo"), full=2, place="top")
    assert (
        neo.config.attention_layers == ["local", "local", "global", "global"] and neo.config.window_size == 4
    )


def test_positions_go_on() -> None:
    neo = decoder("GPTNeo")
    bundle = MixedSpans(full=1, window=8, positions=80).apply(Bundle(neo, max_length=32), None, Run())
    table = bundle.model.transformer.wpe.weight
    assert bundle.max_length == 80 and table.shape[0] == 80
    assert torch.equal(table[32:64], table[:32]) and torch.equal(table[64:], table[:16])
    with torch.no_grad():
        assert torch.isfinite(bundle.model(input_ids=torch.full((1, 80), 3)).logits).all()
    assert mixed(decoder(), positions=80).config.max_position_embeddings == 80


def test_parameters_of_gpt_neo() -> None:
    """The model of the paper: GPT-Neo of 1.3 billion, for 8192 tokens."""
    config = T.GPTNeoConfig(
        max_position_embeddings=16
    )  # the mask of each block is a buffer of positions squared
    with torch.device("meta"):
        made = T.GPTNeoForCausalLM(config)
    count = sum(p.numel() for p in made.parameters()) - 16 * 2048
    assert count + 2048 * 2048 == 1_315_575_808 and count + 8192 * 2048 == 1_328_158_720


def test_other_models_and_settings_are_refused() -> None:
    with pytest.raises(ModelError, match="no config for mixed spans in llama"):
        mixed(world.model("llama"))
    with pytest.raises(UserError, match="there are 4 layers"):
        mixed(decoder(), full=5)
    with pytest.raises(UserError, match="would be fewer"):
        mixed(decoder(), positions=16)
    cut = decoder()
    lf.anatomy.surgery.keep_channels(cut, {0: list(range(8))})
    with pytest.raises(ModelError, match="plain model"):
        mixed(cut)
    for wrong in ({"window": 0}, {"full": (1, 1)}, {"full": -1}, {"place": "middle"}):
        with pytest.raises(UserError):
            MixedSpans(**wrong)
    step = MixedSpans(full=(0, 2))
    assert Recipe.from_yaml(Recipe([step]).to_yaml()).steps == (step,)
