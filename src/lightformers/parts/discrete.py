"""Heads and tables over named discrete variables (Transformer Programs, Friedman et al., 2023, arXiv 2306.01128).

A stream is (batch, n, variables, size): each variable a one-hot of `size` values, while training a relaxed one; beside
it run numbers, (batch, n, count). A head reads single variables and writes one; a table maps a few to one. Every choice
(which variable, which key for a query value, which position) is `relax`ed: Gumbel-softmax at a temperature, or the
largest where there is none. `rules` and `tables` are the choices of the hard form, as whole numbers.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightformers.errors import UserError


def first_max(scores: Tensor) -> Tensor:
    """Index of the largest along the last dimension, the lowest one where several are."""
    index = torch.arange(scores.shape[-1], device=scores.device)
    return torch.where(scores == scores.amax(-1, keepdim=True), index, scores.shape[-1]).amin(-1)


def relax(scores: Tensor, tau: float | None) -> Tensor:
    """One choice along the last dimension: a Gumbel-softmax sample at temperature tau; None: one-hot of the largest."""
    if tau is None:
        return nn.functional.one_hot(first_max(scores), scores.shape[-1]).to(scores.dtype)
    return nn.functional.gumbel_softmax(scores, tau=tau, dim=-1)


def nearness(length: int) -> Tensor:
    """(length, length) what scores of query i, key j get added: -2 for itself, else 0 next to it and falling linearly.

    The slope is 1 / (length - 2) to the right and 1 / (length - 1) to the left, so that of equal distances the left one
    wins; at distance 1 both have 0 and the lower index wins.
    """
    away = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    right, left = (away - 1) / max(length - 2, 1), (-away - 1) / max(length - 1, 1)
    return torch.where(away == 0, -2.0, -torch.where(away > 0, right, left))


@dataclass(frozen=True)
class Rule:
    """What a head does: position i looks for the key value `predicate[value of query]` and takes `value` from there.

    query, key: indices of variables; value: of a variable, or of a number for a numerical head.
    """

    query: int
    key: int
    value: int
    predicate: tuple[int, ...]


def nearest(found: Tensor) -> Tensor:
    """(batch, n, n) which keys match -> (batch, n) the nearest of them, itself last, the left of two; 0 without any."""
    n = found.shape[-1]
    place = torch.arange(n, device=found.device)
    away = (place[:, None] - place).abs()
    cost = (
        torch.where(away == 0, n, away) * n + place
    )  # no two alike, so there is nothing to break ties between
    best = torch.where(found, cost, n * n + n).argmin(-1)
    return torch.where(found.any(-1), best, 0)


def matches(rule: Rule, values: list[Tensor], allowed: Tensor) -> Tensor:
    """(batch, n, n) bool: the keys that a hard head's predicate finds. values: (batch, n) whole numbers each."""
    predicate = torch.tensor(rule.predicate, device=allowed.device)
    return (predicate[values[rule.query]][:, :, None] == values[rule.key][:, None, :]) & allowed


class _Heads(nn.Module):
    """What both kinds of heads have: gates for query, key and value, and a predicate over values."""

    def __init__(self, heads: int, variables: int, values: int, size: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(heads, variables) * variables**-0.5)
        self.key = nn.Parameter(torch.randn(heads, variables) * variables**-0.5)
        self.value = nn.Parameter(torch.randn(heads, values) * values**-0.5)
        self.predicate = nn.Parameter(torch.randn(heads, size, size) * size**-0.5)

    def scores(self, stream: Tensor, tau: float | None) -> Tensor:
        """(batch, heads, n, n) in [0, 1]: how far key j is what query i looks for."""
        q = torch.einsum("hv,bnvk->bhnk", relax(self.query, tau), stream)
        k = torch.einsum("hv,bnvk->bhnk", relax(self.key, tau), stream)
        return q @ relax(self.predicate, tau) @ k.mT

    def rules(self) -> list[Rule]:
        """What the heads do in the hard form, one after the other."""
        chosen = [first_max(p.detach()).tolist() for p in (self.query, self.key, self.value, self.predicate)]
        return [Rule(q, k, v, tuple(p)) for q, k, v, p in zip(*chosen)]


