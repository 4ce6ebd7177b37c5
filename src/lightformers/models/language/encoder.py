"""The one encoder that looks both ways: its layers name mixers and feed-forwards, its head classifies texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

from lightformers.errors import UserError
from lightformers.models.language.layers import NORMS, build, checked, completed, drawn, norm
from lightformers.models.registry import register
from lightformers.parts.positions import sinusoids
from lightformers.parts.recording import recorded

POOLINGS = ("mean", "cls", "sum")


class EncoderConfig(PretrainedConfig):
    """What an `Encoder` is made of; the defaults are the common encoder of Long Range Arena (arXiv 2011.04006).

    layers, norm, norm_eps, dropout: as in `DecoderConfig`. Mixers that can do both look both ways unless `causal` says
        otherwise; a causal mixer may stand here too.
    positions: "sinusoidal" or "learned" (both end at max_position_embeddings), or None.
    pooling: "mean" or "sum" over the tokens that are no padding, or "cls": a learned token put before every text, which
        starts as 0. classifier_hidden: the width between pooled vector and classes; None: hidden_size.
    embedding_std: deviation of the word table at the start; initializer_range: of positions and classifier.
    Raises UserError for unknown kinds, options and settings.
    """

    model_type = "lightformers-encoder"

    def __init__(
        self,
        vocab_size: int = 256,
        hidden_size: int = 128,
        layers: Sequence[Mapping[str, Any]] = (),
        norm: str = "layer",
        norm_eps: float = 1e-6,
        max_position_embeddings: int | None = 512,
        positions: Literal["learned", "sinusoidal"] | None = "sinusoidal",
        pooling: Literal["mean", "cls", "sum"] = "mean",
        classifier_hidden: int | None = None,
        dropout: float = 0.0,
        embedding_std: float = 1.0,
        initializer_range: float = 0.02,
        pad_token_id: int | None = None,
        **options: Any,
    ) -> None:
        if min(vocab_size, hidden_size) < 1:
            raise UserError(
                f"a vocabulary of {vocab_size} and a width of {hidden_size} leave nothing to model"
            )
        if norm not in NORMS:
            raise UserError(f"norm is one of {', '.join(NORMS)}, not {norm!r}")
        if positions not in (None, "learned", "sinusoidal"):
            raise UserError(f"positions are 'learned', 'sinusoidal' or None, not {positions!r}")
        if positions and not max_position_embeddings:
            raise UserError(f"{positions} positions need max_position_embeddings")
        if pooling not in POOLINGS:
            raise UserError(f"pooling is one of {', '.join(POOLINGS)}, not {pooling!r}")
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.layers = checked(layers, causal=False)
        self.norm, self.norm_eps, self.dropout = norm, norm_eps, dropout
        self.max_position_embeddings, self.positions = max_position_embeddings, positions
        self.pooling, self.classifier_hidden = pooling, classifier_hidden
        self.embedding_std, self.initializer_range = embedding_std, initializer_range
        super().__init__(**{**options, "pad_token_id": pad_token_id, "tie_word_embeddings": False})
        self.pad_token_id, self.tie_word_embeddings = pad_token_id, False

    @property
    def num_hidden_layers(self) -> int:
        return len(self.layers)


class Encoder(PreTrainedModel):
    """(batch, n) tokens -> last_hidden_state (batch, n, width) and pooler_output (batch, width).

    attention_mask: (batch, n), 0 at padding on either side. A class token is in pooler_output alone.
    """

    config_class = EncoderConfig
    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Layer"]
    _supports_sdpa = True
    _init_weights = drawn
    initialize_weights = completed
    embedding: Any  # may be exchanged for another table

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        width, rows = config.hidden_size, config.max_position_embeddings
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.positions = nn.Embedding(rows, width) if config.positions == "learned" and rows else None
        self.first = nn.Parameter(torch.zeros(width)) if config.pooling == "cls" else None
        self.layers = build(config.layers, width, config.norm, config.norm_eps, config.dropout)
        self.norm = norm(config.norm, width, config.norm_eps)
        nn.init.normal_(self.embedding.weight, std=config.embedding_std)
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=config.initializer_range)
        self._without_values = self.embedding.weight.is_meta
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embedding = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("give input_ids or inputs_embeds, one of them")
        x = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        if attention_mask is not None and attention_mask.shape != x.shape[:2]:
            raise UserError(f"attention_mask is (batch, n), here {tuple(x.shape[:2])}, not {tuple(attention_mask.shape)}")  # fmt: skip
        mask = attention_mask
        if mask is not None:
            mask = None if not recorded() and bool((mask != 0).all()) else (mask != 0).long()
        if self.first is not None:
            x = torch.cat([self.first.to(x.dtype).expand(x.shape[0], 1, -1), x], 1)
            mask = None if mask is None else nn.functional.pad(mask, (1, 0), value=1)
        x = self._place(x, mask)
        if self.config.dropout:
            x = nn.functional.dropout(x, self.config.dropout, self.training)
        read = []
        for layer in self.layers:
            read.append(x)
            x = layer(x, mask)
        x = self.norm(x)
        pooled = x[:, 0] if self.first is not None else _mean(x, mask, self.config.pooling == "sum")
        if self.first is not None:
            x, read = x[:, 1:], [r[:, 1:] for r in read]
        every = (*read, x) if output_hidden_states else None
        out = BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=pooled, hidden_states=every)
        return out if return_dict is not False else out.to_tuple()  # type: ignore[return-value]

    def _place(self, x: Tensor, mask: Tensor | None) -> Tensor:
        limit, n = self.config.max_position_embeddings, x.shape[1]
        if mask is None:
            place = torch.arange(n, device=x.device)[None]
        else:
            place = (mask.cumsum(1) - 1).clamp(min=0)
        longest = n if mask is None or limit is None or recorded() or n <= limit else int(place.max()) + 1
        if limit is not None and longest > limit:
            extra = " (the class token counts)" if self.first is not None else ""
            raise UserError(f"{longest} tokens{extra} are more than the {limit} positions that this model was made for")  # fmt: skip
        if self.config.positions is None:
            return x
        if self.positions is not None:
            return x + self.positions(place)
        return x + sinusoids(longest, x.shape[2], x.device).to(x.dtype)[place]


class EncoderForSequenceClassification(PreTrainedModel):
    """The encoder with two layers on its pooled vector: linear, ReLU, linear. -> .logits (batch, num_labels).

    labels: (batch) classes, for the loss of transformers' trainers.
    """

    config_class = EncoderConfig
    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Layer"]
    _supports_sdpa = True
    _init_weights = drawn
    initialize_weights = completed

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        hidden = config.classifier_hidden or config.hidden_size
        self.dense = nn.Linear(config.hidden_size, hidden)
        self.classifier = nn.Linear(hidden, config.num_labels or 2)
        for made in (self.dense, self.classifier):
            nn.init.normal_(made.weight, std=config.initializer_range)
            nn.init.zeros_(made.bias)
        self._without_values = self.dense.weight.is_meta
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput:
        found = self.encoder(input_ids, attention_mask, inputs_embeds, output_hidden_states)
        logits = self.classifier(torch.relu(self.dense(found.pooler_output)))
        loss = None if labels is None else nn.functional.cross_entropy(logits.float(), labels)
        out = SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=found.hidden_states)
        return out if return_dict is not False else out.to_tuple()  # type: ignore[return-value]


def _mean(x: Tensor, mask: Tensor | None, total: bool) -> Tensor:
    """The mean (or the total) over what the mask leaves: (batch, n, width) -> (batch, width)."""
    if mask is None:
        return x.sum(1) if total else x.mean(1)
    there = mask.to(x.dtype)[..., None]
    added = (x * there).sum(1)
    return added if total else added / there.sum(1).clamp(min=1)


register()
