"""The short causal depthwise convolution of Mamba, DeltaNet and Primer, with its state for decoding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.kernels.causal_convolution import causal_convolution
from lightformers.parts.mixers import State, places
from lightformers.parts.recording import recorded


class ShortConvolution(nn.Module):
    """Causal depthwise convolution over time. (batch, n, width) -> (batch, n, width).

    y_t = sum_j weight[:, 0, kernel-1-j] * x_{t-j} (+ bias), zero before the start of a document. weight: (width, 1,
    kernel), initialised as nn.Conv1d. A mixer (`parts.mixers`): its state is the last kernel - 1 inputs.
    mask: documents and padding; what stands at padding counts as zero, on either side.
    """

    def __init__(self, width: int, kernel: int = 4, bias: bool = True) -> None:
        super().__init__()
        if kernel < 1:
            raise UserError(f"a convolution needs a kernel of at least 1, not {kernel}")
        made = nn.Conv1d(width, width, kernel, groups=width, bias=bias)
        self.width, self.kernel, self.weight, self.bias = width, kernel, made.weight, made.bias

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return self._convolve(nn.functional.pad(x, (0, 0, self.kernel - 1, 0)))
        x = x * (mask != 0).to(x.dtype)[..., None]
        if not recorded() and not _several(mask):
            return self._convolve(nn.functional.pad(x, (0, 0, self.kernel - 1, 0)))
        # with several documents in a row, taps that reach before a document's start are shut
        place = places(mask)
        out = x * self.weight[:, 0, -1].to(x.dtype)
        for j in range(1, self.kernel if recorded() else min(self.kernel, x.shape[1])):
            tap = nn.functional.pad(x, (0, 0, j, 0))[:, :-j] * (place >= j).to(x.dtype)[..., None]
            out = out + tap * self.weight[:, 0, self.kernel - 1 - j].to(x.dtype)
        return out if self.bias is None else out + self.bias.to(x.dtype)

    def begin(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> State:
        return {"inputs": torch.zeros(batch, self.kernel - 1, self.width, device=device, dtype=dtype)}

    def extend(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        held = self.kernel - 1
        if mask is None or bool((mask != 0).all()):
            both = torch.cat([state["inputs"].to(x.dtype), x], 1)
            return self._convolve(both), {"inputs": both[:, both.shape[1] - held :]}
        # padding is moved to the front, so that every real token stands right behind what came before it
        there = mask != 0
        real = torch.cat([there.new_ones(len(x), held), there], 1)
        order = real.long().argsort(dim=1, stable=True)
        both = torch.cat([state["inputs"].to(x.dtype), x * there.to(x.dtype)[..., None]], 1)
        both = both.take_along_dim(order[..., None], 1)
        at = (order.argsort(dim=1)[:, held:] - held).clamp(min=0)
        return self._convolve(both).take_along_dim(at[..., None], 1), {
            "inputs": both[:, both.shape[1] - held :]
        }

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        both = torch.cat([state["inputs"].to(x.dtype), x[:, None]], 1)
        y = (both * self.weight[:, 0].T.to(x.dtype)).sum(1)
        return (y if self.bias is None else y + self.bias.to(x.dtype)), {"inputs": both[:, 1:]}

    def _convolve(self, x: Tensor) -> Tensor:
        """(batch, kernel - 1 + n, width) -> (batch, n, width)."""
        return causal_convolution(x, self.weight[:, 0], self.bias)


def _several(mask: Tensor) -> bool:
    return bool((mask.amax(1) > 1).any()) or bool(((mask[:, 1:] != 0) & (mask[:, :-1] == 0)).sum(1).max() > 1)
