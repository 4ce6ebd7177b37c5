"""Attention with a weight for everything at less than its cost: near tokens one by one, the others by spans (Combiner, Ren
et al., 2021, arXiv 2107.05768).

The probability of token j is that of its span times that within the span. A span r has query Q_r and key K_r, the largest
(or mean) of its tokens' entry by entry, and value V_r = sum_j softmax_j(Q_r . k_j) v_j; a query meets the tokens near it
and the K_r in ONE softmax. With pool "last" a span is just its last token: that is the sparse pattern which each form is
built from (fixed: Sparse Transformer, arXiv 1904.10509; logsparse: arXiv 1907.00235), and gives no weight to the
others. Not built: the axial mixture, whose spans are prefixes and suffixes of rows and columns; the axial row-major form
is in `parts.mixers.combiner`. All tensors are (batch, heads, n, size); queries come scaled by 1 / sqrt(size).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

Pool = Literal["max", "mean", "last"]


class Spans(NamedTuple):
    """What segments left: keys, values (batch, heads, segments, m, size), seen: (batch, segments), which there are."""

    keys: Tensor
    values: Tensor
    seen: Tensor


def summaries(
    q: Tensor, k: Tensor, v: Tensor, there: Tensor | None = None, pool: Pool = "max"
) -> tuple[Tensor, Tensor]:
    """Keys and values of spans: q, k, v (..., tokens, size) -> (..., size) each.

    there: (..., tokens) bool, tokens that count, which stand before the others; a span without any gets zeros.
    """
    if pool == "last":
        if there is None:
            return k[..., -1, :], v[..., -1, :]
        end = (there.sum(-1, keepdim=True) - 1).clamp(min=0)[..., None]
        some = there.any(-1, keepdim=True)
        key, value = (x.take_along_dim(end, -2)[..., 0, :].masked_fill(~some, 0) for x in (k, v))
        return key, value
    if there is None:
        top, key = (x.amax(-2) if pool == "max" else x.mean(-2) for x in (q, k))
        return key, (torch.einsum("...d,...td->...t", top, k).softmax(-1)[..., None, :] @ v)[..., 0, :]
    real = there[..., None]
    if pool == "max":
        top, key = (x.masked_fill(~real, torch.finfo(x.dtype).min).amax(-2) for x in (q, k))
    else:
        top, key = ((x * real).sum(-2) / real.sum(-2).clamp(min=1) for x in (q, k))
    some = there.any(-1, keepdim=True)
    top, key = (x.masked_fill(~some, 0) for x in (top, key))
    scores = torch.einsum("...d,...td->...t", top, k).masked_fill(~there, torch.finfo(k.dtype).min)
    weights = scores.softmax(-1).masked_fill(~there, 0)
    return key, (weights[..., None, :] @ v)[..., 0, :]


def fixed(
    q: Tensor, k: Tensor, v: Tensor, span: int, causal: bool = True, there: Tensor | None = None, pool: Pool = "max"
) -> Tensor:  # fmt: skip
    """Combiner-Fixed: the tokens of one's own segment of `span` one by one, all other segments by summaries.

    causal: in the segment those up to oneself, of other segments those that are earlier; padding may then stand on the
    right without being named. there: (batch, n) bool, tokens (two-way). Cost n * (span + n / span).
    """
    n = q.shape[2]
    if causal:
        q, k, v = (cut(x, span) for x in (q, k, v))
        keys, values = summaries(q, k, v, pool=pool)
        return segmented(q, k, v, keys[:, :, :, None], values[:, :, :, None]).flatten(2, 3)[:, :, :n]
    real = torch.ones(1, n, dtype=torch.bool, device=q.device) if there is None else there
    real = pad(real, (0, -n % span)).unflatten(1, (-1, span))[:, None]  # (batch or 1, 1, segments, span)
    q, k, v = (cut(x, span) for x in (q, k, v))
    keys, values = summaries(q, k, v, real.expand(*q.shape[:-1]), pool)
    place = torch.arange(q.shape[2], device=q.device)
    # every token sees itself, so that no row is empty
    near = real[..., None, :] | torch.eye(span, dtype=torch.bool, device=q.device)
    far = (place[:, None] != place)[:, None] & real.any(-1)[:, :, None, None]
    spans = torch.einsum("bhrtd,bhsd->bhrts", q, keys)
    out, share = _joint(q @ k.transpose(-1, -2), near, spans, far, v)
    return (out + torch.einsum("bhrts,bhsd->bhrtd", share, values)).flatten(2, 3)[:, :, :n]


def cut(x: Tensor, span: int) -> Tensor:
    """(batch, heads, n, size) -> (batch, heads, segments, span, size), zeros behind the end."""
    return pad(x, (0, 0, 0, -x.shape[2] % span)).unflatten(2, (-1, span))


def segmented(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, past: Spans | None = None
) -> Tensor:
    """Causal: tokens of one's own segment up to oneself, and what earlier segments left. -> like q.

    q, k, v: (batch, heads, segments, span, size). keys, values: (batch, heads, segments, m, size), what each segment
    leaves: m is 1, or span, and then a token meets what stands in its own column. past: of segments before these.
    """
    count, span = q.shape[2:4]
    near = torch.ones(span, span, dtype=torch.bool, device=q.device).tril()
    place = torch.arange(count, device=q.device)
    far = (place[:, None] > place)[None, None, :, None]
    if past is not None:
        keys, values = torch.cat([past.keys, keys], 2), torch.cat([past.values, values], 2)
        before = past.seen[:, None, None, None].expand(-1, 1, count, 1, -1)
        far = torch.cat([before, far.expand(len(before), 1, count, 1, count)], -1)
    if keys.shape[3] == 1:
        spans = torch.einsum("bhrtd,bhsd->bhrts", q, keys[:, :, :, 0])
        out, share = _joint(q @ k.transpose(-1, -2), near, spans, far, v)
        return out + torch.einsum("bhrts,bhsd->bhrtd", share, values[:, :, :, 0])
    out, share = _joint(q @ k.transpose(-1, -2), near, torch.einsum("bhrtd,bhstd->bhrts", q, keys), far, v)
    return out + torch.einsum("bhrts,bhstd->bhrtd", share, values)


def _joint(direct: Tensor, near: Tensor, spans: Tensor, far: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """One softmax over both: the part of the output that comes from near tokens, and the weights of spans."""
    least = torch.finfo(direct.dtype).min  # never -inf: rows of padding stay numbers
    scores = torch.cat([direct.masked_fill(~near, least), spans.masked_fill(~far, least)], -1)
    weights = scores.softmax(-1)
    count = direct.shape[-1]
    return weights[..., :count] @ v, weights[..., count:]


def logsparse(q: Tensor, k: Tensor, v: Tensor, pool: Pool = "max") -> Tensor:
    """Combiner-Logsparse, causal: oneself, and one span for every bit that is set in one's position.

    At level l token t sees the span of 2^l tokens before the block of 2^l in which it stands, if that block is the
    second of a pair; these spans tile all that came before. Level 0 are single tokens. Padding may stand on the right.
    Cost n log n.
    """
    n = q.shape[2]
    levels = max(n - 1, 0).bit_length()
    full = 1 << levels
    q, k, v = (pad(x, (0, 0, 0, full - n)) for x in (q, k, v))
    least = torch.finfo(q.dtype).min
    logits = [(q * k).sum(-1)]
    values = []
    for level in range(levels):
        # (batch, heads, pairs, 2, 2^l, size)
        queries, keys, own = (x.unflatten(2, (-1, 2, 1 << level)) for x in (q, k, v))
        key, value = summaries(queries[:, :, :, 0], keys[:, :, :, 0], own[:, :, :, 0], pool=pool)
        met = torch.einsum("bhptd,bhpd->bhpt", queries[:, :, :, 1], key)
        logits.append(torch.stack([torch.full_like(met, least), met], 3).flatten(2))
        values.append(value)
    weights = torch.stack(logits, -1).softmax(-1)
    out = weights[..., :1] * v
    for level, value in enumerate(values):
        share = weights[..., level + 1].unflatten(2, (-1, 2, 1 << level))
        out = out + (share[..., None] * value[:, :, :, None, None]).flatten(2, 4)
    return out[:, :, :n]
