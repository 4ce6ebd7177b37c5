"""Small TSMixers, ours and transformers'."""

from __future__ import annotations

from typing import Any

import torch
from forecasters_world import shaken

from lightformers.models.forecasting.tsmixer import TSMixer, TSMixerConfig

SMALL: dict[str, Any] = {
    "context_length": 21, "prediction_length": 6, "patch_length": 4, "patch_stride": 3, "hidden_size": 10,
    "num_hidden_layers": 2, "expansion_factor": 2, "dropout": 0.1, "head_dropout": 0.1, "num_input_channels": 3,
}  # fmt: skip
THEIRS: dict[str, Any] = {
    "context_length": 21, "prediction_length": 6, "patch_length": 4, "patch_stride": 3, "d_model": 10, "num_layers": 2,
    "expansion_factor": 2, "dropout": 0.1, "head_dropout": 0.1, "num_input_channels": 3,
}  # fmt: skip


def made(**fields: Any) -> TSMixer:
    torch.manual_seed(0)
    return shaken(TSMixer(TSMixerConfig(**{**SMALL, **fields})), 0.2).eval()
