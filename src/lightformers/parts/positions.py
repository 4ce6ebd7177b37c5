"""Positions of tokens: rotary embeddings of queries and keys, and the sinusoidal table."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightformers.errors import UserError


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


def turns(place: Tensor, size: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(batch or 1, n) positions -> cos and sin, (batch or 1, 1, n, size / 2), in float32 or `dtype` if that is wider.

    Angles are position * theta ** (-2 i / size) (Su et al., 2021, arXiv 2104.09864).
    """
    exact = torch.promote_types(dtype, torch.float32)
    step = torch.arange(0, size, 2, device=place.device, dtype=exact) * (-math.log(theta) / size)
    angle = place[:, None, :, None].to(exact) * step.exp()
    return angle.cos(), angle.sin()


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(batch, heads, n, head size) with the first `size` entries of every head turned, in x's own dtype.

    The pairs are (i, i + size / 2), as in the released code of Llama and GPT-NeoX.
    """
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)
    return torch.cat([turned, rest], -1) if rest.shape[-1] else turned


def sinusoids(length: int, width: int, device: torch.device | str | None = None) -> Tensor:
    """(length, width) float32 table, sines beside cosines of 10000 ** (-2 i / width) (Vaswani et al., arXiv 1706.03762).

    Entry 2 i is the sine and 2 i + 1 the cosine. Raises UserError for an odd width.
    """
    if width % 2:
        raise UserError(f"sinusoidal positions need an even width, not {width}")
    cos, sin = turns(torch.arange(length, device=device)[None], width, 10000.0, torch.float32)
    return torch.stack([sin[0, 0], cos[0, 0]], -1).flatten(1)
