"""Softmax attention of whole sequences: causal or not, padded, packed with documents, within a window.

All tensors are (batch, heads, n, head size). Fused kernels of torch do the work; what is written here is what may see what.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from lightformers.parts.mixers import starts
from lightformers.parts.recording import eager


def documents(mask: Tensor) -> Tensor:
    """(batch, n) mask of `parts.mixers` -> the number of each token's document from 1, and 0 at padding."""
    return torch.where(mask != 0, starts(mask).cumsum(1), 0)


def visible(n: int, owner: Tensor | None, window: int | None, causal: bool, device: torch.device) -> Tensor:
    """Which key each query sees: bool, (batch or 1, 1, n, n). owner: (batch, n); only equal ones see each other.

    window: keys at a distance below it. Every token sees itself, so that no row is empty.
    """
    place = torch.arange(n, device=device)
    distance = place[:, None] - place[None, :]
    seen = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if window is not None:
        seen = seen & (distance.abs() < window)
    seen = seen[None, None]
    return seen if owner is None else seen & (owner[:, None, :, None] == owner[:, None, None, :])


#: Longest sequence for which training in bfloat16 on a CPU multiplies whole matrices: the backward of torch's fused
#: attention takes twice as long as these products there, which keep n^2 numbers.
QUICK = 256


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    owner: Tensor | None = None,
    window: int | None = None,
    causal: bool = True,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q k' / sqrt(head size)) v over what is visible. Fewer heads of k and v are shared by groups of queries.

    A causal window costs n * window, not n^2, in time and memory.
    """
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = (shared(x, groups) for x in (k, v))
    n = q.shape[2]
    if window is not None and window >= n:
        window = None
    learns = torch.is_grad_enabled() and q.requires_grad and q.dtype == torch.bfloat16
    if learns and n <= QUICK and k.shape[2] == n and eager(q):
        seen = (
            None
            if window is None and owner is None and not causal
            else visible(n, owner, window, causal, q.device)
        )
        return _products(q, k, v, seen, dropout)
    if window is None and owner is None:
        return scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=causal)
    if causal and window is not None and n > 2 * max(window, 64):
        return _banded(q, k, v, owner, window, dropout)
    return scaled_dot_product_attention(q, k, v, visible(n, owner, window, causal, q.device), dropout)


def _products(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, dropout: float) -> Tensor:
    """The same by matrix products. seen: bool, (batch or 1, 1, n, n)."""
    batch, heads, n, size = q.shape
    queries, keys, values = (x.reshape(batch * heads, n, x.shape[-1]) for x in (q, k, v))
    if seen is None:
        scores = torch.bmm(queries * size**-0.5, keys.transpose(1, 2))
    else:
        bias = torch.zeros(seen.shape, dtype=q.dtype).masked_fill_(~seen, -torch.inf)
        bias = bias[0] if len(seen) == 1 else bias.expand(batch, heads, n, n).reshape(-1, n, n)
        scores = torch.baddbmm(bias, queries, keys.transpose(1, 2), alpha=size**-0.5)
    weights = torch.nn.functional.dropout(scores.softmax(-1), dropout)
    return torch.bmm(weights, values).unflatten(0, (batch, heads))


def shared(x: Tensor, groups: int) -> Tensor:
    """(batch, kv heads, n, size) -> (batch, kv heads * groups, n, size), each head `groups` times in a row."""
    batch, heads, n, size = x.shape
    return x[:, :, None].expand(batch, heads, groups, n, size).reshape(batch, heads * groups, n, size)


def _banded(q: Tensor, k: Tensor, v: Tensor, owner: Tensor | None, window: int, dropout: float) -> Tensor:
    """A causal window, block by block: a block of queries sees its own keys and those of the block before."""
    batch, n = q.shape[0], q.shape[2]
    side = max(window, 64)
    blocks = -(-n // side)
    short = blocks * side - n

    def cut(x: Tensor) -> Tensor:  # (batch, heads, n, size) -> (batch * blocks, heads, side, size)
        return x.unflatten(2, (-1, side)).transpose(1, 2)

    def pairs(x: Tensor) -> Tensor:  # every block behind the one before it
        two = cut(pad(x, (0, 0, side, short)))
        return torch.cat([two[:, :-1], two[:, 1:]], 3).flatten(0, 1)

    distance = torch.arange(side, device=q.device)[:, None] - torch.arange(-side, side, device=q.device)
    near = (distance >= 0) & (distance < window)
    if owner is None:
        owner = torch.ones(1, n, dtype=torch.long, device=q.device)
    ours = pad(owner, (side, short), value=-1).unflatten(1, (-1, side))
    theirs = torch.cat([ours[:, :-1], ours[:, 1:]], 2)
    seen = near & (ours[:, 1:, :, None] == theirs[:, :, None, :])  # (batch or 1, blocks, side, 2 * side)
    seen = seen.expand(batch, -1, -1, -1).flatten(0, 1)[:, None]
    queries = cut(pad(q, (0, 0, 0, short))).flatten(0, 1)
    out = scaled_dot_product_attention(queries, pairs(k), pairs(v), seen, dropout)
    return out.unflatten(0, (batch, blocks)).transpose(1, 2).flatten(2, 3)[:, :, :n]
