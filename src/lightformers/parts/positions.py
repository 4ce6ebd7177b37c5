"""Positions of tokens: rotary embeddings of queries and keys, and the sinusoidal table."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightformers.errors import UserError
from lightformers.kernels.rotary import reference, rotate
from lightformers.parts.recording import eager


def rotary_size(head_size: int, rotary: bool | float) -> int:
    """How many entries of a head are turned: all (True), none (False), or that share of them, rounded down.

    Raises UserError where the number is odd or the share is not in [0, 1].
    """
    share = float(rotary)
    if not 0 <= share <= 1:
        raise UserError(f"rotary is true, false or the share of a head that is turned, not {rotary}")
    size = int(head_size * share + 1e-9)
    if size % 2:
        raise UserError(f"rotary positions turn pairs: {size} entries of a head of {head_size} are odd")
    return size


#: (size, theta, dtype) -> cos beside sin of the positions from 0, as many as were asked for so far.
_TABLES: dict[tuple[int, float, torch.dtype], Tensor] = {}


def turns(place: Tensor, size: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(batch or 1, n) positions -> cos and sin, (batch or 1, 1, n, size / 2).

    Angles are position * theta ** (-2 i / size) (Su et al., 2021, arXiv 2104.09864), exact to float32 or `dtype` if that
    is wider; cos and sin are then of `dtype`.
    """
    if not eager(place):
        return tuple(x.to(dtype) for x in _turns(place, size, theta, dtype))  # type: ignore[return-value]
    key = size, theta, dtype
    try:  # an index beyond the table is an error that costs nothing where there is none
        found = torch.nn.functional.embedding(place, _TABLES[key])
    except (KeyError, IndexError):
        with torch.inference_mode(False):
            rows = torch.arange(max(256, 2 * int(place.max()) + 2))[None]
            _TABLES[key] = torch.cat(_turns(rows, size, theta, dtype), -1)[0, 0].to(dtype)
        found = torch.nn.functional.embedding(place, _TABLES[key])
    cos, sin = found[:, None].chunk(2, -1)
    return cos, sin


def _turns(place: Tensor, size: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    exact = torch.promote_types(dtype, torch.float32)
    step = torch.arange(0, size, 2, device=place.device, dtype=exact) * (-math.log(theta) / size)
    angle = place[:, None, :, None].to(exact) * step.exp()
    return angle.cos(), angle.sin()


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(batch, heads, n, head size) with the first `size` entries of every head turned, in x's own dtype.

    The pairs are (i, i + size / 2), as in the released code of Llama and GPT-NeoX.
    """
    if torch.is_grad_enabled() and x.requires_grad and x.dtype == cos.dtype and eager(x):
        return rotate(x, cos, sin)
    return reference(x, cos, sin)


def sinusoids(length: int, width: int, device: torch.device | str | None = None) -> Tensor:
    """(length, width) float32 table, sines beside cosines of 10000 ** (-2 i / width) (Vaswani et al., arXiv 1706.03762).

    Entry 2 i is the sine and 2 i + 1 the cosine. Raises UserError for an odd width.
    """
    if width % 2:
        raise UserError(f"sinusoidal positions need an even width, not {width}")
    cos, sin = _turns(torch.arange(length, device=device)[None], width, 10000.0, torch.float32)
    return torch.stack([sin[0, 0], cos[0, 0]], -1).flatten(1)
