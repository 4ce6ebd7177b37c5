"""Numbers that were written out in digits, read as numbers, in plain tensor operations that every runtime knows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def read(said: Tensor, numerals: Sequence[int], otherwise: float) -> Tensor:
    """(batch, n) tokens -> (batch,) numbers. numerals: the tokens of 0 to 9, of the point and of the minus.

    Reading ends with the first token that is none of them, with a second point, or a minus that is not first.
    otherwise: what rows without a digit become.
    """
    *digits, point, minus = numerals
    table = torch.tensor(digits, device=said.device)
    value = torch.zeros_like(said[:, 0], dtype=torch.float32)
    unit, negative = torch.ones_like(value), said[:, 0] == minus
    behind, any_digit = torch.zeros_like(negative), torch.zeros_like(negative)
    going = torch.ones_like(negative)
    for place, token in enumerate(said.unbind(1)):
        hit = token[:, None] == table
        digit = hit.any(-1)
        dot = token == point
        first = (token == minus) if place == 0 else torch.zeros_like(going)
        going = going & (digit | (dot & ~behind) | first)
        now = going & digit
        amount = (hit.to(value.dtype) * torch.arange(10.0, device=said.device)).sum(-1)
        unit = torch.where(now & behind, unit / 10, unit)
        value = torch.where(now, torch.where(behind, value + amount * unit, value * 10 + amount), value)
        any_digit = any_digit | now
        behind = behind | (going & dot)
    value = torch.where(negative, -value, value)
    return torch.where(any_digit, value, torch.full_like(value, otherwise))
