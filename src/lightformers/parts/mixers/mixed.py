"""Half attention, half dynamic convolution: ConvBERT (Jiang et al., 2020, arXiv 2008.02496)."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.mixers.relative import RelativeKeys, attend, join, split


class MixedAttention(nn.Module):
    """Half of the heads attend, the others convolve with kernels made from the text. (batch, n, width) -> the same.

    A kernel of `kernel` places per position and head: softmax of a linear map of (separable convolution of x) * Q; it
    weighs a linear map of x around the position. Both halves are joined and mapped.
    heads: even, half of them attend. kernel: odd. relative: as in `MultiplicativeAttention`.
    What stands at padding counts as zero, as beyond the ends; the paper's code lets it leak into the last words.
    Raises UserError for heads that are odd or do not divide the width, and for even kernels. (One head would attend
    alone, says the paper's code, but its forward fails there.)
    """

    def __init__(
        self, width: int, heads: int, kernel: int = 9, relative: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if heads % 2 or width % heads:
            raise UserError(f"{heads} heads must be even, half of them attend, and divide the width {width}")
        if kernel < 1 or kernel % 2 == 0:
            raise UserError(f"a kernel needs an odd number of places to have a middle, not {kernel}")
        self.heads, self.kernel, self.dropout = heads // 2, kernel, dropout
        half = width // 2
        self.query, self.key, self.value = (nn.Linear(width, half) for _ in range(3))
        self.near = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width, bias=False)
        self.far = nn.Conv1d(width, half, 1)
        self.kernels = nn.Linear(half, self.heads * kernel)
        self.values = nn.Linear(width, half)
        self.out = nn.Linear(width, width)
        self.positions = RelativeKeys(relative, width // heads) if relative else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        there = None if mask is None else (mask != 0).to(x.dtype)[..., None]
        query = self.query(x)
        q, k, v = split(query, self.heads), split(self.key(x), self.heads), split(self.value(x), self.heads)
        scores = self.positions(q) if self.positions is not None else None
        attended = join(attend(q, k, v, mask, scores, self.dropout if self.training else 0.0))
        span = self.far(self.near(_only(x, there).transpose(1, 2))).transpose(1, 2)
        kernels = self.kernels(span * query).unflatten(-1, (self.heads, self.kernel)).softmax(-1)
        convolved = self._convolve(_only(self.values(x), there), kernels)
        return self.out(torch.cat([attended, convolved], -1))

    def _convolve(self, values: Tensor, kernels: Tensor) -> Tensor:
        """values (batch, n, half), kernels (batch, n, heads, kernel) -> (batch, n, half)."""
        n, reach = values.shape[1], self.kernel // 2
        heads = nn.functional.pad(values, (0, 0, reach, reach)).unflatten(2, (self.heads, -1))
        # place after place: a product with all windows at once would write every value out `kernel` times
        places = (heads[:, j : j + n] * kernels[..., j, None] for j in range(self.kernel))
        return functools.reduce(torch.add, places).flatten(2)


def _only(x: Tensor, there: Tensor | None) -> Tensor:
    return x if there is None else x * there
