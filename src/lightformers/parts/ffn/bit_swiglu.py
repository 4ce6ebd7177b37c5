"""The gated feed-forward of the MatMul-free language model (Zhu et al., 2024, arXiv 2406.02528)."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from lightformers.errors import UserError
from lightformers.parts.bit_linear import BitLinear
from lightformers.parts.initial import residual


class BitSwiGLU(nn.Module):
    """down(SiLU(gate) * up), gate and up from one map of x; both maps are `BitLinear`. (..., width) -> (..., width).

    hidden: the width between; None: 8/3 of the width, up to the next multiple of 256, as in the paper's models.
    ternary: false makes the maps full, to compare with. Matrices are drawn from N(0, std), the last one's std over
    sqrt(2 layers).
    """

    def __init__(
        self, width: int, hidden: int | None = None, ternary: bool = True, std: float = 0.02, layers: int = 1
    ) -> None:
        super().__init__()
        hidden = 256 * math.ceil(int(8 * width / 3) / 256) if hidden is None else hidden
        if hidden < 1:
            raise UserError(f"a feed-forward needs a hidden width of at least 1, not {hidden}")
        self.gate = BitLinear(width, 2 * hidden, ternary=ternary, std=std)
        self.down = BitLinear(hidden, width, ternary=ternary, std=residual(std, layers))

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)
