"""iTransformer: a token is the whole window of a variate, so attention mixes variates and not time steps."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from lightformers.errors import UserError
from lightformers.models.forecasting.initial import drawn_as_torch
from lightformers.models.forecasting.output import Forecast, check_past
from lightformers.models.registry import register
from lightformers.parts.encoder_layer import EncoderLayer
from lightformers.parts.series import Window

ATTENTIONS = ("softmax", "identity")
#: How the official scripts train on ETTh1, by horizon: preset, window, and fields of `train.forecasting.Epochs`. (The
#: official loop halves the rate from the third epoch on, the first two have the same.)
RECIPE: dict[int, dict[str, Any]] = {
    horizon: {
        "preset": f"itransformer-etth1-{horizon}", "context": 96, "epochs": 10, "patience": 3, "batch": 32, "lr": 1e-4,
        "schedule": "halve", "dropout": True,
    }
    for horizon in (96, 192, 336, 720)
}  # fmt: skip


class ITransformerConfig(PretrainedConfig):
    """What an `ITransformer` is made of; the defaults are the official code's.

    context_length, prediction_length: steps that are read and forecast. num_input_channels: variates; None: any number.
    num_time_features: calendar marks that are read, each as one more token; 0: the calendar is not read.
    hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, hidden_act, dropout, layer_norm_eps: of the
        layers, see `parts.encoder_layer`. head_dim: None: hidden_size / num_attention_heads.
    instance_norm: every variate of a window is brought to mean 0 and deviation 1, and its forecast back.
    attention: "identity" lets every token see itself alone (an ablation: queries and keys then do nothing).
    Raises UserError for settings that do not fit.
    """

    model_type = "lightformers-itransformer"

    def __init__(
        self,
        context_length: int = 96,
        prediction_length: int = 96,
        num_input_channels: int | None = None,
        num_time_features: int = 0,
        hidden_size: int = 512,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 8,
        head_dim: int | None = None,
        intermediate_size: int = 2048,
        hidden_act: str = "gelu",
        dropout: float = 0.1,
        layer_norm_eps: float = 1e-5,
        instance_norm: bool = True,
        attention: Literal["softmax", "identity"] = "softmax",
        **options: Any,
    ) -> None:
        if min(context_length, prediction_length, num_hidden_layers) < 1 or num_time_features < 0:
            raise UserError(
                f"a window of {context_length} steps, a horizon of {prediction_length}, {num_hidden_layers} layers and "
                f"{num_time_features} marks do not make a forecaster"
            )
        if attention not in ATTENTIONS:
            raise UserError(f"attention is one of {', '.join(ATTENTIONS)}, not {attention!r}")
        self.context_length, self.prediction_length = context_length, prediction_length
        self.num_input_channels, self.num_time_features = num_input_channels, num_time_features
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        self.num_attention_heads, self.head_dim = num_attention_heads, head_dim
        self.intermediate_size, self.hidden_act, self.dropout = intermediate_size, hidden_act, dropout
        self.layer_norm_eps, self.instance_norm, self.attention = layer_norm_eps, instance_norm, attention
        super().__init__(**options)


class ITransformer(PreTrainedModel):
    """Inverted transformer (Liu et al., ICLR 2024, arXiv 2310.06625). See `models.forecasting` for what it takes.

    One linear map, shared by variates and marks, makes a token of a window; post-norm layers without positions mix the
    tokens; a last linear map makes a variate's forecast of its token. So it is equivariant to the order of variates, and
    their number may differ from window to window. Where a value is missing its variate's mean is read.

    Differs from the official code: forecasts of marks are not computed rather than cut off; missing values.
    """

    config_class = ITransformerConfig
    base_model_prefix = ""
    main_input_name = "past_values"
    _no_split_modules = ["EncoderLayer"]
    _supports_sdpa = True
    _init_weights = drawn_as_torch
    config: Any

    def __init__(self, config: ITransformerConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Linear(config.context_length, config.hidden_size)
        self.layers = nn.ModuleList(
            EncoderLayer(
                config.hidden_size, config.num_attention_heads, config.intermediate_size, config.head_dim, config.hidden_act,
                config.dropout, window=1 if config.attention == "identity" else None, eps=config.layer_norm_eps,
            )
            for _ in range(config.num_hidden_layers)
        )  # fmt: skip
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.projector = nn.Linear(config.hidden_size, config.prediction_length)
        self._without_values = self.embedding.weight.is_meta
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
        """(batch, context_length, variates) -> .prediction (batch, prediction_length, variates).

        past_time_features: (batch, context_length, num_time_features), needed where the configuration names some. The
        calendar of the future, known channels and the frequency are not read.
        """
        check_past(past_values, past_observed_mask, self.config)
        window = Window.of(past_values, past_observed_mask, detach_mean=True)
        if self.config.instance_norm:
            series = window.shrink(past_values, past_observed_mask)
        elif past_observed_mask is not None:
            series = torch.where(past_observed_mask.bool(), past_values, window.mean)
        else:
            series = past_values
        tokens = series.transpose(1, 2)
        if self.config.num_time_features:
            tokens = torch.cat([tokens, self._marks(past_values, past_time_features)], 1)
        x = nn.functional.dropout(self.embedding(tokens), self.config.dropout, self.training)
        for layer in self.layers:
            x = layer(x)
        y = self.projector(self.norm(x)[:, : past_values.shape[2]]).transpose(1, 2)
        found = Forecast(prediction=window.grow(y) if self.config.instance_norm else y)
        return found if return_dict is not False else found.to_tuple()  # type: ignore[return-value]

    def _marks(self, past_values: Tensor, marks: Tensor | None) -> Tensor:
        """(batch, marks, context_length) of past_time_features."""
        wanted = (*past_values.shape[:2], self.config.num_time_features)
        if marks is None or marks.shape != wanted:
            given = "none" if marks is None else f"{tuple(marks.shape)}"
            raise UserError(
                f"this model reads {wanted[2]} marks of the calendar: past_time_features is {tuple(wanted)}, not {given}"
            )
        return marks.transpose(1, 2).to(past_values.dtype)


register()
