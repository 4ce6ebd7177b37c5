"""Codes of signs that are alike where tokens are: learned kernelized hashing, and attention by such codes (EcoFormer, Liu
et al., 2022, arXiv 2209.09004)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.blocks import straight_through

ValueBias = Literal["all", "self"]
_MOMENTUM = 0.9
#: Tokens of a sample that teach a hash, and numbers that the matrix of their labels may have.
_TOKENS, _ROOM = 512, 1 << 22


class Hash(NamedTuple):
    """anchors (heads, m, size): unit vectors; mean (heads, m): of the kernel to each; planes (heads, bits, m)."""

    anchors: Tensor
    mean: Tensor
    planes: Tensor


def kernel(u: Tensor, anchors: Tensor, there: Tensor | None = None) -> Tensor:
    """exp(-D / (2 s)) for the squared distance D of unit vectors u (batch, heads, n, size) to anchors; s: the mean of D
    over a sample and head. there: (batch, n) bool, tokens that count for s. -> (batch, heads, n, m)."""
    distance = (2 - 2 * u @ anchors.transpose(-1, -2)).clamp(min=0)
    if there is None:
        scale = distance.mean((-1, -2), keepdim=True)
    else:
        real = there[:, None, :, None].to(distance.dtype)
        scale = (distance * real).sum((-1, -2), keepdim=True) / (
            real.sum(2, keepdim=True) * len(anchors[0])
        ).clamp(min=1)
    return (-distance / (2 * scale).clamp(min=1e-12)).exp()


def signs(x: Tensor) -> Tensor:
    """-1 below zero, else 1; the gradient passes where |x| < 1."""
    return straight_through(x, hard(x), 1.0)


def hard(x: Tensor) -> Tensor:
    return torch.where(x >= 0, torch.ones_like(x), -torch.ones_like(x))


def codes(u: Tensor, made: Hash, there: Tensor | None = None) -> Tensor:
    """Unit vectors (batch, heads, n, size) -> codes of -1 and 1, (batch, heads, n, bits)."""
    return signs((kernel(u, made.anchors, there) - made.mean[:, None]) @ made.planes.transpose(-1, -2))


def code_attention(
    h: Tensor, v: Tensor, there: Tensor | None = None, value_bias: ValueBias = "all"
) -> Tensor:
    """sum_j (h_i . h_j + b) v_j / sum_j (h_i . h_j + b) with b = bits + 1, sums first: time grows with n.

    h (batch, heads, n, bits), v (batch, heads, n, size). The products with codes are additions. there: (batch, n) bool;
    padding is in no sum. value_bias "self": the numerator has b v_i in the place of b sum_j v_j, as the released code
    does it (weights then do not sum to one).
    """
    kind = v.dtype
    with torch.autocast(v.device.type, enabled=False):
        h, v = (x if x.dtype == torch.float64 else x.float() for x in (h, v))
        bias = h.shape[-1] + 1
        count: Tensor | int = h.shape[2]
        keys, values = h, v
        if there is not None:
            real = there[:, None, :, None].to(v.dtype)
            keys, values, count = h * real, v * real, real.sum(2, keepdim=True).clamp(min=1)
        own = v if value_bias == "self" else values.sum(2, keepdim=True)
        above = h @ (keys.transpose(-1, -2) @ values) + bias * own
        below = h @ keys.sum(2)[..., None] + bias * count
        # h_i . h_j + b is at least 1, so this is at least the number of tokens; what stands at padding may be anything
        return (above / below.clamp(min=1e-6)).to(kind)


def labels(u: Tensor, near: int, there: Tensor | None = None) -> Tensor:
    """Which tokens are to get like codes: 1 for the `near` most alike by cosine (oneself among them), -1 for the `near`
    least alike, else 0; made symmetric, which leaves y' S y as it is. (batch, heads, n, n)."""
    alike = u @ u.transpose(-1, -2)
    hidden = None if there is None else ~there[:, None, None]
    most, least = (
        (alike if hidden is None else alike.masked_fill(hidden, x)) for x in (-torch.inf, torch.inf)
    )
    out = torch.zeros_like(alike)
    out.scatter_(-1, most.topk(near, -1).indices, 1.0)
    out.scatter_(-1, least.topk(near, -1, largest=False).indices, -1.0)
    if there is not None:
        out = out * there[:, None, :, None]
    return (out + out.transpose(-1, -2)) / 2


