"""TSMixer: MLPs over the patches, the features and, if wanted, the channels of a window; two heads that correct forecasts."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, initialization

from lightformers.errors import UserError
from lightformers.kernels.dropout import dropout
from lightformers.models.forecasting.initial import as_torch_starts
from lightformers.models.forecasting.output import Forecast
from lightformers.models.forecasting.scale import scaled, squared_error
from lightformers.models.registry import register
from lightformers.parts.patch_mixer import LeftLinear, MixerBlock, Mixing, per_channel
from lightformers.parts.positions import sinusoids
from lightformers.parts.reconciliation import (
    ChannelReconciliation,
    HierarchyReconciliation,
    patch_sums,
)
from lightformers.parts.series import patch_count, patches

MODES = ("common_channel", "mix_channel", "hybrid")
POSITIONS = (None, "learned", "sinusoidal")
#: How the official notebook trains on ETTh1, by horizon: the preset, and the settings of the training loop. Its rate falls
#: linearly over 100 epochs of which it runs eight; it stops after five that gain less than 0.001.
RECIPE: dict[int, dict[str, Any]] = {
    horizon: {
        "preset": f"tsmixer-etth1-{horizon}", "context": 512, "epochs": 100, "patience": 5, "batch": 32, "lr": 1e-4,
        "schedule": "constant", "dropout": True,
    }
    for horizon in (96, 192)
}  # fmt: skip


class TSMixerConfig(PretrainedConfig):
    """What a `TSMixer` is made of; the defaults are those of the official notebook for ETTh1.

    context_length, prediction_length: steps read and forecast. num_input_channels: None for any number, which
        "common_channel" alone allows. patch_length, patch_stride: of the patches; stride None: no overlap.
    hidden_size, num_hidden_layers, expansion_factor, dropout, gated, norm, norm_eps: see `parts.patch_mixer`.
    head_dropout: before the forecast.
    mode: "common_channel" treats channels alike and apart; "mix_channel" mixes them in every layer; "hybrid" treats them
        apart and reconciles the forecasts of all channels, with `channel_context` steps on either side.
    hierarchy: steps of which sums are forecast too (the second reconciliation head); None: none.
    positions: None, "learned", or "sinusoidal", which is not trained.
    instance_norm: every channel of a window is brought to mean 0 and deviation 1, and its forecast back.
    initializer_range: weights start at N(0, so much) and biases at 0, as in transformers 5; None: as torch's constructors
        leave them, as in the releases with which the notebook was run.
    mask_ratio, mask_last: of masked pre-training: the share of patches that is hidden at random, or, where mask_last is
        given, so many at the end.
    Raises UserError for settings that do not fit.
    """

    model_type = "lightformers-tsmixer"

    def __init__(
        self,
        context_length: int = 512,
        prediction_length: int = 96,
        num_input_channels: int | None = None,
        patch_length: int = 8,
        patch_stride: int | None = None,
        hidden_size: int = 48,
        num_hidden_layers: int = 3,
        expansion_factor: int = 3,
        dropout: float = 0.5,
        head_dropout: float = 0.7,
        gated: bool = True,
        norm: Literal["layer", "batch"] = "layer",
        norm_eps: float = 1e-5,
        mode: Literal["common_channel", "mix_channel", "hybrid"] = "common_channel",
        channel_context: int = 1,
        hierarchy: int | None = None,
        positions: Literal["learned", "sinusoidal"] | None = None,
        instance_norm: bool = True,
        mask_ratio: float = 0.5,
        mask_last: int | None = None,
        initializer_range: float | None = 0.02,
        **options: Any,
    ) -> None:
        stride = patch_length if patch_stride is None else patch_stride
        count = patch_count(context_length, patch_length, stride)
        if min(prediction_length, hidden_size, num_hidden_layers) < 1:
            raise UserError(
                f"a horizon of {prediction_length}, a width of {hidden_size} and {num_hidden_layers} layers do not make a "
                "forecaster"
            )
        if mode not in MODES or positions not in POSITIONS:
            raise UserError(
                f"mode is one of {', '.join(MODES)} and positions None, 'learned' or 'sinusoidal', not {mode!r}, {positions!r}"
            )
        if mode != "common_channel" and not num_input_channels:
            raise UserError(f"{mode} is made for a certain number of channels: give num_input_channels")
        if not 0 <= head_dropout < 1 or not 0 <= mask_ratio < 1:
            raise UserError(f"head_dropout and mask_ratio are in [0, 1), not {head_dropout}, {mask_ratio}")
        if mask_last is not None and not 0 < mask_last < count:
            raise UserError(
                f"mask_last hides more than none and less than all {count} patches, not {mask_last}"
            )
        if hierarchy is not None and (hierarchy < 1 or prediction_length % hierarchy):
            raise UserError(
                f"hierarchy divides the horizon of {prediction_length} steps; {hierarchy} does not"
            )
        Mixing(expansion_factor, dropout, gated, norm, norm_eps)
        self.context_length, self.prediction_length = context_length, prediction_length
        self.num_input_channels = num_input_channels
        self.patch_length, self.patch_stride = patch_length, stride
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        self.expansion_factor, self.dropout, self.head_dropout = expansion_factor, dropout, head_dropout
        self.gated, self.norm, self.norm_eps = gated, norm, norm_eps
        self.mode, self.channel_context, self.hierarchy = mode, channel_context, hierarchy
        self.positions, self.instance_norm = positions, instance_norm
        self.mask_ratio, self.mask_last = mask_ratio, mask_last
        self.initializer_range = initializer_range
        super().__init__(**options)

    @property
    def num_patches(self) -> int:
        return patch_count(self.context_length, self.patch_length, self.patch_stride)

    @property
    def mixing(self) -> Mixing:
        return Mixing(self.expansion_factor, self.dropout, self.gated, self.norm, self.norm_eps)


class PatchMixer(nn.Module):
    """The backbone: (batch, channels, patches, patch length) -> (patches, batch, channels, width)."""

    def __init__(self, config: TSMixerConfig) -> None:
        super().__init__()
        width, count = config.hidden_size, config.num_patches
        self.embedding = nn.Linear(config.patch_length, width)
        self.positions = None
        if config.positions == "learned":
            self.positions = nn.Parameter(0.1 * torch.randn(count, width))
        elif config.positions == "sinusoidal":
            table = sinusoids(count, width)
            table = table - table.mean()
            self.positions = nn.Parameter(table / (10 * table.std()), requires_grad=False)
        channels = config.num_input_channels if config.mode == "mix_channel" else None
        self.layers = nn.ModuleList(
            MixerBlock(count, width, config.mixing, channels) for _ in range(config.num_hidden_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x.permute(2, 0, 1, 3))
        if self.positions is not None:
            x = x + self.positions[:, None, None].to(x.dtype)
        for layer in self.layers:
            x = layer(x)
        return x


@torch.no_grad()
def started(module: nn.Module, deviation: float | None, without_values: bool) -> None:
    """Linear layers at N(0, deviation), biases 0, norms at 1; what was loaded bears transformers' mark and stays.

    deviation: None: as torch's constructors leave them. without_values: they were built without memory for that.
    """
    if deviation is None:
        if without_values:
            as_torch_starts(module)
        return
    if isinstance(module, (nn.Linear, LeftLinear)):
        initialization.normal_(module.weight, std=deviation)
        initialization.zeros_(module.bias)
    elif isinstance(module, (nn.LayerNorm, nn.BatchNorm1d)):
        initialization.ones_(module.weight)
        initialization.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm1d) and module.running_mean is not None:
            initialization.zeros_(module.running_mean)
            initialization.ones_(module.running_var)  # type: ignore[arg-type]


class TSMixer(PreTrainedModel):
    """TSMixer (Ekambaram et al., KDD 2023, arXiv 2306.09364). See `models.forecasting` for what it takes.

    A window is scaled by its own mean and deviation, cut into patches and embedded; blocks of gated MLPs mix patches and
    features (and channels, in mode "mix_channel"); a linear map of all states of a channel, shared by the channels, gives
    its forecast. The two reconciliation heads are `parts.reconciliation`'s.

    Differs from transformers' PatchTSMixer, whose weights `tsmixer_convert` reads: a missing value is read as the mean of
    the window instead of what stands in its place; both reconciliation heads, which it lacks. Dropout is drawn as bits
    (`kernels.dropout`). The sinusoidal table is the common one, sines and cosines in turn.
    """

    config_class = TSMixerConfig
    base_model_prefix = ""
    main_input_name = "past_values"
    _no_split_modules = ["MixerBlock"]
    config: Any

    def __init__(self, config: TSMixerConfig) -> None:
        super().__init__(config)
        features = config.num_patches * config.hidden_size
        self.mixer = PatchMixer(config)
        self.head = nn.Linear(features, config.prediction_length)
        self.hierarchy = (
            HierarchyReconciliation(features, config.prediction_length, config.hierarchy)
            if config.hierarchy
            else None
        )
        self.channels = (
            ChannelReconciliation(
                config.num_input_channels or 1, context=config.channel_context, gated=config.gated
            )
            if config.mode == "hybrid"
            else None
        )
        self._without_values = self.head.weight.is_meta
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        started(module, self.config.initializer_range, self._without_values)

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
        """(batch, context_length, channels) -> .prediction (batch, prediction_length, channels).

        Calendar, known channels and frequency are not read.
        """
        found = Forecast(prediction=self._forecast(past_values, past_observed_mask)[0])
        return found if return_dict is not False else found.to_tuple()  # type: ignore[return-value]

    def _forecast(self, past: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Forecast (batch, horizon, channels) and, with a hierarchy, sums (batch, horizon / hierarchy, channels)."""
        series, window = scaled(past, mask, self.config)
        config = self.config
        states = per_channel(self.mixer(patches(series, config.patch_length, config.patch_stride)))
        states = dropout(states, config.head_dropout, self.training)
        y, sums = self.head(states), None
        if self.hierarchy is not None:
            y, sums = self.hierarchy(y, states)
            sums = sums.transpose(1, 2)
        y = y.transpose(1, 2)
        if self.channels is not None:
            y = self.channels(y, series)
        if window is None:
            return y, sums
        if sums is not None:
            sums = sums * window.deviation + self.config.hierarchy * window.mean
        return window.grow(y), sums

    def training_loss(self, inputs: dict[str, Tensor], future: Tensor, seen: Tensor | None = None) -> Tensor:
        """Squared error of the forecast over observed values; with a hierarchy also of the sums, and of the sums of the
        forecast against them, both over the square of their length.

        future, seen: (batch, prediction_length, channels).
        """
        made, sums = self._forecast(inputs["past_values"], inputs.get("past_observed_mask"))
        error = squared_error(made, future, seen)
        if sums is None:
            return error
        size = self.config.hierarchy
        whole = None if seen is None else patch_sums(seen.long(), size) == size
        true = patch_sums(future if seen is None else torch.where(seen.bool(), future, 0.0), size)
        apart = squared_error(sums, true, whole) + squared_error(patch_sums(made, size), sums, whole)
        return error + apart / size**2


register()
