"""Linear attention: softmax replaced by a product of feature maps, so that a matrix is all that is held of the past."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightformers.errors import UserError
from lightformers.kernels import linear_attention as kernel
from lightformers.parts.mixers import State, starts
from lightformers.parts.mixers.relative import join, split
from lightformers.parts.mixers.streams import ConvolvedStreams, unit
from lightformers.parts.recording import refuse

FEATURES = ("unit", "elu")


class LinearAttention(nn.Module):
    """S_t = S_{t-1} + k_t v_t', o_t = S_t' q_t. (batch, n, width) -> the same.

    features: "unit": q, k and v pass SiLU, q and k have length 1, and each head's output passes an RMSNorm: DeltaNet
    with the additive rule in place of its own (Schlag et al., 2021, arXiv 2102.11174, compare the two so).
    "elu": q and k are elu(.) + 1, and the output is divided by q_t . sum k, a weighted mean (Katharopoulos et al., 2020,
    arXiv 2006.16236).
    convolution: places of a causal convolution on q, k and v, 0 for none (as in the second paper). std, chunk: as in
    `DeltaNet`. State: "inputs" of the convolution, "memory" (batch, heads, size, size or size + 1).
    Raises UserError where the heads do not divide the width.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        features: str = "unit",
        convolution: int = 4,
        eps: float = 1e-6,
        chunk: int = kernel.CHUNK,
        std: float = 0.02,
    ) -> None:
        super().__init__()
        if features not in FEATURES:
            raise UserError(f"features are one of {', '.join(FEATURES)}, not {features!r}")
        if heads < 1 or width % heads:
            raise UserError(f"{heads} heads do not divide a width of {width}")
        if chunk < 1:
            raise UserError(f"a chunk needs at least 1 token, not {chunk}")
        self.heads, self.chunk, self.features = heads, chunk, features
        self.streams = ConvolvedStreams(
            width, (width,) * 3, convolution, F.silu if features == "unit" else None, std
        )
        self.norm = nn.RMSNorm(width // heads, eps=eps) if features == "unit" else None
        self.out = nn.Linear(width, width, bias=False)
        nn.init.normal_(self.out.weight, std=std)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        refuse("linear attention")
        first = None if mask is None else starts(mask)
        y, _ = kernel.linear_attention(*self._heads(self.streams(x, mask), mask), None, first, self.chunk)
        return self._leave(y)

    def begin(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> State:
        exact = torch.promote_types(dtype, torch.float32)
        size = self.streams.sizes[0] // self.heads
        values = size + (self.features == "elu")
        memory = torch.zeros(batch, self.heads, size, values, device=device, dtype=exact)
        return {**self.streams.begin(batch, device, dtype), "memory": memory}

    def extend(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        streams, held = self.streams.extend(x, state, mask)
        y, memory = kernel.linear_attention(*self._heads(streams, mask), state["memory"], None, self.chunk)
        return self._leave(y), {**held, "memory": memory}

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        streams, held = self.streams.step(x, state)
        q, k, v = (s[:, :, 0] for s in self._heads(tuple(s[:, None] for s in streams), None))
        y, memory = kernel.step(q, k, v, state["memory"])
        return self._leave(y[:, :, None])[:, 0], {**held, "memory": memory}

    def _heads(self, streams: tuple[Tensor, ...], mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v (batch, heads, n, size); keys at padding are 0."""
        q, k, v = (split(stream, self.heads) for stream in streams)
        if self.features == "unit":
            q, k = unit(q), unit(k)
        else:
            q, k, v = F.elu(q) + 1, F.elu(k) + 1, F.pad(v, (0, 1), value=1.0)  # the ones sum the weights
        return q, k if mask is None else k * (mask != 0).to(k.dtype)[:, None, :, None], v

    def _leave(self, y: Tensor) -> Tensor:
        if self.norm is not None:
            return self.out(join(self.norm(y.to(self.norm.weight.dtype))))
        # padding before the first token has seen nothing: there is no mean then
        weight = y[..., -1:]
        return self.out(join(y[..., :-1] / torch.where(weight > 0, weight, 1.0)))
