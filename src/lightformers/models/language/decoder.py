"""The one decoder-only language model: its layers name mixers and feed-forwards; all else is here once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from lightformers.errors import UserError
from lightformers.models.language.layers import NORMS, build, checked, completed, drawn, norm
from lightformers.models.language.states import States
from lightformers.models.registry import register
from lightformers.parts.bit_linear import BitLinear
from lightformers.parts.mixers import places, starts
from lightformers.parts.recording import recorded


class DecoderConfig(PretrainedConfig):
    """What a `Decoder` is made of.

    layers: from the bottom, each {"mixer": {"kind": ..., options}, "ffn": {"kind": ..., options}}; kinds are rows of
        `parts.mixers.table` and `parts.ffn.table`, None or absent where there is none. "mixer_norm", "ffn_norm": "pre"
        (x + f(norm(x))) or "post-output" (x + norm(f(x))). `models.patterns.stack` writes
        patterns.
    norm, norm_eps: "rms" or "layer", of all layers and the end. dropout: of the embeddings and of what layers add.
    positions: "learned" adds a table of max_position_embeddings rows. max_position_embeddings: longer texts are refused;
        None: no limit (rotary positions and recurrences know none).
    embedding_scale: a factor on the embeddings, "sqrt" for the root of the width. residual_fp32: the residual stream is
        float32 even with half weights. initializer_range: deviation of tables and head; parts start as they say.
    head: "linear", or "bit": its weights are ternary (`parts.bit_linear`).
    Raises UserError for unknown kinds, options and settings.
    """

    model_type = "lightformers-decoder"

    def __init__(
        self,
        vocab_size: int = 256,
        hidden_size: int = 128,
        layers: Sequence[Mapping[str, Any]] = (),
        norm: str = "rms",
        norm_eps: float = 1e-5,
        tie_word_embeddings: bool = True,
        max_position_embeddings: int | None = None,
        positions: Literal["learned"] | None = None,
        dropout: float = 0.0,
        embedding_scale: float | Literal["sqrt"] | None = None,
        residual_fp32: bool = False,
        initializer_range: float = 0.02,
        head: Literal["linear", "bit"] = "linear",
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        **options: Any,
    ) -> None:
        if min(vocab_size, hidden_size) < 1:
            raise UserError(
                f"a vocabulary of {vocab_size} and a width of {hidden_size} leave nothing to model"
            )
        if norm not in NORMS:
            raise UserError(f"norm is one of {', '.join(NORMS)}, not {norm!r}")
        if positions not in (None, "learned"):
            raise UserError(f"positions are 'learned' or None (mixers know the order), not {positions!r}")
        if positions and not max_position_embeddings:
            raise UserError("learned positions need max_position_embeddings, the rows of their table")
        if head not in ("linear", "bit"):
            raise UserError(f"head is 'linear' or 'bit' (of ternary weights), not {head!r}")
        self.vocab_size, self.hidden_size, self.head = vocab_size, hidden_size, head
        self.layers = checked(layers, causal=True)
        self.norm, self.norm_eps = norm, norm_eps
        self.max_position_embeddings, self.positions = max_position_embeddings, positions
        self.dropout, self.embedding_scale = dropout, embedding_scale
        self.residual_fp32, self.initializer_range = residual_fp32, initializer_range
        ids: dict[str, Any] = {
            "bos_token_id": bos_token_id,
            "eos_token_id": eos_token_id,
            "pad_token_id": pad_token_id,
        }
        ids["tie_word_embeddings"] = tie_word_embeddings
        super().__init__(**ids, **options)
        for name, value in ids.items():
            setattr(self, name, value)  # releases of transformers differ in which of these they keep

    @property
    def num_hidden_layers(self) -> int:
        return len(self.layers)


class Decoder(PreTrainedModel, GenerationMixin):
    """(batch, n) tokens -> .logits (batch, n, vocabulary), scores of the token that follows each one.

    attention_mask: (batch, n) whole numbers, 0 at padding; every run of one positive number is a document of its own
    (packing): 1 1 1 2 2 holds two. With past_key_values it may also cover the past.
    `generate` works with prompts padded on the left, greedy, sampling or with beams; its state per token is what the
    mixers keep (`States`).
    """

    config_class = DecoderConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _no_split_modules = ["Layer"]
    _tied_weights_keys = {"head.weight": "embedding.weight"}
    _is_stateful = True  # transformers then refuses assisted decoding
    _supports_sdpa = True
    _init_weights = drawn
    initialize_weights = completed
    config: DecoderConfig
    embedding: Any  # may be exchanged for other tables and heads
    head: Any
    norm: Any
    layers: Any

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        width, rows = config.hidden_size, config.max_position_embeddings
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.positions = nn.Embedding(rows, width) if config.positions and rows else None
        self.layers = build(config.layers, width, config.norm, config.norm_eps, config.dropout)  # fmt: skip
        self.norm = norm(config.norm, width, config.norm_eps)
        self.head = BitLinear(width, config.vocab_size) if config.head == "bit" else nn.Linear(width, config.vocab_size, bias=False)  # fmt: skip
        for table in (self.embedding, self.positions, self.head):
            if table is not None:
                nn.init.normal_(table.weight, std=config.initializer_range)
        self.loss_type = "ForCausalLM"
        # transformers builds on the meta device when it loads: only then values are given afterwards
        self._without_values = self.embedding.weight.is_meta
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `forward` makes the states itself

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embedding = value

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.head = new_embeddings

    def begin(self, batch: int) -> States:
        """The states before the first token of `batch` texts."""
        weight = self.embedding.weight
        states = [layer.begin(batch, weight.device, weight.dtype) for layer in self.layers]
        return States(states, torch.zeros(batch, dtype=torch.long, device=weight.device))

    def features(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: States | None = None,
        inputs_embeds: Tensor | None = None,
        every: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """What the head reads: (batch, n, width) after the last norm; with `every` also what each layer read.

        past_key_values: changed in place by the tokens. Raises UserError for texts beyond the limit, masks that do not
        fit, and states of another model or batch.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("give input_ids or inputs_embeds, one of them")
        x = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        if x.ndim != 3 or x.shape[1] < 1:
            raise UserError(f"tokens are (batch, n) with n at least 1, got the shape {tuple(x.shape[:-1])}")
        past = past_key_values
        if past is not None and (len(past) != len(self.layers) or past.batch_size != len(x)):
            raise UserError(
                f"past_key_values hold {len(past)} layers of {past.batch_size} texts; here are {len(self.layers)} layers of {len(x)}"
            )
        mask = self._mask(attention_mask, x, past)
        if self.config.embedding_scale is not None:
            scale = self.config.embedding_scale
            x = x * (math.sqrt(x.shape[-1]) if scale == "sqrt" else scale)
        x = self._place(x, mask, past)
        if self.config.dropout:
            x = nn.functional.dropout(x, self.config.dropout, self.training)
        x = x.float() if self.config.residual_fp32 else x
        read: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            read.append(x)
            if past is None:
                x = layer(x, mask)
            elif x.shape[1] == 1 and mask is None:
                y, past.states[i] = layer.step(x[:, 0], past.states[i])
                x = y[:, None]
            else:
                x, past.states[i] = layer.extend(x, past.states[i], mask)
        if past is not None:
            past.seen += x.shape[1]
            past.count = past.count + (x.shape[1] if mask is None else (mask != 0).sum(1))
        x = self.norm(x.to(self.norm.weight.dtype))
        return x, ((*read, x) if every else None)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: States | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """labels: (batch, n) tokens, -100 where none counts, shifted here; the first token of a packed document never
        counts. use_cache: None: only where past_key_values are given. logits_to_keep: the last ones, 0 for all."""
        if options.get("position_ids") is not None:
            raise UserError("positions are read from attention_mask: leave position_ids out")
        if use_cache and past_key_values is None:
            past_key_values = self.begin(len(input_ids if inputs_embeds is None else inputs_embeds))  # type: ignore[arg-type]
        x, read = self.features(
            input_ids, attention_mask, past_key_values, inputs_embeds, bool(output_hidden_states)
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.head(x[:, kept])
        loss = None
        if labels is not None:
            if attention_mask is not None and attention_mask.shape == labels.shape:
                first = starts(attention_mask.long())
                labels = labels.masked_fill(first, -100)
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **options)
        out = CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=past_key_values, hidden_states=read
        )  # type: ignore[arg-type]
        return out if return_dict is not False else out.to_tuple()  # type: ignore[return-value]

    def prepare_inputs_for_generation(self, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers does it; prompts padded on the right are refused, their next token would follow padding."""
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.ndim == 2 and bool((mask[:, -1] == 0).any()):
            raise UserError("generate needs prompts padded on the left: tokenizer.padding_side = 'left'")
        return super().prepare_inputs_for_generation(input_ids, *args, **kwargs)  # type: ignore[misc]

    def _mask(self, mask: Tensor | None, x: Tensor, past: States | None) -> Tensor | None:
        """The mask of these tokens, or None where nothing is padded and one document is in each row."""
        if mask is None:
            return None
        n, seen = x.shape[1], 0 if past is None else past.seen
        if mask.ndim != 2 or mask.shape[0] != x.shape[0] or mask.shape[1] not in (n, seen + n):
            raise UserError(
                f"attention_mask is (batch, n), here {(len(x), n)}{f' or {(len(x), seen + n)}' if seen else ''}, not {tuple(mask.shape)}"
            )
        mask = (mask if past is None else mask[:, -n:]).long()
        if recorded():
            return mask
        if past is not None and bool((mask.amax(1, keepdim=True) != mask).logical_and(mask != 0).any()):
            raise UserError("tokens that follow a state are one document in each row: pack without use_cache")
        return None if bool((mask == mask[:, :1]).all() and (mask != 0).all()) else mask

    def _place(self, x: Tensor, mask: Tensor | None, past: States | None) -> Tensor:
        """The embeddings with learned positions added. Raises UserError beyond the limit."""
        limit = self.config.max_position_embeddings
        if limit is None:
            return x
        n, seen = x.shape[1], 0 if past is None else past.seen
        if self.positions is None and seen + n <= limit:
            return x
        if past is not None:
            new = torch.ones(1, n, device=x.device, dtype=torch.long) if mask is None else (mask != 0).long()
            place = (past.count[:, None] + new.cumsum(1) - 1).clamp(min=0)
        else:
            place = torch.arange(n, device=x.device)[None] if mask is None else places(mask)
        if seen + n > limit and (longest := int(place.max()) + 1) > limit:
            raise UserError(
                f"{longest} tokens are more than the {limit} positions that this model was made for"
            )
        return x if self.positions is None else x + self.positions(place)


register()
