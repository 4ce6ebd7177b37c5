"""What a forecaster gives back, and the checks that all of them make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from lightformers.errors import UserError
from lightformers.parts.recording import eager


@dataclass
class Forecast(ModelOutput):
    """prediction: (batch, horizon, channels), in the units of past_values."""

    prediction: Tensor | None = None


def check_past(past_values: Tensor, mask: Tensor | None, config: Any) -> None:
    """UserError unless the window is as long and as wide as `config` says, and finite where it was observed."""
    if past_values.dim() != 3:
        raise UserError(f"past_values is (batch, length, channels), not {tuple(past_values.shape)}")
    if past_values.shape[1] != config.context_length:
        raise UserError(
            f"this model reads windows of exactly {config.context_length} steps, got {past_values.shape[1]}"
        )
    if config.num_input_channels and past_values.shape[2] != config.num_input_channels:
        raise UserError(f"this model reads {config.num_input_channels} channels, got {past_values.shape[2]}")
    if mask is not None and mask.shape != past_values.shape:
        raise UserError(
            f"past_observed_mask has the shape of past_values, {tuple(past_values.shape)}, not {tuple(mask.shape)}"
        )
    if eager(past_values):
        seen = past_values if mask is None else torch.where(mask.bool(), past_values, 0.0)
        if not torch.isfinite(seen).all():
            raise UserError(
                "past_values holds NaN or infinity: say with past_observed_mask which values are missing"
            )
