"""What a Tiny Time Mixer is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from transformers import PretrainedConfig

from lightformers.errors import UserError
from lightformers.parts.patch_mixer import Mixing
from lightformers.parts.series import patch_count

#: A level that would leave no more than so many features is not cut finer.
LEAST = 4


class TinyTimeMixerConfig(PretrainedConfig):
    """What a `TinyTimeMixer` is made of; the defaults are release 1's for 512 steps.

    context_length, prediction_length: steps read and forecast. head_length: steps that the head was made for; only the
        first prediction_length are given. None: as many. num_input_channels: None for any number.
    patch_length, patch_stride, hidden_size, expansion_factor, dropout, gated, norm, norm_eps: as in `TSMixerConfig`.
    levels: of adaptive patching, each with num_hidden_layers blocks; 0: none, one level of whole patches.
    resolution_prefix: one more patch is made of the rate of sampling, one of `frequencies` codes.
    decoder_hidden_size, decoder_num_layers, decoder_mode ("common_channel" or "mix_channel"), head_dropout: the decoder's.
    channel_context: forecasts of all channels are reconciled with so many steps on either side; None: they are not.
    known_channels: places of channels whose future is known, which this needs; they are given as future_values.
    Raises UserError for settings that do not fit.
    """

    model_type = "lightformers-ttm"

    def __init__(
        self,
        context_length: int = 512,
        prediction_length: int = 96,
        head_length: int | None = None,
        num_input_channels: int | None = None,
        patch_length: int = 64,
        patch_stride: int | None = None,
        hidden_size: int = 192,
        num_hidden_layers: int = 2,
        levels: int = 3,
        expansion_factor: int = 2,
        dropout: float = 0.2,
        gated: bool = True,
        norm: Literal["layer", "batch"] = "layer",
        norm_eps: float = 1e-5,
        resolution_prefix: bool = False,
        frequencies: int = 14,
        decoder_hidden_size: int = 128,
        decoder_num_layers: int = 2,
        decoder_mode: Literal["common_channel", "mix_channel"] = "common_channel",
        head_dropout: float = 0.2,
        channel_context: int | None = None,
        known_channels: Sequence[int] = (),
        instance_norm: bool = True,
        **options: Any,
    ) -> None:
        stride = patch_length if patch_stride is None else patch_stride
        patch_count(context_length, patch_length, stride)
        length, known = head_length or prediction_length, sorted({int(place) for place in known_channels})
        if not 0 < prediction_length <= length:
            raise UserError(f"a head of {length} steps cannot forecast {prediction_length}")
        if (
            min(hidden_size, num_hidden_layers, decoder_hidden_size, frequencies) < 1
            or min(levels, decoder_num_layers) < 0
        ):
            raise UserError(
                "widths, layers and frequencies are at least 1, levels and layers of the decoder at least 0"
            )
        for level in range(levels):
            if hidden_size // 2**level > LEAST and hidden_size % 2**level:
                raise UserError(
                    f"{levels} levels of adaptive patching halve the width up to {levels - 1} times: {hidden_size} is no "
                    f"multiple of {2**level}"
                )
        if decoder_mode not in ("common_channel", "mix_channel"):
            raise UserError(f"decoder_mode is 'common_channel' or 'mix_channel', not {decoder_mode!r}")
        if (decoder_mode == "mix_channel" or channel_context is not None) and not num_input_channels:
            raise UserError("channels are mixed for a certain number of them: give num_input_channels")
        if known:
            if channel_context is None:
                raise UserError(
                    "known channels are read where forecasts are reconciled: give channel_context"
                )
            if known[0] < 0 or known[-1] >= (num_input_channels or 0) or len(known) == num_input_channels:
                raise UserError(
                    f"known_channels are some, not all, of {num_input_channels} places, not {known}"
                )
        if not 0 <= head_dropout < 1:
            raise UserError(f"head_dropout is in [0, 1), not {head_dropout}")
        Mixing(expansion_factor, dropout, gated, norm, norm_eps)
        self.context_length, self.prediction_length, self.head_length = (
            context_length,
            prediction_length,
            length,
        )
        self.num_input_channels, self.patch_length, self.patch_stride = (
            num_input_channels,
            patch_length,
            stride,
        )
        self.hidden_size, self.num_hidden_layers, self.levels = hidden_size, num_hidden_layers, levels
        self.expansion_factor, self.dropout, self.head_dropout = expansion_factor, dropout, head_dropout
        self.gated, self.norm, self.norm_eps = gated, norm, norm_eps
        self.resolution_prefix, self.frequencies = resolution_prefix, frequencies
        self.decoder_hidden_size, self.decoder_num_layers = decoder_hidden_size, decoder_num_layers
        self.decoder_mode = decoder_mode
        self.channel_context, self.known_channels = channel_context, known
        self.instance_norm = instance_norm
        super().__init__(**options)

    @property
    def num_patches(self) -> int:
        """Patches, and the prefix."""
        return patch_count(self.context_length, self.patch_length, self.patch_stride) + self.resolution_prefix

    def mixing(self, dropout: float) -> Mixing:
        return Mixing(self.expansion_factor, dropout, self.gated, self.norm, self.norm_eps)
