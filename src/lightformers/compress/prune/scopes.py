"""What is compared with what: scores of all blocks -> which pieces stay in each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightformers.errors import UserError


def share(keep: float, size: int, multiple: int = 1) -> int:
    """How many of `size` a share of `keep` is, to the nearest `multiple`, at least one, at most all.

    Raises UserError for a share outside (0, 1].
    """
    if not 0 < keep <= 1:
        raise UserError(f"keep is a share in (0, 1], got {keep}")
    if multiple < 1:
        raise UserError(f"rounding needs a multiple of at least 1, got {multiple}")
    if keep == 1 or size <= multiple:
        return size if keep == 1 else max(1, round(keep * size))
    return min(size, max(multiple, multiple * math.floor(keep * size / multiple + 0.5)))


def best(scores: Tensor, count: int) -> list[int]:
    """Indices of the `count` highest scores, ascending. Ties go to the lower index; NaN counts as lowest."""
    clean = torch.nan_to_num(scores.double(), nan=-math.inf)
    return sorted(torch.argsort(clean, descending=True, stable=True)[:count].tolist())


def within(scores: Sequence[Tensor], counts: Sequence[int]) -> list[list[int]]:
    """Each block on its own: the best `counts[b]` of block b."""
    return [best(s, n) for s, n in zip(scores, counts)]


def across(scores: Sequence[Tensor], total: int, multiple: int = 1) -> list[list[int]]:
    """All blocks together: about `total` pieces in all, `multiple` of them at least in each, in whole multiples.

    Scores are divided by their block's mean first: blocks work at different scales.
    """
    scaled = [s.double() / s.double().mean().clamp(min=1e-300) for s in scores]
    order = torch.cat(scaled).argsort(descending=True, stable=True)[:total]
    owner = torch.cat([torch.full((len(s),), i) for i, s in enumerate(scores)])[order]
    counts = torch.bincount(owner, minlength=len(scores)).tolist()
    widths = [
        min(len(s), max(multiple, multiple * math.floor(n / multiple + 0.5))) for s, n in zip(scores, counts)
    ]
    return within(scaled, widths)