@torch.no_grad()
def fit(
    u: Tensor, there: Tensor | None = None, bits: int = 16, anchors: int = 25, near: int = 10, steps: int = 100,
    seed: int = 0, lr: float = 5e-4,
) -> Hash:  # fmt: skip
    """Learn a hash from unit vectors u (batch, heads, n, size), outside of any graph.

    Anchors are tokens of the first sample, drawn by `seed`. With S = bits * `labels`, bit after bit, a plane from N(0, 1)
    is moved by `steps` steps of SGD (Nesterov) up y' S y / (n bits), mean over samples and heads, y = 2 sigmoid - 1 of the
    projected kernel; a head keeps the move if it pays with hard signs, and y y' is taken off S. steps 0: random planes.
    Samples with fewer than 2 `near` tokens teach nothing; of longer ones 512 tokens do, and only so many samples as S has
    room for. Raises UserError where there are too few tokens.
    """
    there = torch.ones(u.shape[0], u.shape[2], dtype=torch.bool, device=u.device) if there is None else there
    u = u.detach() if u.dtype == torch.float64 else u.detach().float()
    generator = torch.Generator().manual_seed(seed)
    first = there[0].nonzero()[:, 0]
    if len(first) < anchors:
        raise UserError(
            f"{anchors} anchors are drawn from the first sample, which has {len(first)} tokens: take fewer anchors"
        )
    held = u[0, :, first[torch.randperm(len(first), generator=generator)[:anchors].to(u.device)]]
    enough = there.sum(1) >= 2 * near
    if not bool(enough.any()):
        raise UserError(f"no sample has {2 * near} tokens: take fewer near ones than {near}")
    reach = kernel(u, held, there)
    real = there[:, None, :, None].to(u.dtype)
    mean = (reach * real).sum((0, 2)) / real.sum()
    u, there, centred = _few(u, there, (reach - mean[:, None]) * real, enough, generator)
    room = bits * labels(u, near, there)
    share = 1 / (there.sum(1).to(u.dtype) * bits * len(u))
    planes = []
    for _ in range(bits):
        start = torch.randn(u.shape[1], anchors, generator=generator, dtype=u.dtype).to(u.device)
        plane = nn.Parameter(start.clone())
        optimizer = torch.optim.SGD([plane], lr=lr, momentum=_MOMENTUM, nesterov=True)
        for _ in range(steps):
            # the gradient by hand: hundreds of graphs would cost more than what is in them
            soft = (centred @ plane[..., None]).sigmoid()
            slope = 2 * soft * (1 - soft) * (room @ (2 * soft - 1)) * share[:, None, None, None]
            plane.grad = -2 * (slope * centred).sum((0, 2)) / len(plane)
            optimizer.step()
        y = hard(centred @ torch.stack([start, plane.detach()], -1))  # (batch, heads, n, 2)
        old, new = (y * (room @ y) * share[:, None, None, None]).sum((0, 2)).unbind(-1)
        better = new > old
        planes.append(torch.where(better[:, None], plane.detach(), start))
        bit = torch.where(better[:, None], y[..., 1], y[..., 0]) * there[:, None]
        room -= bit[..., None] * bit[..., None, :]
    return Hash(held, mean, torch.stack(planes, 1))


def _few(
    u: Tensor, there: Tensor, centred: Tensor, enough: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples with enough tokens, as many as there is room for, and at most _TOKENS real tokens of each."""
    kept = min(u.shape[2], _TOKENS)
    few = enough.nonzero()[:, 0][: max(_ROOM // (u.shape[1] * kept**2), 1)]
    u, there, centred = u[few], there[few], centred[few]
    if u.shape[2] > kept:
        drawn = torch.rand(there.shape, generator=generator).to(u.device).masked_fill(~there, -1)
        index = drawn.topk(kept, 1).indices
        there = there.gather(1, index)
        u, centred = (x.take_along_dim(index[:, None, :, None], 2) for x in (u, centred))
    return u, there, centred
