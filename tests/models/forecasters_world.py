"""What the tests of forecasters share: weights that cannot be confused with one another, and drawn windows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def shaken(model: Any, by: float = 0.1) -> Any:
    """Every parameter moved, norms and what starts at zero too."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return model


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def floats(*shape: int, seed: int = 0) -> Tensor:
    """The same in single precision."""
    return drawn(*shape, seed=seed).float()
