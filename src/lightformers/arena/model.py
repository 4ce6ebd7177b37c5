"""The models of the arena: one encoder and one decoder in which only the mixer is exchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightformers.arena import mixers
from lightformers.arena.mixers import Contender
from lightformers.arena.rows import Row
from lightformers.models.language.decoder import Decoder, DecoderConfig
from lightformers.models.language.encoder import Encoder, EncoderConfig, EncoderForSequenceClassification
from lightformers.models.matching import Matched, counted, match
from lightformers.tasks.sequences import Split

#: The feed-forward is never narrower than this.
_LEAST = 8


class PairClassifier(nn.Module):
    """Two texts through one encoder, none seeing the other; on both vectors, their product and their difference, two
    layers (interaction "NLI" of Long Range Arena, arXiv 2011.04006). -> {"logits": (batch, classes)}."""

    def __init__(self, config: EncoderConfig, hidden: int, classes: int) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.head = nn.Sequential(
            nn.Linear(4 * config.hidden_size, hidden), nn.ReLU(), nn.Linear(hidden, hidden // 2), nn.ReLU(),
            nn.Linear(hidden // 2, classes),
        )  # fmt: skip

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, other_ids: Tensor, other_mask: Tensor
    ) -> dict[str, Tensor]:
        a = self.encoder(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        b = self.encoder(input_ids=other_ids, attention_mask=other_mask).pooler_output
        return {"logits": self.head(torch.cat([a, b, a * b, a - b], -1))}


def layers(who: Contender, row: Row, length: int, hidden: int, causal: bool) -> list[dict[str, Any]]:
    """The layers of a model."""
    mixer = {"kind": who.kind, **mixers.options(who, row.heads, length, causal)}
    ffn = {"kind": "mlp", "hidden": hidden, "activation": "gelu", "bias": True}
    return [{"mixer": dict(mixer), "ffn": dict(ffn)} for _ in range(row.layers)]


def encoder(who: Contender, row: Row, split: Split, hidden: int) -> nn.Module:
    """Sinusoidal positions, LayerNorm before each part, the mean over the tokens, two layers: the encoder of Long Range
    Arena. (It takes a class token in some tasks; a mixer that looks back alone could not use one in front.)"""
    config = EncoderConfig(
        vocab_size=split.vocab, hidden_size=row.width, layers=layers(who, row, split.length, hidden, False),
        max_position_embeddings=split.length, positions="sinusoidal", pooling="mean", classifier_hidden=row.hidden,
        num_labels=split.classes,
    )  # fmt: skip
    if split.pairs:
        return PairClassifier(config, row.hidden, split.classes)
    return EncoderForSequenceClassification(config)


def decoder(who: Contender, row: Row, vocab: int, length: int, hidden: int) -> nn.Module:
    """The language model of `models.language.decoder`, with a head of its own."""
    config = DecoderConfig(
        vocab_size=vocab,
        hidden_size=row.width,
        layers=layers(who, row, length, hidden, True),
        tie_word_embeddings=False,
    )
    return Decoder(config)


def sized(build: Callable[[Contender, int], nn.Module], who: Contender, row: Row, equal: bool) -> Matched:
    """How wide the feed-forward of `who` is: as wide as the row's, or as gives the baseline's number of parameters."""
    target = counted(lambda: build(mixers.contender(mixers.BASELINE), row.hidden))
    if not equal:
        return Matched(row.hidden, counted(lambda: build(who, row.hidden)), target)
    return match(lambda width: build(who, width), target, _LEAST, min(8, max(row.width // 16, 1)))
