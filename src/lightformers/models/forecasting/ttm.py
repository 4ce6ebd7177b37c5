"""Tiny Time Mixers: TSMixer's blocks at several patch lengths, pre-trained on many series, with a small decoder to tune."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightformers.errors import UserError
from lightformers.kernels.dropout import dropout
from lightformers.models.forecasting.initial import drawn_as_torch
from lightformers.models.forecasting.output import Forecast
from lightformers.models.forecasting.scale import scaled, squared_error
from lightformers.models.forecasting.ttm_config import LEAST, TinyTimeMixerConfig
from lightformers.models.registry import register
from lightformers.parts.patch_mixer import MixerBlock, coarser, finer, per_channel
from lightformers.parts.reconciliation import ChannelReconciliation
from lightformers.parts.series import patches

#: Parameters that fine-tuning leaves as they are: patterns for `train.forecasting.Epochs(frozen=...)`.
BACKBONE = ("backbone.*",)


class Level(nn.Module):
    """Blocks over patches that are cut `factor` times finer, and put together again."""

    def __init__(self, config: TinyTimeMixerConfig, level: int) -> None:
        super().__init__()
        factor = 2**level
        self.factor = 1 if config.hidden_size // factor <= LEAST else factor
        count, width = config.num_patches * self.factor, config.hidden_size // self.factor
        self.layers = nn.ModuleList(
            MixerBlock(count, width, config.mixing(config.dropout)) for _ in range(config.num_hidden_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.factor > 1:
            x = finer(x, self.factor)
        for layer in self.layers:
            x = layer(x)
        return coarser(x, self.factor) if self.factor > 1 else x


class Prefix(nn.Module):
    """(batch,) codes of sampling rates -> (1, batch, 1, width): a patch that is none. An unknown code counts as 0."""

    def __init__(self, config: TinyTimeMixerConfig) -> None:
        super().__init__()
        between = (config.patch_length + config.hidden_size) // 2
        self.embedding = nn.Embedding(config.frequencies, config.patch_length)
        self.fc1, self.fc2 = nn.Linear(config.patch_length, between), nn.Linear(between, config.hidden_size)

    def forward(self, codes: Tensor) -> Tensor:
        known = (codes >= 0) & (codes < self.embedding.num_embeddings)
        x = self.embedding(torch.where(known, codes, 0).long())
        return self.fc2(nn.functional.gelu(self.fc1(x)))[None, :, None]  # type: ignore[no-any-return]


class Backbone(nn.Module):
    """(batch, channels, patches, patch length) -> (patches, batch, channels, width), finest level first."""

    def __init__(self, config: TinyTimeMixerConfig) -> None:
        super().__init__()
        self.embedding = nn.Linear(config.patch_length, config.hidden_size)
        self.prefix = Prefix(config) if config.resolution_prefix else None
        self.levels = nn.ModuleList(Level(config, level) for level in reversed(range(max(config.levels, 1))))

    def forward(self, x: Tensor, frequency: Tensor | None = None) -> Tensor:
        batch, channels = x.shape[:2]
        x = self.embedding(x.permute(2, 0, 1, 3))
        if self.prefix is not None:
            codes = torch.zeros(batch, dtype=torch.long, device=x.device) if frequency is None else frequency
            first = self.prefix(codes).to(x.dtype)
            x = torch.cat([first.expand(1, batch, channels, first.shape[-1]), x])
        for level in self.levels:
            x = level(x)
        return x


class TinyTimeMixer(PreTrainedModel):
    """TTM (Ekambaram et al., NeurIPS 2024, arXiv 2401.03955). See `models.forecasting` for what it takes.

    The backbone is pre-trained on many series, channel by channel (`train.ttm`), and stays as it is when decoder and head
    are tuned (`BACKBONE`). A window longer than context_length is cut to its last steps.

    Differs from the official code: where forecasts are reconciled across channels, past and known values come in the scale
    of the window, as the forecasts do (there they come in the units of the data); what stands at known channels of the
    forecast is their given future; missing values are read as the mean; frequencies are `processors.series.FREQUENCIES`.
    """

    config_class = TinyTimeMixerConfig
    base_model_prefix = ""
    main_input_name = "past_values"
    _no_split_modules = ["MixerBlock"]
    _init_weights = drawn_as_torch
    config: Any

    def __init__(self, config: TinyTimeMixerConfig) -> None:
        super().__init__(config)
        width, channels = config.decoder_hidden_size, config.num_input_channels
        self.backbone = Backbone(config)
        same = width == config.hidden_size
        self.adapter = nn.Identity() if same else nn.Linear(config.hidden_size, width)
        self.decoder = nn.ModuleList(
            MixerBlock(
                config.num_patches, width, config.mixing(config.head_dropout),
                channels if config.decoder_mode == "mix_channel" else None,
            )
            for _ in range(config.decoder_num_layers)
        )  # fmt: skip
        self.head = nn.Linear(config.num_patches * width, config.head_length)
        known = config.known_channels
        self.targets = [place for place in range(channels or 0) if place not in known]
        self.reconciliation = (
            ChannelReconciliation(len(self.targets), len(known), config.channel_context, config.gated)
            if config.channel_context is not None
            else None
        )
        self._without_values = self.head.weight.is_meta
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
        """(batch, context_length or more, channels) -> .prediction (batch, prediction_length, channels).

        future_values: (batch, prediction_length, channels), read at known_channels, which must be given then. frequency:
        (batch,) codes, read by the prefix; None: all 0. The calendar is not read.
        """
        config = self.config
        if past_values.dim() == 3 and past_values.shape[1] > config.context_length:
            first = past_values.shape[1] - config.context_length
            past_values = past_values[:, first:]
            past_observed_mask = None if past_observed_mask is None else past_observed_mask[:, first:]
        series, window = scaled(past_values, past_observed_mask, config)
        x = self.backbone(patches(series, config.patch_length, config.patch_stride), frequency)
        x = self.adapter(x)
        for layer in self.decoder:
            x = layer(x)
        states = dropout(per_channel(x), config.head_dropout, self.training)
        y = self.head(states).transpose(1, 2)[:, : config.prediction_length]
        known = None
        if config.known_channels:
            known = self._known(future_values, y.shape)
        if self.reconciliation is not None:
            y = self._reconciled(
                y, series, known if window is None or known is None else window.shrink(known)
            )
        y = y if window is None else window.grow(y)
        if known is not None:
            given = [place in config.known_channels for place in range(y.shape[-1])]
            y = torch.where(torch.tensor(given, device=y.device), known, y)
        found = Forecast(prediction=y)
        return found if return_dict is not False else found.to_tuple()  # type: ignore[return-value]

    def _known(self, future: Tensor | None, shape: torch.Size) -> Tensor:
        if future is None or future.shape != shape:
            raise UserError(
                f"the future of channels {self.config.known_channels} is an input of this model: future_values is "
                f"{tuple(shape)}, not {None if future is None else tuple(future.shape)}"
            )
        return future

    def _reconciled(self, y: Tensor, series: Tensor, known: Tensor | None) -> Tensor:
        """y and known in the scale of the window; channels of known future are left alone."""
        targets, places = self.targets, self.config.known_channels
        future = None if known is None else known[..., places]
        made = self.reconciliation(y[..., targets], series[..., targets + places], future)
        if not places:
            return made  # type: ignore[no-any-return]
        order = [
            targets.index(c) if c in targets else len(targets) + places.index(c) for c in range(y.shape[-1])
        ]
        return torch.cat([made, y[..., places]], -1)[..., order]

    def training_loss(self, inputs: dict[str, Tensor], future: Tensor, seen: Tensor | None = None) -> Tensor:
        """Squared error over observed values of the channels that are forecast."""
        made = self(**inputs).prediction
        if self.config.known_channels:
            made, future = made[..., self.targets], future[..., self.targets]
            seen = None if seen is None else seen[..., self.targets]
        return squared_error(made, future, seen)


register()
