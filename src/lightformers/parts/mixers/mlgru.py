"""MLGRU: the token mixer of the MatMul-free language model (Zhu et al., 2024, arXiv 2406.02528).

A gated recurrence over each channel for itself, after HGRN (Qin et al., 2023, arXiv 2311.04823).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightformers.errors import UserError
from lightformers.kernels.linear_scan import linear_scan
from lightformers.parts.bit_linear import BitLinear
from lightformers.parts.initial import residual
from lightformers.parts.mixers import State, starts
from lightformers.parts.recording import refuse

GATES = ("norm", "paper")


class MLGRU(nn.Module):
    """h_t = f_t h_{t-1} + (1 - f_t) SiLU(i_t), element by element. (batch, n, width) -> the same.

    f = bound + (1 - bound) sigmoid(F x), i = I x, g = G x, with maps of -1, 0 and 1 (`BitLinear`). What leaves is
    O(rms_norm(g) SiLU(h)) as in the authors' code (gate "norm"), or O(h sigmoid(g)) as in the text (gate "paper").
    ternary: false makes the maps full, to compare with.
    bound: forget gates have a lower bound for each channel that grows with depth. It is made of one row of numbers per
    layer, `bound`, of which every layer needs all: the sum of their softmax over layers, from the second row to its own.
    `connect` tells a layer its fellows (`models.language.decoder` does); alone (layers 1) there is no bound.
    Matrices are drawn from N(0, std), the last one's std over sqrt(2 layers); bounds start at 0, so layer l's is l / L.
    State: "memory" (batch, width) in float32 or better.
    Differs from the authors' code: its rows are one matrix (L, width), here each layer holds its own; the count is the
    same. Weight decay passes over rows, not over a matrix.
    """

    def __init__(
        self,
        width: int,
        gate: str = "norm",
        ternary: bool = True,
        eps: float = 1e-6,
        std: float = 0.02,
        layer: int = 0,
        layers: int = 1,
    ) -> None:
        super().__init__()
        if gate not in GATES:
            raise UserError(f"gate is one of {', '.join(GATES)}, not {gate!r}")
        if width < 1:
            raise UserError(f"a width of {width} leaves nothing to mix")
        self.width, self.gate, self.layer = width, gate, layer
        self.forget, self.input, self.gating = (
            BitLinear(width, width, ternary=ternary, std=std) for _ in range(3)
        )
        self.out = BitLinear(width, width, ternary=ternary, std=residual(std, layers))
        self.norm = nn.RMSNorm(width, eps=eps) if gate == "norm" else None
        self.bound = nn.Parameter(torch.zeros(width)) if layers > 1 else None
        #: All layers of this kind in a model, this one among them; a list keeps them from being registered here.
        self.fellows: list[MLGRU] = []

    def connect(self, mixers: Sequence[Any]) -> None:
        """mixers: of all layers of the model, from the bottom; those of this kind share their rows."""
        self.fellows = [m for m in mixers if isinstance(m, MLGRU)]

    def lower(self) -> Tensor | None:
        """(width,) the least forget gate of each channel, in float32 or better, or None. Raises UserError for one layer
        of several that was told no fellows."""
        if self.bound is None:
            return None
        if not any(m is self for m in self.fellows):
            raise UserError(
                "the bounds of an MLGRU are shared by the layers of a model: call connect([...]) with all mixers on each"
            )
        rows = torch.stack([m.bound for m in self.fellows if m.bound is not None])
        place = next(i for i, m in enumerate(self.fellows) if m is self)
        shares = rows.to(torch.promote_types(rows.dtype, torch.float32)).softmax(0)
        return shares[1 : place + 1].sum(0)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        refuse("an MLGRU")
        forget, new = self._gates(x, mask)
        if mask is not None:
            forget = forget * ~starts(mask)[..., None]
        h, _ = linear_scan(forget, new)
        return self._leave(x, h)

    def begin(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> State:
        exact = torch.promote_types(dtype, torch.float32)
        return {"memory": torch.zeros(batch, self.width, device=device, dtype=exact)}

    def extend(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        forget, new = self._gates(x, mask)
        h, last = linear_scan(forget, new, state["memory"].to(new.dtype))
        return self._leave(x, h), {"memory": last}

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        forget, new = self._gates(x, None)
        h = forget * state["memory"] + new
        return self._leave(x, h), {"memory": h}

    def _gates(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """What is kept of the state and what is added; padding keeps all and adds nothing."""
        wide = torch.promote_types(x.dtype, torch.float32)
        forget = self.forget(x).to(wide).sigmoid()
        if (low := self.lower()) is not None:
            low = low.to(wide)
            forget = low + (1 - low) * forget
        new = (1 - forget) * F.silu(self.input(x).to(wide))
        if mask is not None:
            there = (mask != 0)[..., None]
            forget, new = torch.where(there, forget, 1.0), new * there
        return forget, new

    def _leave(self, x: Tensor, h: Tensor) -> Tensor:
        gating = self.gating(x)
        if self.norm is None:
            return self.out((h * gating.to(h.dtype).sigmoid()).to(x.dtype))
        wide = F.rms_norm(gating.to(h.dtype), (self.width,), self.norm.weight.to(h.dtype), self.norm.eps)
        return self.out((wide * F.silu(h)).to(x.dtype))
