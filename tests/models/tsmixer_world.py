"""Small TSMixers, ours and transformers'."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightformers.models.forecasting.tsmixer import TSMixer, TSMixerConfig

SMALL: dict[str, Any] = {
    "context_length": 21, "prediction_length": 6, "patch_length": 4, "patch_stride": 3, "hidden_size": 10,
    "num_hidden_layers": 2, "expansion_factor": 2, "dropout": 0.1, "head_dropout": 0.1, "num_input_channels": 3,
}  # fmt: skip
THEIRS: dict[str, Any] = {
    "context_length": 21, "prediction_length": 6, "patch_length": 4, "patch_stride": 3, "d_model": 10, "num_layers": 2,
    "expansion_factor": 2, "dropout": 0.1, "head_dropout": 0.1, "num_input_channels": 3,
}  # fmt: skip


def shaken(model: Any) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


def made(**fields: Any) -> TSMixer:
    torch.manual_seed(0)
    return shaken(TSMixer(TSMixerConfig(**{**SMALL, **fields}))).eval()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
