"""Causal linear attention: a matrix state that keys and values are added to (Katharopoulos et al., 2020, arXiv 2006.16236).

S_t = S_{t-1} + k_t v_t',    o_t = S_t' q_t
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightformers.kernels.chunks import check, cut, documents, exact, joined

#: Tokens of a chunk.
CHUNK = 64


def reference(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None = None, starts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The equation token by token. Arguments and results as in `linear_attention`."""
    check(q, k, v, state, starts, 1)
    kind, given = exact(v), v.dtype
    q, k, v = (x.to(kind) for x in (q, k, v))
    held = v.new_zeros(*k.shape[:2], k.shape[3], v.shape[3]) if state is None else state.to(kind)
    out = []
    for t in range(k.shape[2]):
        if starts is not None:
            held = held * ~starts[:, t, None, None, None]
        y, held = step(q[:, :, t], k[:, :, t], v[:, :, t], held)
        out.append(y)
    return torch.stack(out, 2).to(given), held


def step(q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token: q, k (batch, heads, key size), v (batch, heads, value size)."""
    kind = exact(state)
    state = state + (k[..., :, None] * v[..., None, :]).to(kind)
    return (q[..., None, :].to(kind) @ state)[..., 0, :].to(v.dtype), state


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """(outputs (batch, heads, n, value size), state after the last token), in chunks; linear in n in time and memory.

    q, k: (batch, heads, n, key size); v: (batch, heads, n, value size). state: (batch, heads, key size, value size)
    before the first token, None for zeros. starts: (batch, n) bool, true where a document starts: the state is zero
    there. It runs in float32 or better; outputs have the dtype of v. Raises UserError for shapes that do not agree and
    chunks below 1. There is no scale and no normaliser: a column of ones in v gives the sum of weights.
    """
    check(q, k, v, state, starts, chunk)
    with torch.autocast(v.device.type, enabled=False):  # products of matrices too are exact
        return _chunked(q, k, v, state, starts, min(chunk, k.shape[2]))


def _chunked(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, starts: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    kind, given, n = exact(v), v.dtype, k.shape[2]
    q, k, v = (cut(x.to(kind), chunk) for x in (q, k, v))
    seen = (q @ k.mT).tril()
    known = None if starts is None else documents(starts, chunk)
    if known is not None:
        seen, q, k = seen * known.same, q * known.carried[..., None], k * known.kept[..., None]
    added = k.mT @ v
    first = torch.zeros_like(added[:, :, 0]) if state is None else state.to(kind)
    if known is None:
        states = torch.cat([first[:, :, None], added], 2).cumsum(2)
    else:
        steps = [first]
        for i in range(added.shape[2]):
            steps.append(steps[-1] * known.whole[:, :, i, None, None] + added[:, :, i])
        states = torch.stack(steps, 2)
    return joined(q @ states[:, :, :-1] + seen @ v, n).to(given), states[:, :, -1].clone()
