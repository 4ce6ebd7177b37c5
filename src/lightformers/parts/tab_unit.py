"""TabUnit: a table cell, its column's name, type and value, as vectors of one width (arXiv 2307.09249).

A row comes as two runs of tokens, those of all names and those of all values, with the number of the column of each token
(-1 at padding) and its place within its text, so that tables of any columns stand in one batch and nothing but batch and length moves.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.positions import sinusoids
from lightformers.parts.recording import eager


def membership(columns: Tensor, count: int | Tensor) -> Tensor:
    """(batch, n) numbers of columns -> (batch, count, n) bool: which tokens belong to which column."""
    return columns[:, None] == torch.arange(count, device=columns.device)[:, None]  # type: ignore[arg-type]


def mean_of(x: Tensor, members: Tensor) -> Tensor:
    """(batch, n, width), (batch, count, n) -> (batch, count, width): the mean over each column's tokens, 0 for none."""
    weights = members.to(x.dtype)
    return weights @ x / weights.sum(-1, keepdim=True).clamp(min=1)


def spread(c: Tensor, members: Tensor) -> Tensor:
    """(batch, count, width), (batch, count, n) -> (batch, n, width): to every token its column's vector, 0 at padding."""
    return members.to(c.dtype).transpose(1, 2) @ c


class Gate(nn.Module):
    """A number between 0 and 1 for each vector: sigmoid(linear(ReLU(linear(x)))). (..., width) -> (..., 1)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, hidden), nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x).relu()).sigmoid()


class TabUnit(nn.Module):
    """Column vectors and value tokens of rows.

    c = mean of the name's tokens + t g(t), t the embedding of the type; v_j <- v_j + c h(c). A token's vector is
    LayerNorm(embedding sqrt(width) + sinusoidal place in its text), of names and values alike. g and h are `Gate`s.

    type_aware: whether there is t. longest: most tokens of a text. Raises UserError for an odd width, and on the CPU
    for longer texts.
    """

    def __init__(
        self, words: int, width: int, hidden: int, types: int = 3, type_aware: bool = True, longest: int = 50,
        dropout: float = 0.0, padding: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if width % 2:
            raise UserError(f"sinusoidal places need an even width, not {width}")
        self.longest, self.dropout = longest, dropout
        self.words = nn.Embedding(words, width, padding_idx=padding)
        nn.init.kaiming_normal_(self.words.weight)
        self.norm = nn.LayerNorm(width)
        self.types = nn.Embedding(types, width) if type_aware else None
        self.type_gate = Gate(width, hidden) if type_aware else None
        self.link_gate = Gate(width, hidden)

    def embed(self, ids: Tensor, place: Tensor) -> Tensor:
        """(batch, n) tokens at their places within their texts -> (batch, n, width)."""
        if eager(place) and place.numel() and int(place.max()) >= self.longest:
            raise UserError(f"a name or cell of {int(place.max()) + 1} tokens is longer than the {self.longest} of this model: cut it")  # fmt: skip
        x = self.words(ids)
        table = sinusoids(self.longest, x.shape[-1], x.device).to(x.dtype)
        x = x * math.sqrt(x.shape[-1]) + nn.functional.embedding(place, table)
        return self.norm(nn.functional.dropout(x, self.dropout, self.training))

    def forward(
        self, name_ids: Tensor, name_columns: Tensor, name_places: Tensor,
        value_ids: Tensor, value_columns: Tensor, value_places: Tensor, types: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Tokens, columns and places (batch, n) of names and (batch, m) of values, types (batch, columns).

        -> column vectors (batch, columns, width) and value tokens (batch, m, width); what stands at padding means nothing.
        """
        names, values = (membership(c, types.shape[1]) for c in (name_columns, value_columns))
        c = mean_of(self.embed(name_ids, name_places), names)
        if self.types is not None and self.type_gate is not None:
            t = self.types(types.clamp(min=0))
            c = c + t * self.type_gate(t)
        v = self.embed(value_ids, value_places)
        return c, v + spread(c * self.link_gate(c), values)
