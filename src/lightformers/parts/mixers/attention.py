"""Softmax attention of the plain transformer, as a mixer: rotary positions, grouped keys, a window, a growing cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.attention.softmax import attend, documents
from lightformers.parts.initial import linear, once, residual
from lightformers.parts.mixers import State, keys, places, starts
from lightformers.parts.mixers.relative import join, split
from lightformers.parts.positions import rotary_size, turn, turns
from lightformers.parts.recording import recorded


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al., 2017, arXiv 1706.03762). (batch, n, width) -> (batch, n, width).

    heads: of queries. kv_heads: of keys and values, shared by equal groups of heads (arXiv 2305.13245); None: heads.
    head_size: None: width / heads. rotary: whether queries and keys are turned by their position, or the share of a
    head that is (arXiv 2104.09864), with base theta. window: how many tokens a token sees, itself included; None: all
    (with causal false: how many on either side). bias, out_bias: of the projections to q, k, v and of the last one;
    out_bias None: like bias. qk_norm: queries and keys pass an RMSNorm over each head. causal: false looks both ways,
    and then only padding is read from a mask, no documents. dropout: of attention probabilities, in training.
    Weights are drawn from N(0, std), the last ones scaled by 1 / sqrt(2 layers) where `scaled`; biases are 0.
    Raises UserError where heads, groups, sizes or window do not fit.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int | None = None,
        head_size: int | None = None,
        rotary: bool | float = True,
        theta: float = 10000.0,
        window: int | None = None,
        bias: bool = False,
        out_bias: bool | None = None,
        qk_norm: bool = False,
        causal: bool = True,
        dropout: float = 0.0,
        std: float = 0.02,
        scaled: bool = True,
        layers: int = 1,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if heads < 1 or kv_heads < 1 or heads % kv_heads:
            raise UserError(f"{kv_heads} heads of keys and values cannot be shared equally by {heads} heads")
        if head_size is None and width % heads:
            raise UserError(f"{heads} heads do not divide a width of {width}; give head_size")
        if window is not None and window < 1:
            raise UserError(f"a window holds at least the token itself, not {window}")
        size = width // heads if head_size is None else head_size
        self.heads, self.kv_heads, self.head_size = heads, kv_heads, size
        self.turned, self.theta, self.window = rotary_size(size, rotary), theta, window
        self.causal, self.dropout = causal, dropout
        self.query = linear(width, heads * size, bias, std)
        self.key, self.value = (linear(width, kv_heads * size, bias, std) for _ in range(2))
        last = residual(std, layers) if scaled else std
        self.out = linear(heads * size, width, bias if out_bias is None else out_bias, last)
        self.query_norm = nn.RMSNorm(size, eps=1e-6) if qk_norm else None
        self.key_norm = nn.RMSNorm(size, eps=1e-6) if qk_norm else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        owner = None
        place = torch.arange(x.shape[1], device=x.device)[None]
        if mask is not None:
            if not self.causal:
                owner = None if not recorded() and bool((mask != 0).all()) else (mask != 0).long()
            elif recorded():  # only distances within a document count, so any first place serves
                owner = documents(mask)
            elif bool(starts(mask)[:, 1:].any()):
                owner, place = documents(mask), places(mask)
            # else: one document each that starts at once, and a causal token never sees the padding behind it
        q, k, v = self._project(x, place)
        y = attend(q, k, v, owner, self.window, self.causal, self.dropout if self.training else 0.0)
        return self.out(join(y))

    def begin(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """See `parts.mixers.keys` for what the state holds."""
        if not self.causal:
            raise UserError(
                "attention that looks both ways cannot run on token by token: it needs causal=True"
            )
        return keys.begin(batch, self.kv_heads, self.head_size, device, dtype)

    def extend(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        if mask is not None and bool((mask != 0).all()):
            mask = None
        dropout = self.dropout if self.training else 0.0
        q, k, v = self._project(x, keys.next_places(state, x.shape[1], mask))
        if mask is None and state["keys"].shape[2] == 0:
            return self.out(join(attend(q, k, v, None, self.window, True, dropout))), keys.first(
                k, v, self.window
            )
        y, state = keys.extend(q, k, v, state, mask, self.window, dropout)
        return self.out(join(y)), state

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One more token; see `keys.step` about the memory of the state that came."""
        y, state = keys.step(*self._project(x[:, None], state["count"][:, None]), state, self.window)
        return self.out(join(y))[:, 0], state

    def _project(self, x: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (batch, n, width) at positions `place` (batch or 1, n) -> q, k, v (batch, heads, n, head size)."""
        x = once(x)
        q, k = split(self.query(x), self.heads), split(self.key(x), self.kv_heads)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = (
                f(y.to(f.weight.dtype)).to(y.dtype) for f, y in ((self.query_norm, q), (self.key_norm, k))
            )
        if self.turned:
            cos, sin = turns(place, self.turned, self.theta, q.dtype)
            if x.shape[1] == 1:  # what counts for one token is the number of calls
                q, k = turn(torch.cat([q, k], 1), cos, sin).split([self.heads, self.kv_heads], 1)
            else:
                q, k = turn(q, cos, sin), turn(k, cos, sin)
        return q, k, split(self.value(x), self.kv_heads)
