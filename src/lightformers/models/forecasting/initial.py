"""Values for what a checkpoint of a forecaster does not hold."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import initialization


@torch.no_grad()
def as_torch_starts(module: nn.Module) -> None:
    """A linear layer or LayerNorm as torch's constructors leave it; what was loaded bears transformers' mark and stays.

    For `_init_weights` of models that were built without memory for values.
    """
    if isinstance(module, nn.Linear):
        initialization.kaiming_uniform_(module.weight, a=math.sqrt(5))
        if module.bias is not None:
            bound = 1 / math.sqrt(module.in_features)
            initialization.uniform_(module.bias, -bound, bound)
    elif isinstance(module, nn.LayerNorm):
        initialization.ones_(module.weight)
        initialization.zeros_(module.bias)