class CategoricalHeads(_Heads):
    """Hard attention: the variable `value` of the nearest position whose key matches, or of the first without a match.

    stream (batch, n, variables, size), allowed (batch, n, n) bool, near (n, n) from `nearness` -> (batch, n, heads, size).
    """

    def __init__(self, heads: int, variables: int, size: int) -> None:
        super().__init__(heads, variables, variables, size)

    def forward(self, stream: Tensor, allowed: Tensor, near: Tensor, tau: float | None) -> Tensor:
        open_ = allowed[:, None]
        scores = self.scores(stream, tau)
        total = (scores * open_).sum(-1)
        default = 1 - total / (total + 1e-10)  # 1 where nothing matches: a program must be total
        scores = torch.cat([scores[..., :1] + default[..., None], scores[..., 1:]], -1)
        places = ((scores.float() + 1e-20).log() + near).masked_fill(~open_, -1e30)
        chosen = relax(places * stream.shape[-1] ** -0.5, tau).to(stream.dtype)
        v = torch.einsum("hv,bnvk->bhnk", relax(self.value, tau), stream)
        return (chosen @ v).transpose(1, 2)


class NumericalHeads(_Heads):
    """The sum of a number over all positions whose key matches; of ones, their count. No softmax.

    stream as before, numbers (batch, n, count) -> (batch, n, heads).
    """

    def __init__(self, heads: int, variables: int, numbers: int, size: int) -> None:
        super().__init__(heads, variables, numbers, size)

    def forward(self, stream: Tensor, numbers: Tensor, allowed: Tensor, tau: float | None) -> Tensor:
        scores = self.scores(stream, tau) * allowed[:, None]
        return torch.einsum("bhqk,hv,bkv->bqh", scores, relax(self.value, tau), numbers)


class Tables(nn.Module):
    """`count` learned functions, each of `inputs` things it chooses to read, with a value of `size` as its result.

    Things are variables (`width` is their size) or numbers (width 1): (batch, n, things, width) -> (batch, n, count,
    size). Each is a network of one hidden layer, inner ReLUs wide, which the hard form writes out.
    """

    def __init__(
        self, count: int, things: int, width: int, size: int, inputs: int = 2, inner: int = 64
    ) -> None:
        super().__init__()
        if min(inputs, inner) < 1:
            raise UserError(
                f"a table reads at least one thing through one unit, not {inputs} through {inner}"
            )
        self.inputs, self.width = inputs, width
        self.read = nn.Parameter(torch.randn(count, inputs, things) * things**-0.5)
        self.first = nn.Parameter(torch.randn(count, inputs * width, inner) * inner**-0.5)
        self.first_bias = nn.Parameter(torch.zeros(count, inner))
        self.second = nn.Parameter(torch.randn(count, inner, size) * size**-0.5)
        self.second_bias = nn.Parameter(torch.zeros(count, size))

    def forward(self, things: Tensor, tau: float | None) -> Tensor:
        read = torch.einsum("civ,bnvw->cbniw", relax(self.read, tau), things).flatten(3)
        hidden = torch.einsum("cbnx,cxm->cbnm", read, self.first) + self.first_bias[:, None, None]
        scores = torch.einsum("cbnm,cms->cbns", hidden.relu(), self.second) + self.second_bias[:, None, None]
        return relax(scores.log_softmax(-1), tau).permute(1, 2, 0, 3)

    def reads(self) -> list[tuple[int, ...]]:
        """For each table the indices of what it reads."""
        return [tuple(row) for row in first_max(self.read.detach()).tolist()]

    @torch.no_grad()
    def lookup(self, which: int) -> Tensor:
        """Of a table of variables: its value for every combination, (width,) * inputs whole numbers. In float64."""
        combinations = itertools.product(range(self.width), repeat=self.inputs)
        rows = torch.tensor(list(combinations), device=self.first.device)
        hot = nn.functional.one_hot(rows, self.width).flatten(1).double()
        hidden = (hot @ self.first[which].double() + self.first_bias[which].double()).relu()
        scores = hidden @ self.second[which].double() + self.second_bias[which].double()
        return first_max(scores).view((self.width,) * self.inputs)

    @torch.no_grad()
    def decide(self, which: int, numbers: list[Tensor]) -> Tensor:
        """Of a table of numbers: its value. float64, term after term, so that a program in floats finds the same."""
        first, second = self.first[which].double(), self.second[which].double()
        hidden = numbers[0].double()[..., None] * first[0]
        for number, weight in zip(numbers[1:], first[1:]):
            hidden = hidden + number.double()[..., None] * weight
        hidden = (hidden + self.first_bias[which].double()).clamp(min=0)
        scores = self.second_bias[which].double().expand(*hidden.shape[:-1], -1)
        for unit in range(second.shape[0]):
            scores = scores + hidden[..., unit, None] * second[unit]
        return first_max(scores)
