"""Tables that nobody measured: causal networks, forests, mixtures and sums, drawn many at a time.

`synthetic` is an endless source for pre-training models that predict in context (as of TabPFN, arXiv 2207.01848, and
TabForestPFN, arXiv 2405.13396). Tables of one call have one shape; chunks of them share a kind and its settings, each
table has weights of its own. Everything follows from the seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightformers.errors import UserError

#: Tables of one chunk: enough to be drawn quickly, few enough that a call mixes many kinds.
CHUNK = 8
#: Targets that a kind offers; classes may be where the largest of them is.
_SCORES = 10


@dataclass(frozen=True)
class Tables:
    """x (tables, rows, columns), NaN where missing, 0 in columns a table lacks. y (tables, rows): classes from 0, or numbers.

    regression (tables): which of them y holds numbers for.
    """

    x: Tensor
    y: Tensor
    regression: Tensor


@dataclass
class _Dice:
    """Choices by numpy, tensors by torch, both from one seed."""

    rng: np.random.Generator
    torch: torch.Generator

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.torch)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.torch)

    def some(self, batch: int, of: int, count: int) -> Tensor:
        """(batch, count) different places below `of`."""
        return self.uniform(batch, of).argsort(-1)[:, :count]

    def between(self, low: float, high: float) -> float:
        """Uniform in the logarithm."""
        return float(math.exp(self.rng.uniform(math.log(low), math.log(high))))


def synthetic(
    count: int, rows: int, columns: int, seed: int, classes: int = 10, regression: float = 0.35
) -> Tables:
    """`count` tables of `rows` and at most `columns`, with two to `classes` classes or, that share of them, numbers.

    Raises UserError for less than two rows, a column, or two classes.
    """
    if min(count, columns) < 1 or rows < 2 or not 2 <= classes <= _SCORES:
        raise UserError(f"synthetic tables have rows, columns and 2 to {_SCORES} classes")
    dice = _Dice(np.random.default_rng(seed), torch.Generator().manual_seed(seed))
    made = []
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        width = round(dice.between(2, columns)) if dice.rng.random() < 0.8 else columns
        kind = _KINDS[dice.rng.choice(len(_KINDS), p=_SHARES)]
        x, scores = kind(dice, size, rows, max(1, min(width, columns)))
        numbers = kind is not _mixture and dice.rng.random() < regression
        y = _number(dice, scores) if numbers else _classes(dice, scores, classes, kind is _mixture)
        x = torch.nn.functional.pad(_observed(dice, x), (0, columns - x.shape[-1]))
        made.append((x, y, torch.full((size,), numbers)))
    return Tables(*(torch.cat(parts) for parts in zip(*made)))


def _scaled(x: Tensor) -> Tensor:
    """Every column standardised over rows."""
    x = x - x.mean(-2, keepdim=True)
    return x * torch.rsqrt(x.square().mean(-2, keepdim=True) + 1e-6)


def _bent(dice: _Dice, x: Tensor) -> Tensor:
    """One of the usual non-linearities, after a gain and a shift per column."""
    x = x * dice.between(0.5, 3.0) + 0.7 * dice.normal(len(x), 1, x.shape[-1])
    kind = dice.rng.integers(8)
    if kind == 0:
        return torch.tanh(x)
    if kind == 1:
        return torch.relu(x)
    if kind == 2:
        return torch.sin(x)
    if kind == 3:
        return x.abs()
    if kind == 4:
        return x.square().clamp(max=9.0)
    if kind == 5:
        return torch.sigmoid(6 * x)
    if kind == 6:
        return torch.exp(-x.square())
    return x


def _inputs(dice: _Dice, size: int, rows: int, width: int) -> Tensor:
    """Correlated columns of several shapes, some of few values."""
    rank = int(dice.rng.integers(1, width + 1))
    own = dice.between(0.1, 3.0)
    x = _scaled(
        dice.normal(size, rows, rank) @ dice.normal(size, rank, width) / rank**0.5
        + own * dice.normal(size, rows, width)
    )
    kind = dice.rng.random()
    if kind < 0.25:
        x = _scaled(torch.erf(x / 2**0.5))  # uniform
    elif kind < 0.35:
        x = _scaled(torch.exp(0.7 * x))
    return _stepped(dice, x, 0.4) if dice.rng.random() < 0.5 else x


def _stepped(dice: _Dice, x: Tensor, share: float) -> Tensor:
    """So large a share of the columns takes two to eight values only."""
    levels = torch.randint(2, 9, (len(x), 1, x.shape[-1]), generator=dice.torch)
    place = (0.5 + 0.5 * torch.erf(x / 2**0.5) + 0.3 * (dice.uniform(len(x), 1, x.shape[-1]) - 0.5)).clamp(
        0, 0.9999
    )
    chosen = dice.uniform(len(x), 1, x.shape[-1]) < share
    return torch.where(chosen, _scaled((place * levels).floor()), x)


def _network(dice: _Dice, size: int, rows: int, width: int) -> tuple[Tensor, Tensor]:
    """A random network; columns and targets are nodes of it, so that columns may be causes or effects of the target."""
    causes, hidden = int(dice.rng.integers(2, 17)), int(dice.rng.choice([16, 32, 48]))
    noise, kept = dice.between(0.003, 0.7), dice.rng.uniform(0.2, 1.0)
    h = dice.normal(size, rows, causes) * (0.3 + dice.normal(size, 1, causes).abs())
    if dice.rng.random() < 0.3:
        h = torch.erf(h)
    layers = [_scaled(h)]
    for _ in range(int(dice.rng.integers(1, 5))):
        weights = dice.normal(size, h.shape[-1], hidden) * (dice.uniform(size, h.shape[-1], hidden) < kept)
        h = _scaled(_bent(dice, _scaled(h @ weights)))
        h = h + noise * dice.normal(size, 1, hidden).abs() * dice.normal(size, rows, hidden)
        layers.append(h)
    first = 0 if dice.rng.random() < 0.25 and causes >= _SCORES else len(layers) - 1
    places = dice.some(size, layers[first].shape[-1], layers[first].shape[-1])
    nodes = layers[first].gather(2, places[:, None].expand(-1, rows, -1))
    scores, rest = nodes[..., :_SCORES], nodes[..., _SCORES:]
    others = [layer for place, layer in enumerate(layers) if place != first]
    if dice.rng.random() < 0.4:  # the classical case: causes are seen, effects are not
        others, rest = [layers[0]], rest[..., :0]
    pool = torch.cat([*others, rest], -1) if first else torch.cat([*others[-2:], rest], -1)
    if pool.shape[-1] < width:
        pool = torch.cat([pool, dice.normal(size, rows, width - pool.shape[-1])], -1)
    places = dice.some(size, pool.shape[-1], width)
    return pool.gather(2, places[:, None].expand(-1, rows, -1)), scores


def _forest(dice: _Dice, size: int, rows: int, width: int) -> tuple[Tensor, Tensor]:
    """Sums of trees that ask the same question on a level."""
    x = _inputs(dice, size, rows, width)
    trees, depth = round(dice.between(1, 24)), int(dice.rng.integers(1, 6))
    asked = dice.some(size, width, max(1, round(dice.between(1, width))))
    columns = asked.gather(1, torch.randint(asked.shape[1], (size, trees * depth), generator=dice.torch))
    at = torch.randint(rows, (size, 1, trees * depth), generator=dice.torch)
    values = x.gather(2, columns[:, None].expand(-1, rows, -1))
    bits = (values > values.gather(1, at)).unflatten(-1, (trees, depth))
    leaf = (bits * 2 ** torch.arange(depth)).sum(-1) + torch.arange(trees) * 2**depth
    leaves = dice.normal(size, trees * 2**depth, _SCORES)
    found = leaves.gather(1, leaf.flatten(1)[..., None].expand(-1, -1, _SCORES))
    return x, found.unflatten(1, (rows, trees)).sum(2)


def _sum(dice: _Dice, size: int, rows: int, width: int) -> tuple[Tensor, Tensor]:
    """Weighted columns, some bent, perhaps with products of two."""
    x = _inputs(dice, size, rows, width)
    bent = dice.uniform(size, 1, width) < dice.rng.choice([0.0, 0.0, 0.3, 0.8])
    terms = torch.where(bent, _scaled(_bent(dice, x)), x)
    used = dice.uniform(size, width, 1) < dice.rng.uniform(0.2, 1.0)
    scores = terms @ (dice.normal(size, width, _SCORES) * used)
    if width > 1 and dice.rng.random() < 0.4:
        pairs = dice.some(size, width, 2)[:, None].expand(-1, rows, -1)
        scores = scores + 2 * x.gather(2, pairs).prod(-1, keepdim=True) * dice.normal(size, 1, _SCORES)
    return x, scores


def _mixture(dice: _Dice, size: int, rows: int, width: int) -> tuple[Tensor, Tensor]:
    """Every class is one to three clouds in a few directions; columns mix them. The score of the right class is 1."""
    inner, clouds = int(dice.rng.integers(1, min(width, 8) + 1)), int(dice.rng.integers(1, 4))
    centres = dice.between(0.4, 3.0) * dice.normal(size, _SCORES * clouds, inner)
    shapes = dice.normal(size, _SCORES * clouds, inner * inner) / inner**0.5
    which = torch.randint(_SCORES * clouds, (size, rows), generator=dice.torch)
    take = which[..., None].expand(-1, -1, inner)
    shape = shapes.gather(1, which[..., None].expand(-1, -1, inner * inner)).unflatten(-1, (inner, inner))
    x = centres.gather(1, take) + (shape @ dice.normal(size, rows, inner, 1))[..., 0]
    plain = torch.nn.functional.pad(x, (0, width - inner))
    if dice.rng.random() < 0.6:
        plain = x @ dice.normal(size, inner, width)
    x = plain + dice.between(0.05, 1.5) * dice.normal(size, rows, width)
    return x, torch.nn.functional.one_hot(which % _SCORES, _SCORES).float()


_KINDS = (_network, _forest, _sum, _mixture)
_SHARES = (0.45, 0.2, 0.2, 0.15)


def _noisy(dice: _Dice, scores: Tensor) -> Tensor:
    scores = _scaled(scores)
    if dice.rng.random() < 0.3:
        return scores
    return scores + dice.between(0.02, 1.0) * dice.normal(*scores.shape)


def _number(dice: _Dice, scores: Tensor) -> Tensor:
    y = _noisy(dice, scores)[..., 0]
    kind = dice.rng.random()
    if kind < 0.15:
        return torch.exp(0.7 * y)
    return torch.tanh(y) if kind < 0.25 else y


def _classes(dice: _Dice, scores: Tensor, most: int, by_largest: bool) -> Tensor:
    """(tables, rows) classes: slices of one score, or the largest of several; numbered at random."""
    size, rows, _ = scores.shape
    wanted = 2 if dice.rng.random() < 0.45 else int(dice.rng.integers(2, most + 1))
    if by_largest:  # clouds: classes beyond those wanted are dealt out among them; a few labels are wrong
        y = scores.argmax(-1) % wanted
        wrong = dice.uniform(size, rows) < dice.rng.choice([0.0, 0.0, 0.05, 0.15])
        y = torch.where(wrong, torch.randint(wanted, (size, rows), generator=dice.torch), y)
    elif dice.rng.random() < 0.5:
        y = (_noisy(dice, scores[..., :wanted]) + 0.5 * dice.normal(size, 1, wanted)).argmax(-1)
    else:
        score = _noisy(dice, scores[..., :1])[..., 0]
        cuts = score.sort(-1).values.gather(
            1, (dice.uniform(size, wanted - 1) * 0.9 * rows + 0.05 * rows).long().clamp(max=rows - 1)
        )
        y = (score[..., None] > cuts[:, None]).sum(-1)
    return dice.uniform(size, wanted).argsort(-1).gather(1, y).float()


def _observed(dice: _Dice, x: Tensor) -> Tensor:
    """What is written down of the columns: bent, coarse, under other numbers, with holes."""
    x = _scaled(x)
    size, _, width = x.shape
    kind = dice.uniform(size, 1, width)
    often = dice.rng.choice([0.0, 0.1, 0.4])
    x = torch.where(kind < 0.4 * often, torch.exp(x.clamp(max=4.0)), x)
    x = torch.where((kind >= 0.4 * often) & (kind < 0.6 * often), x**3, x)
    x = torch.where((kind >= 0.6 * often) & (kind < 0.8 * often), torch.sigmoid(3 * x), x)
    if dice.rng.random() < 0.4:
        levels = int(dice.rng.integers(2, 9))
        code = ((0.5 + 0.5 * torch.erf(_scaled(x) / 2**0.5)) * levels).long().clamp(0, levels - 1)
        if dice.rng.random() < 0.5:  # categories, numbered without any order
            names = dice.uniform(size, levels, width).argsort(1)
            code = names.gather(1, code)
        x = torch.where(dice.uniform(size, 1, width) < dice.rng.choice([0.2, 0.6, 1.0]), code.float(), x)
    if dice.rng.random() < 0.15:
        holes = dice.uniform(*x.shape) < dice.rng.uniform(0.0, 0.3) * dice.uniform(size, 1, width)
        x = x.masked_fill(holes, float("nan"))
    return x
