"""A window, global blocks and random blocks: Big Bird (Zaheer et al., 2020, arXiv 2007.14062)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.attention.heads import attend, blocks, real
from lightformers.parts.attention.table import positive, within


def pattern(order: Tensor, there: Tensor, random: int) -> Tensor:
    """Which key blocks each query block sees, in ascending order: (batch, heads, blocks, seen).

    order (heads, blocks, blocks): random numbers in [0, 1), all different in a row; there (batch, blocks) bool, blocks
    with tokens. Each sees the first and the last block that is there, its own, its neighbours and the `random` others
    of lowest number; where the fixed ones coincide, further random ones take their place, so all see 5 + random
    blocks, or all there are (then some of the indices name blocks that are not there).
    """
    count = there.shape[1]
    place = torch.arange(count, device=there.device)
    last = there.sum(1, keepdim=True)[..., None] - 1  # (batch, 1, 1)
    fixed = (place[None] - place[:, None]).abs() <= 1
    fixed = fixed | (place == 0) | (place == last)  # (batch, blocks, blocks)
    wanted = order[None, :, :count, :count] - 2.0 * fixed[:, None]
    wanted = wanted.masked_fill(~there[:, None, None, :], 2.0)
    return wanted.topk(min(5 + random, count), largest=False).indices.sort(-1).values


def block_sparse(
    q: Tensor, k: Tensor, v: Tensor, order: Tensor, mask: Tensor | None = None, block: int = 64, random: int = 3
) -> Tensor:  # fmt: skip
    """Softmax attention to the blocks of `pattern`; the first and the last block see everything.

    (batch, heads, n, size) each. Time and memory grow with n * (5 + random) * block. Up to 5 + random blocks it is full
    attention.
    """
    n = q.shape[2]
    there = real(mask, n, block, q.device)  # (batch or 1, 1, N, block)
    any_there = there[:, 0].any(-1)
    qs, ks, vs = (blocks(x, block) for x in (q, k, v))
    batch, heads, count, _, size = qs.shape
    flat = pattern(order, any_there, random).expand(batch, -1, -1, -1).flatten(2)

    def take(x: Tensor) -> Tensor:
        """(batch, heads, N, block, size) -> (batch, heads, N, seen * block, size)."""
        taken = x.gather(2, flat[..., None, None].expand(-1, -1, -1, block, x.shape[-1]))
        return taken.unflatten(2, (count, -1)).flatten(3, 4)

    tokens = there.expand(batch, heads, -1, -1)[..., None]
    out = attend(qs, take(ks), take(vs), take(tokens).squeeze(-1)[..., None, :])

    last = (any_there.sum(1) - 1).clamp(min=0).expand(batch)
    everything = None if mask is None else mask[:, None, None, :]
    final = qs.gather(2, last[:, None, None, None, None].expand(-1, heads, 1, block, size))[:, :, 0]
    place = torch.arange(count, device=q.device)[None]
    first = (place == 0).view(1, 1, -1, 1, 1)
    out = torch.where(first, attend(qs[:, :, 0], k, v, everything)[:, :, None], out)
    at_end = (place == last[:, None]).view(batch, 1, -1, 1, 1)
    out = torch.where(at_end, attend(final, k, v, everything)[:, :, None], out)
    return out.flatten(2, 3)[:, :, :n]


class BigBirdAttention(nn.Module):
    """`block_sparse` as a core.

    block: positions of a block; random: blocks that each sees by chance, in each head others, drawn once from `seed`
    and saved; length: most positions. The draw does not depend on the length of a text, nor on what it is padded to.
    """

    reads, second, anywhere = "qkv", False, False
    order: Tensor

    def __init__(
        self, heads: int, size: int, block: int = 64, random: int = 3, length: int = 4096, seed: int = 0
    ) -> None:
        super().__init__()
        positive(block=block, length=length)
        if random < 0:
            raise UserError(f"random blocks are at least 0, not {random}")
        self.block, self.random, self.length = block, random, length
        count = -(-length // block)
        drawn = torch.rand(heads, count, count, generator=torch.Generator().manual_seed(seed))
        ranks = drawn.argsort(-1).argsort(-1)
        self.register_buffer(
            "order", ranks.to(torch.int32)
        )  # whole numbers, which a change of dtype leaves alone

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        within(q.shape[2], self.length, "bigbird")
        order = self.order / self.order.shape[-1]
        return block_sparse(q, k, v, order, mask, self.block, self.random)

    def equals_softmax(self, n: int) -> bool:
        return n <= self.block * (5 + self.random)
