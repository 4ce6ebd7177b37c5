"""GPHT: causal stages from coarse to fine time resolution that forecast the next segment, again and again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from lightformers.errors import UserError
from lightformers.models.forecasting.initial import drawn_as_torch
from lightformers.models.forecasting.output import Forecast, check_past
from lightformers.models.registry import register
from lightformers.parts.encoder_layer import EncoderLayer
from lightformers.parts.positions import sinusoids
from lightformers.parts.series import Window

#: Patterns of the parameters that stay as pre-training left them when the model is tuned to a series: all but the heads.
BACKBONE = ("stages.*.embedding.*", "stages.*.layers.*", "stages.*.norm.*")

#: The most stages: as many as anatomy knows.
STAGES = 8


def shifted(said: Tensor, token: int) -> Tensor:
    """(..., length) forecasts of the next segment -> (..., length) at the place they are about; zeros at the first."""
    return nn.functional.pad(said, (token, 0))[..., : said.shape[-1]]


class GPHTConfig(PretrainedConfig):
    """What a `GPHT` is made of; the defaults are the paper's.

    context_length: steps that are read, a multiple of token_length, the steps of a segment. prediction_length: steps that
    `forward` forecasts; `GPHT.forecast` does any number. pooling: of each stage, how many steps become one, a divisor of
    token_length. num_hidden_layers: of each stage. num_input_channels: None: any number, each is read for itself.
    instance_norm: every channel of a window is brought to mean 0 and deviation 1. Others: see `parts.encoder_layer`.
    Raises UserError for settings that do not fit.
    """

    model_type = "lightformers-gpht"

    def __init__(
        self,
        context_length: int = 336,
        prediction_length: int = 96,
        num_input_channels: int | None = None,
        token_length: int = 48,
        pooling: Sequence[int] = (8, 4, 2, 1),
        hidden_size: int = 512,
        num_hidden_layers: int = 3,
        num_attention_heads: int = 8,
        head_dim: int | None = None,
        intermediate_size: int = 2048,
        hidden_act: str = "gelu",
        dropout: float = 0.1,
        layer_norm_eps: float = 1e-5,
        instance_norm: bool = True,
        **options: Any,
    ) -> None:
        if prediction_length < 1:
            raise UserError(f"a forecast is of at least one step, not {prediction_length}")
        if token_length < 1 or context_length < token_length or context_length % token_length:
            raise UserError(
                f"a window of {context_length} steps is not made of whole segments of {token_length}"
            )
        if not 1 <= len(pooling) <= STAGES or any(rate < 1 or token_length % rate for rate in pooling):
            raise UserError(
                f"pooling {list(pooling)}: one to {STAGES} stages, each with a divisor of the {token_length} steps of a segment"
            )
        if num_hidden_layers < 1:
            raise UserError(f"a stage has at least one layer, not {num_hidden_layers}")
        self.context_length, self.prediction_length = context_length, prediction_length
        self.num_input_channels, self.token_length = num_input_channels, token_length
        self.pooling = list(pooling)
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        self.num_attention_heads, self.head_dim = num_attention_heads, head_dim
        self.intermediate_size, self.hidden_act, self.dropout = intermediate_size, hidden_act, dropout
        self.layer_norm_eps, self.instance_norm = layer_norm_eps, instance_norm
        super().__init__(**options)


class Stage(nn.Module):
    """(series, length) -> (series, length): at every segment, the forecast of the segment after it.

    The largest of each `rate` steps is read; causal layers over segments, with sinusoidal positions.
    """

    def __init__(self, config: GPHTConfig, rate: int) -> None:
        super().__init__()
        self.rate, self.token, self.dropout = rate, config.token_length, config.dropout
        self.embedding = nn.Linear(config.token_length // rate, config.hidden_size, bias=False)
        self.layers = nn.ModuleList(
            EncoderLayer(
                config.hidden_size, config.num_attention_heads, config.intermediate_size, config.head_dim, config.hidden_act,
                config.dropout, causal=True, eps=config.layer_norm_eps,
            )
            for _ in range(config.num_hidden_layers)
        )  # fmt: skip
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.token_length)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x if self.rate == 1 else nn.functional.max_pool1d(x[:, None], self.rate)[:, 0]
        y = self.embedding(pooled.unflatten(1, (-1, self.token // self.rate)))
        y = y + sinusoids(y.shape[1], y.shape[2], y.device).to(y.dtype)
        y = nn.functional.dropout(y, self.dropout, self.training)
        for layer in self.layers:
            y = layer(y)
        return self.head(self.norm(y)).flatten(1)


class GPHT(PreTrainedModel):
    """Generative pretrained hierarchical transformer (Liu et al., KDD 2024, arXiv 2402.16516).

    Stage after stage forecasts the next segment at every segment of the window; what it got wrong there is what the next
    stage reads, and the forecasts add up. Longer horizons come segment by segment: the forecast joins the window, which is
    normalised anew. So one set of weights serves every horizon. Where a value is missing its channel's mean is read.

    Differs from the official code: missing values; a horizon shorter than a segment may be trained on.
    """

    config_class = GPHTConfig
    base_model_prefix = ""
    main_input_name = "past_values"
    _no_split_modules = ["EncoderLayer"]
    _supports_sdpa = True
    _init_weights = drawn_as_torch
    config: Any

    def __init__(self, config: GPHTConfig) -> None:
        super().__init__(config)
        self.stages = nn.ModuleList(Stage(config, rate) for rate in config.pooling)
        self._without_values = next(self.parameters()).is_meta
        self.post_init()

    def forward(
        self,
        past_values: Tensor,
        past_observed_mask: Tensor | None = None,
        past_time_features: Tensor | None = None,
        future_time_features: Tensor | None = None,
        future_values: Tensor | None = None,
        frequency: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> Forecast:
        """(batch, context_length, channels) -> .prediction (batch, prediction_length, channels). No other input is read."""
        found = Forecast(
            prediction=self.forecast(past_values, self.config.prediction_length, past_observed_mask)
        )
        return found if return_dict is not False else found.to_tuple()  # type: ignore[return-value]

    def forecast(self, past_values: Tensor, horizon: int, past_observed_mask: Tensor | None = None) -> Tensor:
        """(batch, context_length, channels) -> (batch, horizon, channels), a segment at a time."""
        if horizon < 1:
            raise UserError(f"a forecast is of at least one step, not {horizon}")
        check_past(past_values, past_observed_mask, self.config)
        token, x, mask, parts = self.config.token_length, past_values, past_observed_mask, []
        for _ in range(-(-horizon // token)):
            parts.append(self.next_segments(x, mask)[:, -token:])
            x = torch.cat([x[:, token:], parts[-1]], 1)
            if mask is not None:
                mask = torch.cat([mask[:, token:].bool(), torch.ones_like(mask[:, :token]).bool()], 1)
        return torch.cat(parts, 1)[:, :horizon]

    def next_segments(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(batch, context_length, channels) -> the same: place k holds the forecast of place k + token_length."""
        window = Window.of(x, mask)
        if self.config.instance_norm:
            series = window.shrink(x, mask)
        else:
            series = x if mask is None else torch.where(mask.bool(), x, window.mean)
        rest = series.transpose(1, 2).flatten(0, 1)
        total = torch.zeros_like(rest)
        for number, stage in enumerate(self.stages):
            said = stage(rest)
            total = total + said
            if number + 1 < len(self.stages):
                rest = rest - shifted(said, self.config.token_length)
        y = total.unflatten(0, (-1, x.shape[2])).transpose(1, 2)
        return window.grow(y) if self.config.instance_norm else y

    def training_loss(
        self, inputs: Mapping[str, Tensor], future_values: Tensor, future_observed_mask: Tensor | None = None
    ) -> Tensor:
        """Mean squared error at every segment: of the window's second to last, and of the segment after it.

        inputs: of `forward`. future_values: (batch, horizon, channels); what lies beyond a segment is not learned from.
        """
        x, mask, token = inputs["past_values"], inputs.get("past_observed_mask"), self.config.token_length
        check_past(x, mask, self.config)
        wanted = torch.cat([x[:, token:], future_values[:, :token]], 1)
        error = (self.next_segments(x, mask)[:, : wanted.shape[1]] - wanted).square()
        if mask is None and future_observed_mask is None:
            return error.mean()
        there = [
            torch.ones_like(v).bool() if seen is None else seen.bool()
            for v, seen in ((x, mask), (future_values, future_observed_mask))
        ]
        seen = torch.cat([there[0][:, token:], there[1][:, :token]], 1)
        return torch.where(seen, error, 0.0).sum() / seen.sum().clamp(min=1)


register()
