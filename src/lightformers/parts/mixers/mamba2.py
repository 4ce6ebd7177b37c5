"""Mamba-2: a selective state space with one decay per head (Dao and Gu, 2024, arXiv 2405.21060).

As used in the hybrids of "An Empirical Study of Mamba-based Language Models" (arXiv 2406.07887).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightformers.errors import UserError
from lightformers.kernels.ssd import ssd
from lightformers.parts.gated_norm import GatedRMSNorm
from lightformers.parts.mixers import State, held, restarts
from lightformers.parts.mixers.mamba import step_bias
from lightformers.parts.recording import refuse
from lightformers.parts.short_convolution import ShortConvolution


class Mamba2(nn.Module):
    """Heads with a matrix as state, computed in chunks by matrix products. (batch, n, width) -> the same.

    A causal mixer (`parts.mixers`), whose `step` costs and holds the same at any length.
    state: N, rows of a head's state. head: P, its columns; expand * width / P heads. groups: of heads that share B and
    C. kernel: taps of the short convolution over x, B and C. chunk: tokens taken at once, which changes no number.
    layers: how many residual layers there are; the last map is made smaller by its root. Parameters are named as in the
    paper's code, and `transformers`' Mamba2Mixer loads.
    Raises UserError where the head size does not divide the channels, or the groups the heads.
    """

    def __init__(
        self, width: int, *, state: int = 128, head: int = 64, groups: int = 1, expand: float = 2, kernel: int = 4,
        chunk: int = 64, eps: float = 1e-5, layers: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        inner = int(expand * width)
        if min(state, head, groups, inner, chunk) < 1:
            raise UserError(
                f"state {state}, head {head}, groups {groups}, {inner} channels, chunk {chunk}: all must be at least 1"
            )
        if inner % head or (inner // head) % groups:
            raise UserError(f"heads of {head} must divide {inner} channels, and {groups} groups the heads")
        self.state, self.head, self.groups, self.inner, self.chunk = state, head, groups, inner, chunk
        self.heads = inner // head
        mixed = inner + 2 * groups * state
        self.in_proj = nn.Linear(width, inner + mixed + self.heads, bias=False)
        self.conv1d = ShortConvolution(mixed, kernel)
        self.dt_bias = nn.Parameter(step_bias(self.heads))
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = GatedRMSNorm(inner, groups, eps)
        self.out_proj = nn.Linear(inner, width, bias=False)
        with torch.no_grad():
            self.out_proj.weight.div_(math.sqrt(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        refuse("mamba2")
        gate, mixed, step = self._split(x)
        mixed = functional.silu(self.conv1d(mixed, mask))
        return self._out(self._scan(mixed, step, mask, None, restarts(mask))[0], gate)

    def begin(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> State:
        exact = torch.promote_types(dtype, torch.float32)
        states = torch.zeros(batch, self.heads, self.state, self.head, device=device, dtype=exact)
        return {**self.conv1d.begin(batch, device, dtype), "states": states}

    def extend(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        held(state, "states", (len(x), self.heads, self.state, self.head))
        gate, mixed, step = self._split(x)
        mixed, inputs = self.conv1d.extend(mixed, state, mask)
        y, last = self._scan(functional.silu(mixed), step, mask, state["states"])
        return self._out(y, gate), {**inputs, "states": last}

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        held(state, "states", (len(x), self.heads, self.state, self.head))
        gate, mixed, step = self._split(x)
        mixed, inputs = self.conv1d.step(mixed, state)
        delta, u, b, c = self._parts(functional.silu(mixed), step)
        share = self.heads // self.groups
        b, c = b.repeat_interleave(share, 1), c.repeat_interleave(share, 1)
        decay = torch.exp(delta * self._a(delta))[..., None, None]
        fed = b[..., None] * (u * delta[..., None])[:, :, None]
        states = torch.addcmul(fed, decay, state["states"].to(delta.dtype))
        y = (c[..., None] * states).sum(2) + u * self.D.to(u.dtype)[:, None]
        return self._out(y.flatten(1).to(x.dtype), gate), {**inputs, "states": states}

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gate (..., E), what is convolved (..., E + 2 G N), step sizes before their bias (..., heads)."""
        mixed = self.inner + 2 * self.groups * self.state
        gate, mixed_x, step = self.in_proj(x).split([self.inner, mixed, self.heads], -1)
        return gate, mixed_x, step

    def _parts(self, mixed: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """delta (..., heads), u (..., heads, P), b and c (..., G, N), in float32 or better."""
        exact = torch.promote_types(mixed.dtype, torch.float32)
        size = self.groups * self.state
        u, b, c = mixed.to(exact).split([self.inner, size, size], -1)
        delta = functional.softplus(step.to(exact) + self.dt_bias.to(exact))
        shape = (self.groups, self.state)
        return delta, u.unflatten(-1, (self.heads, self.head)), b.unflatten(-1, shape), c.unflatten(-1, shape)

    def _a(self, like: Tensor) -> Tensor:
        return -torch.exp(self.A_log.to(like.dtype))

    def _scan(
        self,
        mixed: Tensor,
        step: Tensor,
        mask: Tensor | None,
        initial: Tensor | None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        delta, u, b, c = self._parts(mixed, step)
        if mask is not None:  # no time passes at padding
            delta = delta * (mask != 0)[..., None]
        y, last = ssd(u, delta * self._a(delta), b, c, delta, initial, resets, self.chunk)
        y = torch.addcmul(y, u, self.D.to(u.dtype)[:, None])
        return y.flatten(2).to(mixed.dtype), last

    def _out(self, y: Tensor, gate: Tensor) -> Tensor:
        return self.out_proj(self.norm(y, gate))
