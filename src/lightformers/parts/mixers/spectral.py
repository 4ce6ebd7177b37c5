"""Mixing without scores of content: a two-dimensional Fourier or cosine transform of the sequence.

FNet (Lee-Thorp et al., 2021, arXiv 2105.03824) and the linear operation of FlexiBERT (arXiv 2205.11656).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.mixers.relative import RelativeKeys, join, shut, split

Transform = Literal["dft", "dct"]


def waves(
    kind: Transform, place: Tensor, count: Tensor | int, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """The matrices (..., n, n) of a transform over `count` places; row i is of frequency place_i, column j of place_j.

    place: (..., n) whole numbers below `count`. dft: cos and sin of 2 pi i j / count. dct (type II, not normalised):
    2 cos(pi i (2 j + 1) / (2 count)), and None. They are computed in float32 or better and then of `dtype`.
    """
    exact = torch.promote_types(dtype, torch.float32)
    row, column = place[..., :, None], place[..., None, :]
    if kind == "dct":  # reduced to one turn as whole numbers: a float would lose the digits
        angle = (row * (2 * column + 1) % (4 * count)).to(exact) * (math.pi / 2) / count
        return (2 * torch.cos(angle)).to(dtype), None
    angle = (row * column % count).to(exact) * (2 * math.pi) / count
    return torch.cos(angle).to(dtype), torch.sin(angle).to(dtype)


def transform(x: Tensor, kind: Transform, mask: Tensor | None = None) -> Tensor:
    """Real part of the 2-D DFT, or the 2-D DCT-II, of each sequence: (batch, n, width) -> the same shape.

    Sums are over the positions that `mask` (batch, n) leaves, numbered from 0; the others stay 0, so the result does not
    depend on how long a batch was padded. Done by matrix products: n^2 like attention, in every number format and
    exporter, and at encoder lengths no slower than a fast transform.
    """
    if kind not in ("dft", "dct"):
        raise UserError(f"{kind!r} is not one of dft, dct")
    n, width = x.shape[-2:]
    if mask is None:
        across = waves(kind, torch.arange(n, device=x.device), n, x.dtype)
    else:
        held = mask != 0
        place, count = (held.cumsum(-1) - 1).clamp(min=0), held.sum(-1).clamp(min=1)[:, None, None]
        both = held[:, :, None] & held[:, None, :]
        first, second = waves(kind, place, count, x.dtype)
        across = (first * both, None if second is None else second * both)
    along = waves(kind, torch.arange(width, device=x.device), width, x.dtype)
    even = across[0] @ (x @ along[0].T)
    if across[1] is None or along[1] is None:
        return even
    return even - across[1] @ (x @ along[1])


class SpectralMixer(nn.Module):
    """A transform of the input plus attention that looks at positions alone. (batch, n, width) -> (batch, n, width).

    y = out(transform(x) + softmax(Q.E / sqrt(size) + mask) V). relative: most positions, for E (`RelativeKeys`); 0 for
    none: the attention is then the mean of V. Keys are read by nothing and do not exist, nor do queries without E; the
    paper's code holds both. Its transform is over padding too, here over what the mask leaves.
    The transform is as large as the square root of what it sums over: keep a LayerNorm behind the residual.
    """

    def __init__(
        self, width: int, heads: int, kind: Transform = "dct", relative: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"{heads} heads do not divide a width of {width}")
        if kind not in ("dft", "dct"):
            raise UserError(f"{kind!r} is not one of dft, dct")
        self.heads, self.kind, self.dropout = heads, kind, dropout
        self.query = nn.Linear(width, width) if relative else None
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.positions = RelativeKeys(relative, width // heads) if relative else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        v = split(self.value(x), self.heads)
        if self.query is not None and self.positions is not None:
            q = split(self.query(x), self.heads)
            scores = self.positions(q) * q.shape[-1] ** -0.5
        else:
            scores = v.new_zeros(1, 1, v.shape[-2], v.shape[-2])
        if (closed := shut(mask, scores.dtype)) is not None:
            scores = scores + closed
        shares = nn.functional.dropout(scores.softmax(-1), self.dropout, self.training)
        return self.out(join(shares.to(v.dtype) @ v) + transform(x, self.kind, mask))
