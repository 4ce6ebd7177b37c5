"""Self-attention by the scaled dot product, or by a weighted one (Luong et al., 2015; FlexiBERT, arXiv 2205.11656)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.mixers.relative import RelativeKeys, attend, join, split


class MultiplicativeAttention(nn.Module):
    """softmax((Q W K' + Q.E) / sqrt(size)) V, then a linear map. (batch, n, width) -> (batch, n, width).

    weighted: W (size, size), shared by the heads, drawn from U(-0.1, 0.1); else there is none (the identity).
    relative: most positions, for keys E of relative positions (`RelativeKeys`); 0 for none.
    dropout: of attention probabilities, in training. Raises UserError where the heads do not divide the width.
    """

    def __init__(
        self, width: int, heads: int, weighted: bool = False, relative: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"{heads} heads do not divide a width of {width}")
        self.heads, self.dropout = heads, dropout
        size = width // heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.weight = nn.Parameter(torch.empty(size, size).uniform_(-0.1, 0.1)) if weighted else None
        self.positions = RelativeKeys(relative, size) if relative else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (split(f(x), self.heads) for f in (self.query, self.key, self.value))
        scores = self.positions(q) if self.positions is not None else None
        left = q if self.weight is None else q @ self.weight.to(q.dtype)
        dropout = self.dropout if self.training else 0.0
        return self.out(join(attend(left, k, v, mask, scores, dropout)))
