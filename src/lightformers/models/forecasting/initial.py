"""Values for what a checkpoint of a forecaster does not hold."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import initialization

from lightformers.parts.patch_mixer import LeftLinear


@torch.no_grad()
def as_torch_starts(module: nn.Module) -> None:
    """A linear layer, embedding or norm as torch's constructors leave it; what was loaded bears transformers' mark and stays.

    For `_init_weights` of models that were built without memory for values.
    """
    if isinstance(module, (nn.Linear, LeftLinear)):
        initialization.kaiming_uniform_(module.weight, a=math.sqrt(5))
        if module.bias is not None:
            bound = 1 / math.sqrt(module.in_features)
            initialization.uniform_(module.bias, -bound, bound)
    elif isinstance(module, nn.Embedding):
        initialization.normal_(module.weight)
    elif isinstance(module, (nn.LayerNorm, nn.BatchNorm1d)):
        initialization.ones_(module.weight)
        initialization.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm1d):
            initialization.zeros_(module.running_mean)
            initialization.ones_(module.running_var)


def drawn_as_torch(self: Any, module: nn.Module) -> None:
    """`_init_weights` of a model whose parts draw their own values: `as_torch_starts` where it was built without memory
    for values, which it notes as `_without_values` before `post_init`."""
    if self._without_values:
        as_torch_starts(module)
