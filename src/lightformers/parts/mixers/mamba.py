"""Mamba: a selective state-space layer (Gu and Dao, 2023, arXiv 2312.00752)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightformers.errors import UserError
from lightformers.kernels.selective_scan import selective_scan
from lightformers.parts.mixers import State, held, restarts
from lightformers.parts.recording import refuse
from lightformers.parts.short_convolution import ShortConvolution


class Mamba(nn.Module):
    """Gated, convolved, and mixed over time by a recurrence that reads its rates from the content.

    (batch, n, width) -> the same; a causal mixer (`parts.mixers`), whose `step` costs and holds the same at any length.

    state: numbers N held per channel. expand: channels E = expand * width. kernel: taps of the short convolution. rank:
    of the map to step sizes, width / 16 rounded up by default. layers: how many residual layers there are; the last
    map is made smaller by its root. selective: without, step sizes, B and C are learned constants and not read from the
    content: the paper's ablation, a time-invariant system. Parameters are named as in the paper's code, and `transformers`' MambaMixer loads.

    As the code, not the paper: B is discretised as delta * B. Raises UserError for sizes below 1.
    """

    def __init__(
        self, width: int, *, state: int = 16, expand: float = 2, kernel: int = 4, rank: int | None = None,
        selective: bool = True, layers: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        inner, rank = int(expand * width), -(-width // 16) if rank is None else rank
        if min(state, inner, rank) < 1:
            raise UserError(f"a state of {state}, {inner} channels and rank {rank}: all must be at least 1")
        self.state, self.inner, self.rank = state, inner, rank
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = ShortConvolution(inner, kernel)
        read = rank + 2 * state
        self.x_proj = nn.Linear(inner, read, bias=False) if selective else Constant(read)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))
        self.A_log.no_decay = True  # type: ignore[attr-defined]
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)
        with torch.no_grad():
            self.dt_proj.weight.uniform_(-(rank**-0.5), rank**-0.5)
            self.dt_proj.bias.copy_(step_bias(inner))
            self.out_proj.weight.div_(math.sqrt(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        refuse("mamba")
        u, gate = self.in_proj(x).chunk(2, -1)
        u = functional.silu(self.conv1d(u, mask))
        return self._out(self._scan(u, mask, None, restarts(mask))[0], u, gate)

    def begin(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> State:
        exact = torch.promote_types(dtype, torch.float32)
        states = torch.zeros(batch, self.state, self.inner, device=device, dtype=exact)
        return {**self.conv1d.begin(batch, device, dtype), "states": states}

    def extend(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        held(state, "states", (len(x), self.state, self.inner))
        u, gate = self.in_proj(x).chunk(2, -1)
        u, inputs = self.conv1d.extend(u, state, mask)
        u = functional.silu(u)
        y, last = self._scan(u, mask, state["states"])
        return self._out(y, u, gate), {**inputs, "states": last}

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        held(state, "states", (len(x), self.state, self.inner))
        u, gate = self.in_proj(x).chunk(2, -1)
        u, inputs = self.conv1d.step(u, state)
        u = functional.silu(u)
        delta, b, c = self._select(u)
        decay = torch.exp(delta[:, None] * self._a(delta).T)
        states = torch.addcmul((delta * u)[:, None] * b[..., None], decay, state["states"].to(delta.dtype))
        return self._out((c[..., None] * states).sum(1), u, gate), {**inputs, "states": states}

    def _select(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step sizes (..., E), and the vectors into and out of the state (..., N), in float32 or better."""
        low, b, c = self.x_proj(u).split([self.rank, self.state, self.state], -1)
        exact = torch.promote_types(u.dtype, torch.float32)
        delta = functional.linear(low, self.dt_proj.weight).to(exact) + self.dt_proj.bias.to(exact)
        return functional.softplus(delta), b.to(exact), c.to(exact)

    def _a(self, like: Tensor) -> Tensor:
        return -torch.exp(self.A_log.to(like.dtype))

    def _scan(
        self, u: Tensor, mask: Tensor | None, initial: Tensor | None, resets: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        delta, b, c = self._select(u)
        if mask is not None:  # no time passes at padding
            delta = delta * (mask != 0)[..., None]
        return selective_scan(u, delta, self._a(delta), b, c, initial, resets)

    def _out(self, y: Tensor, u: Tensor, gate: Tensor) -> Tensor:
        y = torch.addcmul(y, u.to(y.dtype), self.D.to(y.dtype)) * functional.silu(gate.to(y.dtype))
        return self.out_proj(y.to(u.dtype))


class Constant(nn.Module):
    """The same learned vector at every position: (..., any) -> (..., size)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.value.to(x.dtype).expand(*x.shape[:-1], -1)


def step_bias(count: int, least: float = 1e-3, most: float = 0.1, floor: float = 1e-4) -> Tensor:
    """Biases whose softplus is log-uniform in [least, most]: the step sizes that Mamba and Mamba-2 begin with."""
    steps = torch.exp(torch.empty(count).uniform_(math.log(least), math.log(most))).clamp(min=floor)
    return steps + torch.log(-torch.expm1(-steps))
