"""What mixers with heads share: heads cut apart and joined, keys of relative positions, attention with both."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightformers.errors import UserError


def split(x: Tensor, heads: int) -> Tensor:
    """(batch, length, heads * size) -> (batch, heads, length, size)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join(x: Tensor) -> Tensor:
    """The inverse of `split`."""
    return x.transpose(1, 2).flatten(2)


class RelativeKeys(nn.Module):
    """One key per distance of two positions (Shaw et al., 2018, arXiv 1803.02155), shared by all heads.

    (batch, heads, n, size) queries -> (batch, heads, n, n) scores q_i . E[i - j], not scaled. E is a table of
    2 * length - 1 rows; longer sequences than `length` are refused (UserError).
    """

    def __init__(self, length: int, size: int) -> None:
        super().__init__()
        self.length = length
        self.table = nn.Embedding(2 * length - 1, size)

    def forward(self, q: Tensor) -> Tensor:
        n = q.shape[-2]
        if n > self.length:
            raise UserError(f"{n} positions are more than the {self.length} that this model was made for")
        place = torch.arange(n, device=q.device)
        keys = self.table(place[:, None] - place[None, :] + self.length - 1)
        return torch.einsum("bhid,ijd->bhij", q, keys.to(q.dtype))


def shut(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """(batch, n) mask -> (batch, 1, 1, n) to add to scores: 0, or the least finite number at padding."""
    if mask is None:
        return None
    return (mask == 0).to(dtype)[:, None, None, :] * torch.finfo(dtype).min


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scores: Tensor | None, dropout: float
) -> Tensor:
    """softmax((q k' + scores) / sqrt(size) + mask) v; all (batch, heads, n, size). scores: (batch, heads, n, n)."""
    bias = shut(mask, q.dtype)
    if scores is not None:
        scores = scores * q.shape[-1] ** -0.5
        bias = scores if bias is None else scores + bias
    return nn.functional.scaled_dot_product_attention(q, k, v, bias, dropout)
