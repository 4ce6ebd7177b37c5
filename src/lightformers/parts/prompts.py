"""Vectors put before a sequence that a frozen decoder reads: words through a trained map, or chosen from a pool."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightformers.errors import UserError


class SemiSoftPrompts(nn.Module):
    """Fixed sentences, embedded by a frozen table and passed through a trained linear map, one map per sentence.

    sentences: token numbers of each. forward(table (words, width)) -> one (tokens, width) per sentence.
    Raises UserError for empty sentences and numbers that the table of `words` rows does not hold.
    """

    def __init__(self, sentences: Sequence[Sequence[int]], words: int, width: int) -> None:
        super().__init__()
        if not sentences or not all(len(s) for s in sentences):
            raise UserError("a prompt has at least one token")
        strange = [t for s in sentences for t in s if not 0 <= t < words]
        if strange:
            raise UserError(f"token {strange[0]} of a prompt is not in a vocabulary of {words}")
        self.lengths = [len(s) for s in sentences]
        self.tokens: Tensor
        self.register_buffer("tokens", torch.tensor([t for s in sentences for t in s]))
        self.maps = nn.ModuleList(nn.Linear(width, width) for _ in sentences)

    def forward(self, table: Tensor) -> list[Tensor]:
        rows = nn.functional.embedding(self.tokens, table).split(self.lengths)
        return [map_(row) for map_, row in zip(self.maps, rows)]


class PromptPool(nn.Module):
    """Learned prompts, each with a key: a sequence takes those whose keys are most like a summary of it.

    forward((batch, n, width)) -> prompts (batch, top * length, width), and the cosine of summary and chosen keys,
    (batch, top). The summary is a linear map from n positions to one. keys (size, width), values (size, length, width).
    Gradients reach keys and summary through the cosines alone (a loss may pull at them); where `pulled` is false
    they are frozen, and choose as they were drawn. Raises UserError where top is not between 1 and size.
    """

    def __init__(self, size: int, top: int, length: int, positions: int, width: int, pulled: bool) -> None:
        super().__init__()
        if not 1 <= top <= size or length < 1:
            raise UserError(f"{top} prompts of {length} tokens cannot be chosen from a pool of {size}")
        self.top = top
        self.keys = nn.Parameter(torch.randn(size, width), requires_grad=pulled)
        self.values = nn.Parameter(torch.randn(size, length, width))
        self.summary = nn.Linear(positions, 1).requires_grad_(pulled)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        summary = self.summary(x.transpose(1, 2))[..., 0]
        cosine = nn.functional.normalize(summary, dim=1) @ nn.functional.normalize(self.keys, dim=1).T
        like, chosen = cosine.topk(self.top, 1)
        return self.values[chosen].flatten(1, 2), like
