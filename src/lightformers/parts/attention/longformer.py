"""A sliding window and global tokens: Longformer (Beltagy et al., 2020, arXiv 2004.05150)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.attention.heads import attend, blocks, neighbours, real, softmax

Second = tuple[Tensor, Tensor, Tensor]


def windowed(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, reach: int = 256, tokens: int = 0,
    second: Second | None = None,
) -> Tensor:  # fmt: skip
    """Softmax attention to the `reach` positions on either side and to the first `tokens`, which see everything.

    (batch, heads, n, size) each. The global rows use `second` where it is given, for queries, keys and values alike;
    all others see global columns by their own projections. Time and memory grow with n * (reach + tokens).
    """
    n = q.shape[2]
    block, tokens = min(max(reach, 16), n), min(tokens, n)  # short reaches share larger, faster blocks
    place = torch.arange(block, device=q.device)
    wide = torch.arange(3 * block, device=q.device)
    band = (wide[None] - block - place[:, None]).abs() <= reach
    there = real(mask, n, block, q.device)
    local = there.clone()
    local.flatten(2)[..., :tokens] = False  # the global columns come apart
    seen = neighbours(local, 2)[..., None, :] & band
    qs, ks, vs = (blocks(x, block) for x in (q, k, v))
    ks, vs = neighbours(ks, 2), neighbours(vs, 2)
    scores = qs @ ks.transpose(-1, -2)
    if tokens:
        first = there.flatten(2)[..., None, None, :tokens].expand(-1, -1, seen.shape[2], block, -1)
        seen = torch.cat([seen, first], -1)
        scores = torch.cat([scores, qs @ k[:, :, None, :tokens].transpose(-1, -2)], -1)
    weights = softmax(scores * q.shape[-1] ** -0.5, seen)
    out = weights[..., : 3 * block] @ vs
    if not tokens:
        return out.flatten(2, 3)[:, :, :n]
    out = (out + weights[..., 3 * block :] @ v[:, :, None, :tokens]).flatten(2, 3)[:, :, tokens:n]
    rows, keys, values = second or (q, k, v)
    everything = None if mask is None else mask[:, None, None, :]
    return torch.cat([attend(rows[:, :, :tokens], keys, values, everything), out], 2)


class LongformerAttention(nn.Module):
    """`windowed` as a core.

    window: even; half of it is seen on either side, as in the paper and transformers (the benchmark's code sees one
    position less on the left). tokens: how many tokens from the first are global. separate: global rows have
    projections of their own (`second`), as in the paper; without it they share the window's.
    """

    reads, anywhere = "qkv", False

    def __init__(
        self, heads: int, size: int, window: int = 512, tokens: int = 0, separate: bool = True
    ) -> None:
        super().__init__()
        if window < 2 or window % 2 or tokens < 0:
            raise UserError(f"a window is even and at least 2, tokens at least 0; got {window}, {tokens}")
        self.reach, self.tokens = window // 2, tokens
        self.second = separate and tokens > 0

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, second: Second | None = None
    ) -> Tensor:
        if self.second and second is None:
            raise UserError("these global tokens need projections of their own: separate=False shares")
        return windowed(q, k, v, mask, self.reach, self.tokens, second)

    def equals_softmax(self, n: int) -> bool:
        return not self.second and n - 1 - self.tokens <= self.reach
