"""Aaren: attention of a learned query that grows with the sequence (Feng et al., 2024, arXiv 2405.13956)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.kernels import prefix_softmax as kernel
from lightformers.parts.initial import linear, residual
from lightformers.parts.mixers import State, starts
from lightformers.parts.mixers.relative import join, split
from lightformers.parts.recording import refuse


class Aaren(nn.Module):
    """y_i = out(softmax over j <= i of (q . k_j / sqrt(size)) times v_j), q = query(token), one for all positions.
    (batch, n, width) -> the same.

    The query is a learned vector of the layer: it cannot ask for what stands at its own position, so weights depend on
    the content of a token alone, and its memory is one weighted mean per head. A transformer has `width` parameters
    fewer. There are no positions: add them to the embeddings.
    bias: of all four maps (that of the keys changes nothing: it adds the same to all scores). block: tokens computed at
    once; it changes no number. Weights are drawn from N(0, std), the last ones over sqrt(2 layers), the query's vector
    from N(0, 1): at a deviation of std the scores would be all but equal.
    State: "peak", "weight" (batch, heads), "sum" (batch, heads, size), in float32 or better.
    Two ways only: other attention masks than padding and documents, queries that depend on the token, and looking both
    ways have no form here.
    Raises UserError where the heads do not divide the width.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        bias: bool = False,
        block: int = kernel.BLOCK,
        std: float = 0.02,
        layers: int = 1,
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise UserError(f"{heads} heads do not divide a width of {width}")
        if block < 2:
            raise UserError(f"a block needs at least 2 tokens, not {block}")
        self.heads, self.block = heads, block
        self.token = nn.Parameter(torch.randn(width))
        self.query, self.key, self.value = (linear(width, width, bias, std) for _ in range(3))
        self.out = linear(width, width, bias, residual(std, layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        refuse("aaren")
        scores, values = self._project(x)
        first = None if mask is None else starts(mask)
        y, _ = kernel.prefix_softmax(scores, values, mask, None, first, self.block)
        return self.out(join(y))

    def begin(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> State:
        exact = torch.promote_types(dtype, torch.float32)
        size = self.value.out_features // self.heads
        return _state(kernel.nothing(batch, self.heads, size, device, exact))

    def extend(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        scores, values = self._project(x)
        y, held = kernel.prefix_softmax(scores, values, mask, _segment(state), None, self.block)
        return self.out(join(y)), _state(held)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        scores, values = self._project(x[:, None])
        held = kernel.step(scores[:, :, 0], values[:, :, 0], _segment(state))
        return self.out(held.mean.flatten(1).to(x.dtype)), _state(held)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """scores (batch, heads, n), values (batch, heads, n, size). Keys are never made: q . K x = (K' q) . x."""
        q = self.query(self.token.to(self.query.weight.dtype)).unflatten(0, (self.heads, -1))
        q = q * q.shape[-1] ** -0.5
        asked = torch.einsum("hs,hsw->hw", q, self.key.weight.unflatten(0, (self.heads, -1)))
        scores = x @ asked.T.to(x.dtype)
        if self.key.bias is not None:
            scores = scores + (q * self.key.bias.unflatten(0, (self.heads, -1))).sum(-1).to(x.dtype)
        return scores.mT, split(self.value(x), self.heads)


def _state(held: kernel.Segment) -> State:
    return {"peak": held.m, "weight": held.u, "sum": held.w}


def _segment(state: State) -> kernel.Segment:
    return kernel.Segment(state["peak"], state["weight"], state["sum"])
