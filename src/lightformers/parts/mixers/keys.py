"""The state of causal attention: keys and values by position, in room that grows by blocks, or turns in a window.

State: "keys", "values" (batch, kv heads, room, head size) and "count" (batch), the real tokens so far. The token at
position p of a row lies in slot p % room. Only a room as large as the window is ever written over, so a state without a
window holds everything and one with a window stays bounded. Padding takes no room.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from lightformers.parts.mixers import State

#: Slots by which the room of a decoding state grows.
BLOCK = 256
#: Another attention than softmax: q, k, v (batch, heads, ., size), what each query sees (bool) or None for all -> y.
Weigh = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]


def begin(
    batch: int,
    heads: int,
    size: int,
    device: torch.device | str,
    dtype: torch.dtype,
    values: int | None = None,
) -> State:
    """The state before the first token. values: the size of a value, if it is not that of a key."""
    return {
        "keys": torch.zeros(batch, heads, 0, size, device=device, dtype=dtype),
        "values": torch.zeros(
            batch, heads, 0, size if values is None else values, device=device, dtype=dtype
        ),
        "count": torch.zeros(batch, dtype=torch.long, device=device),
    }


def held(count: Tensor, room: int, device: torch.device) -> Tensor:
    """(batch, room) the position that lies in each slot after `count` tokens; negative where there is none."""
    newest = count[:, None] - 1
    return newest - (newest - torch.arange(room, device=device)) % max(room, 1)


def next_places(state: State, n: int, mask: Tensor | None) -> Tensor:
    """(batch, n) positions of `n` more tokens; padding (mask 0) has that of the token before it, at least 0."""
    count = state["count"][:, None]
    if mask is None:
        return count + torch.arange(n, device=count.device)
    return (count + (mask != 0).cumsum(1) - 1).clamp(min=0)


def extend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: State,
    mask: Tensor | None,
    window: int | None,
    dropout: float = 0.0,
    weigh: Weigh | None = None,
) -> tuple[Tensor, State]:
    """Attention of n more tokens on all so far, and the state after them; q, k, v: (batch, heads, n, size).

    The state that came is left as it was. mask: (batch, n), 0 at padding. weigh: another attention than softmax.
    """
    n = k.shape[2]
    real = torch.ones(1, n, dtype=torch.bool, device=k.device) if mask is None else mask != 0
    place = next_places(state, n, mask)
    before = held(state["count"], state["keys"].shape[2], k.device)
    keys, values = (torch.cat([state[name].to(x.dtype), x], 2) for name, x in (("keys", k), ("values", v)))
    at = torch.cat([before, torch.where(real, place, -1)], 1)
    seen = (at[:, None, :] >= 0) & (at[:, None, :] <= place[:, :, None])
    if window is not None:
        seen &= place[:, :, None] - at[:, None, :] < window
    # what stands at padding sees itself: a row that sees nothing would be NaN, and NaN times zero is NaN further up
    seen[:, :, before.shape[1] :].diagonal(dim1=1, dim2=2).logical_or_(~real)
    seen = seen[:, None]
    y = weigh(q, keys, values, seen) if weigh else _grouped(q, keys, values, seen, dropout)
    count = state["count"] + (n if mask is None else real.sum(1))
    return y, _kept(keys, values, at, count, window)


def first(k: Tensor, v: Tensor, window: int | None) -> State:
    """The state after a first piece without padding: k, v (batch, heads, n, size)."""
    batch, _, n, _ = k.shape
    count = torch.full((batch,), n, device=k.device)
    if window is None or n <= window:
        return {"keys": k, "values": v, "count": count}
    at = torch.arange(n, device=k.device).expand(batch, n)
    return _kept(k, v, at, count, window)


def step(
    q: Tensor, k: Tensor, v: Tensor, state: State, window: int | None, weigh: Weigh = scaled_dot_product_attention
) -> tuple[Tensor, State]:  # fmt: skip
    """Attention of one more token, all (batch, heads, 1, size), and the state after it.

    Where there is room the new key and value are written into the memory of the state that came, so of two
    continuations of one state only the later one may be used: `extend` is there for branches.
    """
    keys, values, count = state["keys"].to(k.dtype), state["values"].to(v.dtype), state["count"]
    counts = count.tolist()
    room, needed = keys.shape[2], max(counts) + 1
    if needed > room and (window is None or room < window):
        more = -(-needed // BLOCK) * BLOCK
        more = more if window is None else min(more, window)
        keys, values = (pad(x, (0, 0, 0, more - room)) for x in (keys, values))
        room = more
    inplace = not (torch.is_grad_enabled() and (k.requires_grad or v.requires_grad or keys.requires_grad))
    equal = min(counts) == max(counts)
    if inplace and equal:
        slot = counts[0] % room
        keys.narrow(2, slot, 1).copy_(k)
        values.narrow(2, slot, 1).copy_(v)
    else:
        slots = (count % room)[:, None, None, None]
        write = torch.Tensor.scatter_ if inplace else torch.Tensor.scatter
        keys, values = (write(x, 2, slots.expand(new.shape), new) for x, new in ((keys, k), (values, v)))
    used = min(needed, room)
    # rows of unequal length hold tokens in unequally many slots
    seen = None if equal else (held(count + 1, room, k.device)[:, :used] >= 0)[:, None, None, :]
    held_keys, held_values = keys.narrow(2, 0, used), values.narrow(2, 0, used)
    if (groups := q.shape[1] // k.shape[1]) == 1:
        y = weigh(q, held_keys, held_values, seen)
    else:  # the queries of a group stand as rows: no key is copied
        rows = q.unflatten(1, (-1, groups)).flatten(2, 3)
        y = weigh(rows, held_keys, held_values, seen).flatten(1, 2)[:, :, None]
    return y, {"keys": keys, "values": values, "count": count + 1}


def _grouped(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, dropout: float) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        from lightformers.parts.attention.softmax import shared

        k, v = (shared(x, groups) for x in (k, v))
    return scaled_dot_product_attention(q, k, v, seen, dropout)


def _kept(keys: Tensor, values: Tensor, at: Tensor, count: Tensor, window: int | None) -> State:
    """Every row's tokens in their slots. at: (batch, m) positions of keys and values, negative where there is none."""
    room = int(count.max()) if len(count) else 0
    room = room if window is None else min(room, window)
    rows, index = ((at >= 0) & (at >= (count - room)[:, None])).nonzero(as_tuple=True)
    slot = at[rows, index] % max(room, 1)
    state = {"count": count}
    for name, x in (("keys", keys), ("values", values)):
        state[name] = x.new_zeros(x.shape[0], x.shape[1], room, x.shape[3])
        state[name] = state[name].index_put((rows[:, None], torch.arange(x.shape[1], device=x.device), slot[:, None]), x[rows, :, index])  # fmt: skip
    return state
