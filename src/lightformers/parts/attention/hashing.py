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
#: Queries whose neighbours are looked for at a time.
_ROWS = 1024


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


def neighbours(u: Tensor, near: int, there: Tensor | None = None) -> Tensor:
    """For every token the `near` most alike and then the `near` least alike by cosine: (batch, heads, n, 2 near)."""
    found = []
    for rows in u.split(_ROWS, 2):
        alike = rows @ u.transpose(-1, -2)
        least = alike if there is None else alike.masked_fill(~there[:, None, None], torch.inf)
        most = alike if there is None else alike.masked_fill(~there[:, None, None], -torch.inf)
        found.append(
            torch.cat([most.topk(near, -1).indices, least.topk(near, -1, largest=False).indices], -1)
        )
    return torch.cat(found, 2)


def agreement(y: Tensor, before: Tensor, index: Tensor, bits: int, real: Tensor) -> Tensor:
    """y' S y / (n bits) of one more bit, per head, mean over the batch. y (batch, heads, n), zero at padding.

    S is `bits` times (1 for the most, -1 for the least alike), less the products of the bits `before` (batch, heads, n,
    r). It is never written out: index is that of `neighbours`. real: (batch,) tokens.
    """
    near = index.shape[-1] // 2
    theirs = y.gather(2, index.flatten(2)).view_as(index)
    labels = theirs[..., :near].sum(-1) - theirs[..., near:].sum(-1)
    have = (y[..., None] * before).sum(2).square().sum(-1)
    return ((bits * (y * labels).sum(-1) - have) / (real[:, None] * bits)).mean(0)


@torch.no_grad()
def fit(
    u: Tensor, there: Tensor | None = None, bits: int = 16, anchors: int = 25, near: int = 10, steps: int = 100,
    seed: int = 0, lr: float = 5e-4,
) -> Hash:  # fmt: skip
    """Learn a hash from unit vectors u (batch, heads, n, size), outside of any graph.

    Anchors are tokens of the first sample, drawn by `seed`. Bit after bit, a plane from N(0, 1) is moved by `steps` steps
    of SGD (Nesterov) so that tokens agree with the `near` most alike and differ from the `near` least alike, as far as
    earlier bits have not brought it about; a head keeps the move if it pays with hard signs. steps 0: random planes.
    Samples with fewer than 2 `near` tokens teach nothing. Raises UserError where there are too few tokens.
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
    u, there = u[enough], there[enough]
    centred = (reach[enough] - mean[:, None]) * real[enough]
    index, tokens = neighbours(u, near, there), there.sum(1).to(u.dtype)
    mask = there[:, None].to(u.dtype)
    before = u.new_zeros(*u.shape[:3], 0)
    planes = []
    for _ in range(bits):
        start = torch.randn(u.shape[1], anchors, generator=generator, dtype=u.dtype).to(u.device)
        plane = nn.Parameter(start.clone())
        optimizer = torch.optim.SGD([plane], lr=lr, momentum=_MOMENTUM, nesterov=True)
        for _ in range(steps):
            with torch.enable_grad():
                soft = (2 * (centred @ plane[..., None])[..., 0].sigmoid() - 1) * mask
                loss = -agreement(soft, before, index, bits, tokens).mean()
            plane.grad = torch.autograd.grad(loss, plane)[0]
            optimizer.step()
        bit = [hard((centred @ p[..., None])[..., 0]) * mask for p in (start, plane.detach())]
        pays = [agreement(y, before, index, bits, tokens) for y in bit]
        better = pays[1] > pays[0]
        planes.append(torch.where(better[:, None], plane.detach(), start))
        before = torch.cat([before, torch.where(better[:, None], bit[1], bit[0])[..., None]], -1)
    return Hash(held, mean, torch.stack(planes, 1))
