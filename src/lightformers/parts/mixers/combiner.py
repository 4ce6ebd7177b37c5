"""Combiner (Ren et al., 2021, arXiv 2107.05768) as mixers: a weight for every token, at less than quadratic cost.

No positions are known to them (a summary has none): add learned ones to the tokens.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lightformers.errors import UserError
from lightformers.parts.attention import combiner
from lightformers.parts.attention.combiner import Pool
from lightformers.parts.documents import alone, gathered, to_front
from lightformers.parts.mixers import State, segments
from lightformers.parts.mixers.relative import join, split
from lightformers.parts.recording import refuse

#: Levels of spans in a decoding state of Combiner-Logsparse: 2^32 tokens.
_LEVELS = 32


class _Heads(nn.Module):
    """Projections to heads, queries scaled, and back."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise UserError(f"{heads} heads do not divide a width of {width}")
        self.heads, self.size, self.width = heads, width // heads, width
        self.query, self.key, self.value = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.out = nn.Linear(width, width, bias=False)
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.xavier_uniform_(layer.weight)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, n, width) -> q, k, v (batch, heads, n, size)."""
        q = split(self.query(x), self.heads) * self.size**-0.5
        return q, split(self.key(x), self.heads), split(self.value(x), self.heads)

    def join(self, y: Tensor) -> Tensor:
        out: Tensor = self.out(join(y))
        return out


class Combiner(nn.Module):
    """Combiner-Fixed. (batch, n, width) -> the same; cost n * (span + n / span).

    span: tokens of a segment, which are met one by one; every other segment is met by one summary; best near the root
    of the length. pool: "max" or "mean", how queries and keys of a segment become those of its summary; "last": there is
    none, a segment is its last token (Sparse Transformer, what this form is built from). causal: false
    looks both ways (then padding alone is read from a mask). bias: of q, k and v; the last projection has none.
    The state of decoding holds span tokens, and two vectors a head for every segment before.
    Raises UserError for heads that do not divide the width, spans below 1, unknown pools.
    """

    def __init__(
        self, width: int, heads: int = 4, span: int = 32, pool: Pool = "max", causal: bool = True, bias: bool = False
    ) -> None:  # fmt: skip
        super().__init__()
        _check(span, pool)
        self.span, self.pool, self.causal = span, pool, causal
        self.projections = _Heads(width, heads, bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        refuse("combiner attention")
        if mask is None:
            return self._mixed(x)
        if self.causal:
            return alone(self._mixed, mask, x)
        order, count = to_front(mask)
        there = torch.arange(x.shape[1], device=x.device) < count[:, None]
        front = x.take_along_dim(order[..., None], 1)
        return self._mixed(front, there).take_along_dim(order.argsort(1)[..., None], 1)

    def begin(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> State:
        if not self.causal:
            raise UserError(
                "attention that looks both ways cannot run on token by token: it needs causal=True"
            )
        made = self.projections
        state = segments.begin(batch, made.heads, made.size, 0, self.span, 1, device, dtype)
        return state

    def extend(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        y, state = segments.extend(self._heads(x), state, mask, self.span, self._close)
        return self.projections.join(y), state

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = segments.step(self._heads(x[:, None]), state, self.span, self._close)
        return self.projections.join(y)[:, 0], state

    def _mixed(self, x: Tensor, there: Tensor | None = None) -> Tensor:
        q, k, v = self.projections.split(x)
        return self.projections.join(combiner.fixed(q, k, v, self.span, self.causal, there, self.pool))

    def _heads(self, x: Tensor) -> segments.Heads:
        return *self.projections.split(x), x[:, None, :, :0]  # no inputs are needed to close a segment

    def _close(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = combiner.summaries(q, k, v, pool=self.pool)
        return keys[:, :, :, None], values[:, :, :, None]


class CombinerAxial(nn.Module):
    """Combiner-Axial, row-major, causal: for what lies in rows, as images do. (batch, n, width) -> the same.

    The tokens of a row of `span` attend to each other both ways, giving a context o at each; with key
    W_2 LN(x + W_1 o) and value o that is what later rows meet in the same column, beside the tokens of their own row up
    to themselves. Cost n * (span + n / span); the state of decoding grows with the length.
    """

    def __init__(self, width: int, heads: int = 4, span: int = 32, bias: bool = False) -> None:
        super().__init__()
        _check(span, "max")
        self.span = span
        self.projections = _Heads(width, heads, bias)
        self.inner, self.summary = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        for layer in (self.inner, self.summary):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        refuse("combiner attention")
        return self._mixed(x) if mask is None else alone(self._mixed, mask, x)

    def begin(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> State:
        made = self.projections
        return segments.begin(batch, made.heads, made.size, made.width, self.span, self.span, device, dtype)

    def extend(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        y, state = segments.extend(self._heads(x), state, mask, self.span, self._close)
        return self.projections.join(y), state

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = segments.step(self._heads(x[:, None]), state, self.span, self._close)
        return self.projections.join(y)[:, 0], state

    def _mixed(self, x: Tensor) -> Tensor:
        return self.projections.join(segments.whole(self._heads(x), self.span, self._close))

    def _heads(self, x: Tensor) -> segments.Heads:
        return *self.projections.split(x), x[:, None]

    def _close(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        context = (q @ k.transpose(-1, -2)).softmax(-1) @ v  # (batch, heads, rows, span, size)
        inner = self.inner(context.permute(0, 2, 3, 1, 4).flatten(3))
        keys = self.summary(self.norm(x[:, 0] + inner))
        return keys.unflatten(3, (self.projections.heads, -1)).permute(0, 3, 1, 2, 4), context


class CombinerLogsparse(nn.Module):
    """Combiner-Logsparse, causal: oneself and spans of doubling length. (batch, n, width) -> the same; cost n log n.

    pool: as in `Combiner`; "last" is the pattern it is built from.
    The state of decoding keeps all tokens, as softmax attention does, but a step meets at most one span per level.
    """

    def __init__(self, width: int, heads: int = 4, pool: Pool = "max", bias: bool = False) -> None:
        super().__init__()
        _check(1, pool)
        self.pool = pool
        self.projections = _Heads(width, heads, bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        refuse("combiner attention")
        return self._mixed(x) if mask is None else alone(self._mixed, mask, x)

    def begin(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> State:
        heads, size = self.projections.heads, self.projections.size
        kept = {"queries": 0, "keys": 0, "values": 0, "span_keys": _LEVELS, "span_values": _LEVELS}
        state = {
            name: torch.zeros(batch, heads, room, size, device=device, dtype=dtype)
            for name, room in kept.items()
        }
        return state | {"count": torch.zeros(batch, dtype=torch.long, device=device)}

    def extend(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """All so far is gone through again, at cost (length so far) * log."""
        count, room, n = state["count"], state["keys"].shape[2], x.shape[1]
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask != 0
        order, total = to_front(torch.cat([torch.arange(room, device=x.device) < count[:, None], real], 1))
        line = order[:, : max(int(total.max()), 1)]
        names = ("queries", "keys", "values")
        held = [
            gathered(torch.cat([state[name].to(t.dtype), t], 2), line)
            for name, t in zip(names, self.projections.split(x))
        ]
        y = combiner.logsparse(held[0], held[1], held[2], self.pool)
        at = order.argsort(1)[:, room : room + n].clamp(max=line.shape[1] - 1)
        new = dict(zip(names, held)) | {
            name: state[name].to(x.dtype).clone() for name in ("span_keys", "span_values")
        }
        for level in range(int(total.max()).bit_length()):
            self._close(new, total, level, ((total >> level) % 2 == 1).nonzero()[:, 0])
        return self.projections.join(gathered(y, at)), new | {"count": total}

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        count = state["count"]
        q, k, v = self.projections.split(x[:, None])
        new, at = {}, count[:, None, None, None].expand(-1, q.shape[1], 1, q.shape[3])
        for name, t in zip(("queries", "keys", "values"), (q, k, v)):
            held = state[name].to(t.dtype)
            if int(count.max()) >= held.shape[2]:
                held = pad(held, (0, 0, 0, 256))
            new[name] = held.scatter(2, at, t)
        spans = {name: state[name].to(q.dtype) for name in ("span_keys", "span_values")}
        level = torch.arange(_LEVELS, device=q.device)
        seen = ((count[:, None] >> level) % 2 == 1)[:, None, None]
        far = (q @ spans["span_keys"].transpose(-1, -2)).masked_fill(~seen, torch.finfo(q.dtype).min)
        weights = torch.cat([(q * k).sum(-1, keepdim=True), far], -1).softmax(-1)
        y = weights[..., :1] * v + weights[..., 1:] @ spans["span_values"]
        new |= {name: t.clone() for name, t in spans.items()}
        total = count + 1
        lowest = torch.frexp((total & -total).double()).exponent - 1  # the span that has just become full
        for size in lowest.unique().tolist():
            self._close(new, total, size, (lowest == size).nonzero()[:, 0])
        return self.projections.join(y)[:, 0], new | {"count": total}

    def _mixed(self, x: Tensor) -> Tensor:
        q, k, v = self.projections.split(x)
        return self.projections.join(combiner.logsparse(q, k, v, self.pool))

    def _close(self, state: State, total: Tensor, level: int, rows: Tensor) -> None:
        """Sum up the last whole span of 2^level tokens in these rows, in place."""
        if not len(rows):
            return
        first = ((total[rows] >> level) - 1) << level
        index = first[:, None] + torch.arange(1 << level, device=rows.device)
        q, k, v = (gathered(state[name][rows], index) for name in ("queries", "keys", "values"))
        found = combiner.summaries(q, k, v, pool=self.pool)
        for name, t in zip(("span_keys", "span_values"), found):
            state[name][rows, :, level] = t.to(state[name].dtype)


def _check(span: int, pool: str) -> None:
    if span < 1:
        raise UserError(f"a segment has at least 1 token, not {span}")
    if pool not in get_args(Pool):
        raise UserError(f"pool is one of {', '.join(get_args(Pool))}, not {pool!r}")
