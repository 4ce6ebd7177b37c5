"""The delta rule over a sequence: a matrix state that forgets what a key retrieves before it is written again.

DeltaNet (Schlag et al., 2021, arXiv 2102.11174), in parallel over the sequence as Yang et al. (2024, arXiv 2406.06484):

    S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}' k_t)',    o_t = S_t' q_t / sqrt(key size)
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightformers.errors import UserError
from lightformers.kernels.chunks import affine, check, cut, documents, exact, joined

#: Tokens of a chunk.
CHUNK = 64


def reference(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor | None = None, starts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The equation token by token. Arguments and results as in `delta_rule`."""
    check(q, k, v, state, starts, 1)
    kind, given = exact(v), v.dtype
    q, k, v, beta = (x.to(kind) for x in (q, k, v, beta))
    held = v.new_zeros(*k.shape[:2], k.shape[3], v.shape[3]) if state is None else state.to(kind)
    out = []
    for t in range(k.shape[2]):
        if starts is not None:
            held = held * ~starts[:, t, None, None, None]
        y, held = _token(q[:, :, t] * q.shape[-1] ** -0.5, k[:, :, t], v[:, :, t], beta[:, :, t], held)
        out.append(y)
    return torch.stack(out, 2).to(given), held


def step(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token: q, k (batch, heads, key size), v (batch, heads, value size), beta (batch, heads)."""
    kind = exact(state)
    y, state = _token(q.to(kind) * q.shape[-1] ** -0.5, k.to(kind), v.to(kind), beta.to(kind), state)
    return y.to(v.dtype), state


def _token(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    found = (k[..., None, :] @ state)[..., 0, :]
    state = state + k[..., :, None] * (beta[..., None] * (v - found))[..., None, :]
    return (q[..., None, :] @ state)[..., 0, :], state


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """(outputs (batch, heads, n, value size), state after the last token), in chunks; linear in n in time and memory.

    q, k: (batch, heads, n, key size), the keys of length at most 1 or states grow without bound. v: (batch, heads, n,
    value size). beta: (batch, heads, n), strength of writing, from 0 (the state stays) to 1 (what the key retrieved is
    replaced), up to 2 (the state's part along the key changes its sign).
    state: (batch, heads, key size, value size) before the first token, None for zeros. starts: (batch, n) bool, true
    where a document starts: the state is zero there.
    Within a chunk the product of the Householder-like factors I - beta k k' is written I - K' W (the WY form), W and U
    from one triangular system; chunks hand on S <- (I - K' W) S + K' U. It runs in float32 or better; outputs have the
    dtype of v. Raises UserError for shapes that do not agree and chunks below 1.
    """
    check(q, k, v, state, starts, chunk)
    if beta.shape != k.shape[:3]:
        raise UserError(f"the strengths are {tuple(beta.shape)}, not {tuple(k.shape[:3])}: (batch, heads, n)")
    with torch.autocast(v.device.type, enabled=False):  # products of matrices too are exact
        return _chunked(q, k, v, beta, state, starts, min(chunk, k.shape[2]))


def _chunked(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor | None, starts: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    (batch, heads, n, size), width, kind = k.shape, v.shape[3], exact(v)
    given = v.dtype
    q, k, v, beta = (cut(x.to(kind), chunk) for x in (q, k, v, beta))
    q = q * size**-0.5
    weighted = k * beta[..., None]
    seen, links = q @ k.mT, weighted @ k.mT
    if starts is not None:
        known = documents(starts, chunk)
        seen, links = seen * known.same, links * known.same
    # solve_triangular reads what is below the diagonal alone
    both = torch.linalg.solve_triangular(
        links, torch.cat([v * beta[..., None], weighted], -1), upper=False, unitriangular=True
    )
    u, w = both.split([width, size], -1)
    stays = torch.eye(size, dtype=kind, device=k.device)
    if starts is not None:
        w, q = w * known.carried[..., None], q * known.carried[..., None]
        k, stays = k * known.kept[..., None], stays * known.whole[..., None, None]
    first = k.new_zeros(batch, heads, size, width) if state is None else state.to(kind)
    states = affine(_ahead(stays - k.mT @ w), _ahead(k.mT @ u), first.flatten(0, 1))
    before = states[:-1].movedim(0, 1).unflatten(0, (batch, heads))
    out = q @ before + seen.tril() @ (u - w @ before)
    return joined(out, n).to(given), states[-1].unflatten(0, (batch, heads)).clone()


def _ahead(x: Tensor) -> Tensor:
    """(batch, heads, chunks, ...) -> (chunks, batch * heads, ...)."""
    return x.flatten(0, 1).movedim(1, 0)
