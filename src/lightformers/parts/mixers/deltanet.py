"""DeltaNet (Yang et al., 2024, arXiv 2406.06484): linear attention whose matrix state is corrected, not only added to."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightformers.errors import UserError
from lightformers.kernels import delta_rule as kernel
from lightformers.parts.mixers import State, starts
from lightformers.parts.mixers.relative import join, split
from lightformers.parts.mixers.streams import ConvolvedStreams, unit
from lightformers.parts.recording import refuse


class DeltaNet(nn.Module):
    """S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}' k_t)', o_t = S_t' q_t / sqrt(key size). (batch, n, width) -> the same.

    q, k, v are linear maps of x through a causal convolution and SiLU; q and k have length 1 in each head; beta is
    sigmoid of a linear map. Each head's output passes an RMSNorm, all of them a linear map. No positions, no biases.
    heads: the paper's have 128 channels. expand_key, expand_value: channels of all keys and values over the width.
    convolution: places, 0 for none. gate: the normed output is multiplied by SiLU of a further map of x.
    negative: beta is doubled, so that I - beta k k' may have the eigenvalue -1 (Grazzi et al., 2024, arXiv 2411.12537),
    which tracking of states needs. chunk: tokens that are computed at once; it changes no number.
    std: all matrices are drawn from N(0, std).
    The paper's hybrids are patterns of a decoder's layers: DeltaNet and {"kind": "attention", "window": ...} in turn, or
    attention to all in the second layer and the one after the middle.
    State: "inputs" of the convolution, "memory" (batch, heads, key size, value size) in float32 or better.
    What differs from the authors' code: their three maps and convolutions are one each here; the numbers are the same.
    Raises UserError where the heads do not divide the widths of keys and values.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        expand_key: float = 1.0,
        expand_value: float = 1.0,
        convolution: int = 4,
        gate: bool = False,
        negative: bool = False,
        eps: float = 1e-6,
        chunk: int = kernel.CHUNK,
        std: float = 0.02,
    ) -> None:
        super().__init__()
        keys, values = int(width * expand_key), int(width * expand_value)
        if heads < 1 or keys < 1 or values < 1 or keys % heads or values % heads:
            raise UserError(
                f"{heads} heads must divide the {keys} channels of keys and the {values} of values"
            )
        if chunk < 1:
            raise UserError(f"a chunk needs at least 1 token, not {chunk}")
        self.heads, self.chunk, self.negative = heads, chunk, negative
        self.streams = ConvolvedStreams(width, (keys, keys, values), convolution, F.silu, std)
        self.beta = nn.Linear(width, heads, bias=False)
        self.gate = nn.Linear(width, values, bias=False) if gate else None
        self.norm = nn.RMSNorm(values // heads, eps=eps)
        self.out = nn.Linear(values, width, bias=False)
        for layer in (self.beta, self.gate, self.out):
            if layer is not None:
                nn.init.normal_(layer.weight, std=std)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        refuse("deltanet")
        first = None if mask is None else starts(mask)
        q, k, v, beta = self._heads(x, self.streams(x, mask), mask)
        y, _ = kernel.delta_rule(q, k, v, beta, None, first, self.chunk)
        return self._leave(x, y)

    def begin(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> State:
        exact = torch.promote_types(dtype, torch.float32)
        keys, _, values = self.streams.sizes
        memory = torch.zeros(batch, self.heads, keys // self.heads, values // self.heads, device=device, dtype=exact)  # fmt: skip
        return {**self.streams.begin(batch, device, dtype), "memory": memory}

    def extend(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        streams, held = self.streams.extend(x, state, mask)
        q, k, v, beta = self._heads(x, streams, mask)
        y, memory = kernel.delta_rule(q, k, v, beta, state["memory"], None, self.chunk)
        return self._leave(x, y), {**held, "memory": memory}

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        streams, held = self.streams.step(x, state)
        q, k, v, beta = self._heads(x[:, None], tuple(s[:, None] for s in streams), None)
        y, memory = kernel.step(q[:, :, 0], k[:, :, 0], v[:, :, 0], beta[:, :, 0], state["memory"])
        return self._leave(x[:, None], y[:, :, None])[:, 0], {**held, "memory": memory}

    def _heads(
        self, x: Tensor, streams: tuple[Tensor, ...], mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k, v (batch, heads, n, size), beta (batch, heads, n)."""
        q, k, v = (split(stream, self.heads) for stream in streams)
        wide = torch.promote_types(x.dtype, torch.float32)
        beta = self.beta(x).to(wide).sigmoid().mT * (2 if self.negative else 1)
        if mask is not None:
            beta = beta * (mask != 0)[:, None]  # a strength of 0 leaves the state as it is
        return unit(q), unit(k), v, beta

    def _leave(self, x: Tensor, y: Tensor) -> Tensor:
        y = join(self.norm(y.to(self.norm.weight.dtype)))
        return self.out(y if self.gate is None else y * F.silu(self.gate(x)))
