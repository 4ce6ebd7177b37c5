"""The state of causal attention that keeps the tokens of its own segment, and of earlier segments what they left."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightformers.parts.attention.combiner import Spans, cut, segmented
from lightformers.parts.documents import gathered, to_front
from lightformers.parts.mixers import State

#: Segments by which the room of a decoding state grows.
BLOCK = 32

#: (q, k, v, x) of whole segments (batch, heads, segments, span, size), x (batch, 1, segments, span, width) -> the keys
#: and values that they leave, (batch, heads, segments, m, size).
Close = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
Heads = tuple[Tensor, Tensor, Tensor, Tensor]
_OPEN = ("queries", "keys", "values", "inputs")


def begin(
    batch: int, heads: int, size: int, width: int, span: int, left: int, device: torch.device | str, dtype: torch.dtype
) -> State:  # fmt: skip
    """The state before the first token. left: how many keys a segment leaves.

    "queries", "keys", "values", "inputs": the open segment, the token at position p in slot p % span; "span_keys",
    "span_values" (batch, heads, room, left, size); "count" (batch).
    """
    sizes = {"queries": (heads, size), "keys": (heads, size), "values": (heads, size), "inputs": (1, width)}
    state = {
        name: torch.zeros(batch, h, span, d, device=device, dtype=dtype) for name, (h, d) in sizes.items()
    }
    for name in ("span_keys", "span_values"):
        state[name] = torch.zeros(batch, heads, 0, left, size, device=device, dtype=dtype)
    return state | {"count": torch.zeros(batch, dtype=torch.long, device=device)}


def whole(heads: Heads, span: int, close: Close) -> Tensor:
    """All of a sequence: (batch, heads, n, size) and x (batch, 1, n, width) -> (batch, heads, n, size)."""
    n = heads[0].shape[2]
    q, k, v, x = (cut(t, span) for t in heads)
    return segmented(q, k, v, *close(q, k, v, x)).flatten(2, 3)[:, :, :n]


def extend(
    heads: Heads, state: State, mask: Tensor | None, span: int, close: Close
) -> tuple[Tensor, State]:  # fmt: skip
    """n more tokens: the open segment and they are brought to the front, row by row, and form whole segments again."""
    count, n = state["count"], heads[0].shape[2]
    slot = torch.arange(span, device=count.device)
    real = torch.ones(len(count), n, dtype=torch.bool, device=count.device) if mask is None else mask != 0
    order, total = to_front(torch.cat([slot < (count % span)[:, None], real], 1))
    order = order[:, : max(int(total.max()), 1)]
    both = [gathered(torch.cat([state[name].to(t.dtype), t], 2), order) for name, t in zip(_OPEN, heads)]
    q, k, v, x = (cut(t, span) for t in both)
    keys, values = close(q, k, v, x)
    room = state["span_keys"].shape[2]
    past = (state["span_keys"].to(keys.dtype), state["span_values"].to(values.dtype))
    seen = torch.arange(room, device=count.device) < (count // span)[:, None]
    y = segmented(q, k, v, keys, values, Spans(*past, seen)).flatten(2, 3)
    at = torch.zeros(len(count), span + n, dtype=torch.long, device=count.device)
    at.scatter_(1, order, torch.arange(order.shape[1], device=count.device).expand_as(order).contiguous())
    closed = total // span
    line, spans = to_front(
        torch.cat([seen, torch.arange(keys.shape[2], device=count.device) < closed[:, None]], 1)
    )
    line = line[:, : int(spans.max())]
    left = closed[:, None] * span + slot
    new = {name: gathered(t, left.clamp(max=t.shape[2] - 1)) for name, t in zip(_OPEN, both)}
    for name, old, more in (("span_keys", past[0], keys), ("span_values", past[1], values)):
        new[name] = gathered(torch.cat([old, more], 2).flatten(3), line).unflatten(3, keys.shape[3:])
    return gathered(y, at[:, span:]), new | {"count": count + real.sum(1)}


def step(heads: Heads, state: State, span: int, close: Close) -> tuple[Tensor, State]:
    """One more token, all (batch, heads, 1, size)."""
    count = state["count"]
    slot, segment = count % span, count // span
    at = slot[:, None, None, None]
    new = {
        name: state[name].to(t.dtype).scatter(2, at.expand(-1, t.shape[1], 1, t.shape[3]), t)
        for name, t in zip(_OPEN, heads)
    }
    q = heads[0]
    span_keys, span_values = (state[name].to(q.dtype) for name in ("span_keys", "span_values"))
    least = torch.finfo(q.dtype).min
    place = torch.arange(span, device=q.device)
    near = (q @ new["keys"].transpose(-1, -2)).masked_fill((place > slot[:, None])[:, None, None], least)
    column = slot if span_keys.shape[3] > 1 else torch.zeros_like(slot)
    there = column[:, None, None, None, None].expand(*span_keys.shape[:3], 1, span_keys.shape[4])
    met, given = (t.gather(3, there)[:, :, :, 0] for t in (span_keys, span_values))
    seen = torch.arange(met.shape[2], device=q.device) < segment[:, None]
    far = (q @ met.transpose(-1, -2)).masked_fill(~seen[:, None, None], least)
    weights = torch.cat([near, far], -1).softmax(-1)
    y = weights[..., :span] @ new["values"] + weights[..., span:] @ given
    rows = (slot == span - 1).nonzero()[:, 0]
    if len(rows):
        keys, values = close(*(new[name][rows, :, None] for name in _OPEN))
        if int(segment[rows].max()) >= span_keys.shape[2]:
            span_keys, span_values = (pad(t, (0, 0, 0, 0, 0, BLOCK)) for t in (span_keys, span_values))
        index = (rows, slice(None), segment[rows])
        span_keys, span_values = span_keys.clone(), span_values.clone()
        span_keys[index], span_values[index] = keys[:, :, 0], values[:, :, 0]
    return y, new | {"span_keys": span_keys, "span_values": span_values, "count": count + 1}
