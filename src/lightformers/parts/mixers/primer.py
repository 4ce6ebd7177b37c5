"""Primer's attention: a short causal convolution on queries, keys and values (So et al., 2021, arXiv 2109.08668)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.attention.softmax import attend, documents
from lightformers.parts.initial import linear, residual
from lightformers.parts.mixers import State, keys, places, starts
from lightformers.parts.mixers.relative import join, split
from lightformers.parts.mixers.streams import ConvolvedStreams
from lightformers.parts.positions import rotary_size, turn, turns
from lightformers.parts.recording import recorded


class PrimerAttention(nn.Module):
    """Multi-DConv-head attention: y = w_0 x_t + w_1 x_{t-1} + w_2 x_{t-2} on each channel of q, k and v, then causal
    softmax attention. (batch, n, width) -> (batch, n, width).

    The taps are one per channel, over all heads; they start at 0.5 for the token itself and 0.5 / kernel for those before
    it, and stop at the start of a document. No biases.
    heads, head_size, rotary, theta, window, dropout: as in `Attention`. kernel: places, itself included.
    shared: of the full Primer; keys and queries come from one convolved map r: k = r, q = r W, W over all heads' channels.
    The full Primer also adds norm(ffn(x)) in place of ffn(norm(x)) ("ffn_norm": "post-output" of a decoder's layer) with
    a norm whose "variance" is mean(x (x - mean)): that is the variance, so the norm is LayerNorm with eps 1e-6.
    Weights are drawn from N(0, std), the last ones over sqrt(2 layers). What differs from the authors' code: rotary
    positions in place of T5's biases, and scores divided by sqrt(head size) in place of a smaller start of the queries.
    State: "inputs" of the convolution, the last kernel - 1 rows of all maps; "keys", "values", "count" (`mixers.keys`).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_size: int | None = None,
        kernel: int = 3,
        shared: bool = False,
        rotary: bool | float = True,
        theta: float = 10000.0,
        window: int | None = None,
        dropout: float = 0.0,
        std: float = 0.02,
        layers: int = 1,
    ) -> None:
        super().__init__()
        if heads < 1 or (head_size is None and width % heads):
            raise UserError(f"{heads} heads do not divide a width of {width}; give head_size")
        if kernel < 1 or (window is not None and window < 1):
            raise UserError(f"a kernel and a window hold the token itself, not {kernel} and {window} tokens")
        size = width // heads if head_size is None else head_size
        self.heads, self.head_size, self.window, self.dropout = heads, size, window, dropout
        self.turned, self.theta = rotary_size(size, rotary), theta
        self.streams = ConvolvedStreams(width, (heads * size,) * (2 if shared else 3), kernel, std=std)
        if self.streams.convolution is not None:
            with torch.no_grad():
                taps = self.streams.convolution.weight
                taps.fill_(0.5 / kernel)
                taps[..., -1] = 0.5
        self.query = linear(heads * size, heads * size, False, std) if shared else None
        self.out = linear(heads * size, width, False, residual(std, layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        owner, place = None, torch.arange(x.shape[1], device=x.device)[None]
        if mask is not None and recorded():  # as in `Attention`
            owner = documents(mask)
        elif mask is not None and bool(starts(mask)[:, 1:].any()):
            owner, place = documents(mask), places(mask)
        # else: one document each that starts at once, and a causal token never sees the padding behind it
        q, k, v = self._heads(self.streams(x, mask), place)
        dropout = self.dropout if self.training else 0.0
        return self.out(join(attend(q, k, v, owner, self.window, True, dropout)))

    def begin(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> State:
        held = keys.begin(batch, self.heads, self.head_size, device, dtype)
        return {**self.streams.begin(batch, device, dtype), **held}

    def extend(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        if mask is not None and bool((mask != 0).all()):
            mask = None
        streams, inputs = self.streams.extend(x, state, mask)
        q, k, v = self._heads(streams, keys.next_places(state, x.shape[1], mask))
        dropout = self.dropout if self.training else 0.0
        if mask is None and state["keys"].shape[2] == 0:
            y = attend(q, k, v, None, self.window, True, dropout)
            return self.out(join(y)), {**inputs, **keys.first(k, v, self.window)}
        y, held = keys.extend(q, k, v, state, mask, self.window, dropout)
        return self.out(join(y)), {**inputs, **held}

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One more token; see `keys.step` about the memory of the state that came."""
        streams, inputs = self.streams.step(x, state)
        q, k, v = self._heads(tuple(s[:, None] for s in streams), state["count"][:, None])
        y, held = keys.step(q, k, v, state, self.window)
        return self.out(join(y))[:, 0], {**inputs, **held}

    def _heads(self, streams: tuple[Tensor, ...], place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Convolved maps (batch, n, channels) -> q, k, v (batch, heads, n, head size), turned by their positions."""
        first = streams[0] if self.query is None else self.query(streams[0])
        q, k, v = (split(s, self.heads) for s in (first, streams[-2], streams[-1]))
        if self.turned:
            cos, sin = turns(place, self.turned, self.theta, q.dtype)
            q, k = turn(q, cos, sin), turn(k, cos, sin)
        return q, k, v
