"""Trend and season, a linear map each (DLinear: Zeng et al., AAAI 2023, arXiv 2205.13504).

A moving average is the trend, what is left of it the season; each is mapped from the past to the future by one matrix that
all channels share, and the two forecasts are added. What differs from the paper: a window is brought to mean 0 and deviation
1 first (`normalize`; without it, the paper's model), maps begin at 0 instead of at random, so that little training leaves
small weights, and the future of known channels may be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel

from lightformers.errors import UserError
from lightformers.models.forecasting.output import Forecast, check_past
from lightformers.models.registry import register
from lightformers.parts.decomposition import moving_average
from lightformers.parts.series import Window


class LinearForecasterConfig(PretrainedConfig):
    """kernel: steps of the moving average, odd. normalize: every window is scaled by itself first.

    num_input_channels: None: any number; needed for `known_channels`, the places of those whose future is an input.
    individual: maps of its own for every channel, which then need a number. The paper's model has 336 steps of context.
    """

    model_type = "lightformers-linear-forecaster"

    def __init__(
        self,
        context_length: int = 336,
        prediction_length: int = 96,
        num_input_channels: int | None = None,
        kernel: int = 25,
        normalize: bool = True,
        individual: bool = False,
        known_channels: Sequence[int] = (),
        **options: Any,
    ) -> None:
        if min(context_length, prediction_length) < 1:
            raise UserError(
                f"context and horizon are at least 1, not {context_length} and {prediction_length}"
            )
        if kernel < 1 or kernel % 2 == 0:
            raise UserError(f"a moving average is over an odd number of steps, not {kernel}")
        if (individual or known_channels) and not num_input_channels:
            raise UserError(
                "individual maps and known channels need the number of channels: num_input_channels"
            )
        if any(not 0 <= k < (num_input_channels or 0) for k in known_channels):
            raise UserError(
                f"known_channels {list(known_channels)} are not among the {num_input_channels} channels"
            )
        if known_channels and len(set(known_channels)) == num_input_channels:
            raise UserError("the future of all channels is known: nothing is left to forecast")
        self.context_length, self.prediction_length = context_length, prediction_length
        self.num_input_channels, self.kernel, self.normalize = num_input_channels, kernel, normalize
        self.individual, self.known_channels = individual, sorted(set(known_channels))
        super().__init__(**options)


class LinearForecaster(PreTrainedModel):
    """`forward(past_values, past_observed_mask, future_values) -> Forecast`; shapes in `models.forecasting`.

    A missing value counts as the mean of its window. Known channels act step by step, by weights that all steps share: what
    they explain is taken off the past, and added to the forecast where their future says so.
    """

    config_class = LinearForecasterConfig
    base_model_prefix = "forecaster"
    main_input_name = "past_values"

    def __init__(self, config: LinearForecasterConfig) -> None:
        super().__init__(config)
        maps = int(config.num_input_channels or 1) if config.individual else 1
        self.trend = _Map(maps, config.context_length, config.prediction_length)
        self.season = _Map(maps, config.context_length, config.prediction_length)
        self.known: nn.Linear | None = None
        if config.known_channels:
            others = int(config.num_input_channels or 0) - len(config.known_channels)
            self.known = nn.Linear(len(config.known_channels), others, bias=False)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        for value in module.parameters(recurse=False):
            nn.init.zeros_(value)

    def forward(
        self, past_values: Tensor, past_observed_mask: Tensor | None = None, future_values: Tensor | None = None
    ) -> Forecast:  # fmt: skip
        check_past(past_values, past_observed_mask, self.config)
        x, mask = past_values, past_observed_mask
        if mask is not None:
            x = torch.where(mask.bool(), x, 0.0)
        if self.known is not None:
            x = x - self._explained(x)
        window = Window.of(x, mask)
        scaled = window.shrink(x, mask)
        if not self.config.normalize:
            scaled = scaled * window.deviation + window.mean
        trend = moving_average(scaled, self.config.kernel)
        y = self.trend(trend) + self.season(scaled - trend)
        if self.config.normalize:
            y = window.grow(y)
        if self.known is not None:
            if future_values is None:
                raise UserError("this model reads the future of known channels: give future_values")
            y = y + self._explained(future_values)
        return Forecast(prediction=y)

    @torch.no_grad()
    def start_known(self, rows: Tensor) -> None:
        """Weights of the known channels by least squares of steps on steps, to learn on from.

        rows: (n, channels) of the training part, in the units of past_values, NaN where missing. Few rows change nothing.
        """
        if self.known is None:
            return
        known = self.config.known_channels
        others = [c for c in range(rows.shape[1]) if c not in known]
        steps = rows.double().diff(dim=0)
        steps = steps[torch.isfinite(steps).all(1)]
        if len(steps) > 4 * len(known):
            found = torch.linalg.lstsq(steps[:, known], steps[:, others], driver="gelsd").solution
            self.known.weight.copy_(found.T)

    def _explained(self, values: Tensor) -> Tensor:
        """(batch, n, channels) -> the same shape: what known channels say of the others; 0 for themselves."""
        assert self.known is not None
        known = self.config.known_channels
        said = iter(self.known(values[..., known]).unbind(-1))
        nothing = torch.zeros_like(values[..., 0])
        return torch.stack([nothing if c in known else next(said) for c in range(values.shape[-1])], -1)


class _Map(nn.Module):
    """(batch, length, channels) -> (batch, horizon, channels), by one matrix or one for each channel."""

    def __init__(self, maps: int, length: int, horizon: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(maps, horizon, length))
        self.bias = nn.Parameter(torch.zeros(maps, horizon))

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        if len(self.weight) == 1:
            return F.linear(x, self.weight[0], self.bias[0]).transpose(1, 2)
        return (torch.einsum("bcl,chl->bch", x, self.weight) + self.bias).transpose(1, 2)


register()
