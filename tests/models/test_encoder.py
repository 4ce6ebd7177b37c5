"""The encoder skeleton: pooling, padding on both sides, positions, the classifier, saving, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import lightformers as lf
from lightformers.errors import UserError
from lightformers.models.language.encoder import Encoder, EncoderConfig, EncoderForSequenceClassification
from lightformers.parts.mixers.attention import Attention

LAYER = {"mixer": {"kind": "attention", "heads": 2, "rotary": False}, "ffn": {"kind": "mlp", "hidden": 24}}


def config(**fields: Any) -> EncoderConfig:
    return EncoderConfig(**{"vocab_size": 40, "hidden_size": 16, "layers": [LAYER, LAYER], "max_position_embeddings": 20, **fields})  # fmt: skip


def made(kind: Any = Encoder, **fields: Any) -> Any:
    torch.manual_seed(0)
    return kind(config(**fields)).eval().double()


def tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "word": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        folder
    )


def tokens(batch: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 40, (batch, n), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", None])
@pytest.mark.parametrize("pooling", ["mean", "cls", "sum"])
def test_padding_on_either_side_changes_nothing(positions: Any, pooling: Any) -> None:
    model, ids, junk = made(positions=positions, pooling=pooling), tokens(2, 7), tokens(2, 4, seed=1)
    alone = model(ids)
    there, gone = torch.ones(2, 7), torch.zeros(2, 4)
    right = model(torch.cat([ids, junk], 1), torch.cat([there, gone], 1))
    left = model(torch.cat([junk, ids], 1), torch.cat([gone, there], 1))
    for found, part in ((right, slice(0, 7)), (left, slice(4, 11)), (model(ids, there), slice(0, 7))):
        torch.testing.assert_close(found.last_hidden_state[:, part], alone.last_hidden_state)
        torch.testing.assert_close(found.pooler_output, alone.pooler_output)
    states = alone.last_hidden_state
    if pooling != "cls":
        torch.testing.assert_close(alone.pooler_output, getattr(states, pooling)(1))


def test_it_looks_both_ways_and_says_so() -> None:
    model = made()
    assert isinstance(model.layers[0].mixer, Attention) and not model.layers[0].mixer.causal
    ids = tokens(1, 6)
    other = ids.clone()
    other[0, -1] += 1
    assert (model(ids).last_hidden_state[0, 0] - model(other).last_hidden_state[0, 0]).abs().max() > 1e-6
    causal = made(layers=[{"mixer": {**LAYER["mixer"], "causal": True}}])
    torch.testing.assert_close(
        causal(ids).last_hidden_state[0, 0], causal(other).last_hidden_state[0, 0], atol=1e-12, rtol=0
    )
    fourier = made(layers=[{"mixer": {"kind": "fourier", "heads": 2}}])
    assert fourier(ids).last_hidden_state.shape == (1, 6, 16)


def test_the_class_token_starts_as_nothing_and_learns() -> None:
    model = made(EncoderForSequenceClassification, pooling="cls", classifier_hidden=10, num_labels=3)
    assert model.encoder.first.abs().sum() == 0
    out = model(tokens(4, 6), labels=torch.tensor([0, 1, 2, 0]))
    assert out.logits.shape == (4, 3)
    out.loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name


def test_it_learns_which_token_came_first() -> None:
    """Position and content must both reach the pooled vector."""
    torch.manual_seed(0)
    model = EncoderForSequenceClassification(config(layers=[LAYER], num_labels=2))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    ids = torch.stack([torch.randperm(8) + 1 for _ in range(256)])
    labels = ((ids == 1).int().argmax(1) < (ids == 2).int().argmax(1)).long()
    for _ in range(120):
        optimizer.zero_grad()
        model(ids, labels=labels).loss.backward()
        optimizer.step()
    assert (model(ids).logits.argmax(1) == labels).float().mean() > 0.95


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    model = made(EncoderForSequenceClassification, pooling="cls", num_labels=3).float()
    model.save_pretrained(tmp_path / "whole")
    again = EncoderForSequenceClassification.from_pretrained(tmp_path / "whole").eval()
    assert again.config.num_labels == 3 and again.config.layers == model.config.layers
    torch.testing.assert_close(again(tokens(2, 5)).logits, model(tokens(2, 5)).logits)
    tokenizer(tmp_path / "whole")
    bundle = lf.load(tmp_path / "whole")
    assert bundle.task == "text-classification" and type(bundle.model) is EncoderForSequenceClassification
    backbone = Encoder.from_pretrained(tmp_path / "whole").eval()
    torch.testing.assert_close(backbone(tokens(2, 5)).pooler_output, model.encoder(tokens(2, 5)).pooler_output)  # fmt: skip
    model.encoder.save_pretrained(tmp_path / "backbone")
    assert isinstance(lf.load(tmp_path / "backbone").model, Encoder)
    headed = EncoderForSequenceClassification.from_pretrained(tmp_path / "backbone", num_labels=5)
    assert headed.classifier.weight.shape[0] == 5
    assert headed.classifier.weight.std().item() == pytest.approx(0.02, rel=0.5)
    torch.testing.assert_close(headed.encoder.first, model.encoder.first)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"pooling": "max"}, "pooling is one of mean"),
        ({"positions": "rotary"}, "'learned', 'sinusoidal' or None"),
        ({"max_position_embeddings": None}, "need max_position_embeddings"),
        ({"layers": [{"mixer": {"kind": "no-such"}}]}, "layer 0: 'no-such' is not one of"),
        ({"norm": "batch"}, "norm is one of"),
        ({"hidden_size": 0}, "nothing to model"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        config(**fields)


def test_texts_that_are_too_long_are_refused() -> None:
    with pytest.raises(UserError, match="21 tokens are more than the 20"):
        made()(tokens(1, 21))
    with pytest.raises(UserError, match=r"21 tokens \(the class token counts\)"):
        made(pooling="cls")(tokens(1, 20))
    with pytest.raises(UserError, match="attention_mask is"):
        made()(tokens(1, 5), torch.ones(1, 6))
