"""Attention to one's own block and the one before it, as a mixer of a decoder (MASFormer, arXiv 2310.12442)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from lightformers.errors import UserError
from lightformers.parts.attention.masformer import block_causal
from lightformers.parts.attention.softmax import shared
from lightformers.parts.documents import alone
from lightformers.parts.initial import linear, residual
from lightformers.parts.mixers import State, keys
from lightformers.parts.mixers.relative import join, split
from lightformers.parts.positions import rotary_size, turn, turns
from lightformers.parts.recording import refuse


class BlockAttention(nn.Module):
    """Block-sparse causal attention. (batch, n, width) -> the same; cost n * block.

    block: tokens of a block, counted from the start of each document; a token sees its own block up to itself and all of
    the block before, between block and 2 * block tokens. The other options, and the names of weights, are those of
    `parts.mixers.attention.Attention`. The state of decoding holds 2 * block keys.
    Raises UserError where heads, groups or block do not fit.
    """

    def __init__(
        self, width: int, heads: int, block: int = 64, kv_heads: int | None = None, rotary: bool | float = True,
        theta: float = 10000.0, bias: bool = False, out_bias: bool | None = None, dropout: float = 0.0,
        std: float = 0.02, scaled: bool = True, layers: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if heads < 1 or width % heads or kv_heads < 1 or heads % kv_heads:
            raise UserError(
                f"{heads} heads must divide the width {width}, and {kv_heads} of keys and values the heads"
            )
        if block < 1:
            raise UserError(f"a block has at least 1 token, not {block}")
        size = width // heads
        self.heads, self.kv_heads, self.size, self.block = heads, kv_heads, size, block
        self.turned, self.theta, self.dropout = rotary_size(size, rotary), theta, dropout
        self.query = linear(width, heads * size, bias, std)
        self.key, self.value = (linear(width, kv_heads * size, bias, std) for _ in range(2))
        last = residual(std, layers) if scaled else std
        self.out = linear(heads * size, width, bias if out_bias is None else out_bias, last)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        refuse("block attention")
        out: Tensor = self.out(self._mixed(x) if mask is None else alone(self._mixed, mask, x))
        return out

    def begin(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """The token at position p lies in slot p % (2 * block)."""
        room = {
            name: torch.zeros(batch, self.kv_heads, 2 * self.block, self.size, device=device, dtype=dtype)
            for name in ("keys", "values")
        }
        return room | {"count": torch.zeros(batch, dtype=torch.long, device=device)}

    def extend(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        pieces = x.split(2 * self.block, 1)
        masks = [None] * len(pieces) if mask is None else mask.split(2 * self.block, 1)
        out = []
        for piece, real in zip(pieces, masks):
            y, state = self._extend(piece, state, real)
            out.append(y)
        return torch.cat(out, 1), state

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = self._extend(x[:, None], state, None)
        return y[:, 0], state

    def _extend(self, x: Tensor, state: State, mask: Tensor | None) -> tuple[Tensor, State]:
        count, room = state["count"], 2 * self.block
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask != 0
        place = keys.next_places(state, x.shape[1], mask)
        q, k, v = self._project(x, place)
        held = [torch.cat([state[name].to(t.dtype), t], 2) for name, t in (("keys", k), ("values", v))]
        at = torch.cat([keys.held(count, room, x.device), torch.where(real, place, -1)], 1)
        seen = (at[:, None] >= 0) & (at[:, None] <= place[..., None])
        seen &= at[:, None] >= ((place // self.block - 1) * self.block)[..., None]
        # what stands at padding sees itself: a row that sees nothing would be NaN
        seen[:, :, room:].diagonal(dim1=1, dim2=2).logical_or_(~real)
        y = self._attend(q, held[0], held[1], seen[:, None])
        total = count + real.sum(1)
        rows, index = ((at >= 0) & (at >= (total - room)[:, None])).nonzero(as_tuple=True)
        slot = at[rows, index] % room
        new = {"count": total}
        for name, t in zip(("keys", "values"), held):
            new[name] = torch.zeros_like(t[:, :, :room])
            new[name][rows, :, slot] = t[rows, :, index]
        return self.out(join(y)), new

    def _mixed(self, x: Tensor) -> Tensor:
        q, k, v = self._project(x, torch.arange(x.shape[1], device=x.device)[None])
        k, v = (self._shared(t) for t in (k, v))
        return join(block_causal(q, k, v, self.block, self.dropout if self.training else 0.0))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return scaled_dot_product_attention(q, self._shared(k), self._shared(v), seen, dropout)

    def _shared(self, x: Tensor) -> Tensor:
        groups = self.heads // self.kv_heads
        return x if groups == 1 else shared(x, groups)

    def _project(self, x: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k = split(self.query(x), self.heads), split(self.key(x), self.kv_heads)
        if self.turned:
            cos, sin = turns(place, self.turned, self.theta, q.dtype)
            q, k = turn(q, cos, sin), turn(k, cos, sin)
        return q, k, split(self.value(x), self.kv_heads)
