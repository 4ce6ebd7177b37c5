"""Two sequences that attend to each other."""

from __future__ import annotations

from torch import Tensor, nn


class BidirectionalCrossAttention(nn.Module):
    """`a' = a + Attn(a, b)`, `b' = b + Attn(b, a)`, then a feed-forward each; norms come first.

    a: (B, M, width), b: (B, N, width); masks (B, M) and (B, N), True where there is something. Both read the other as it
    came in. A row of a mask without anything would give NaN: at least one place of each must be True. No dropout.
    """

    def __init__(self, width: int, heads: int = 8, inner: int | None = None) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} cannot be cut into {heads} heads")
        inner = 4 * width if inner is None else inner
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.reads = nn.ModuleList([nn.MultiheadAttention(width, heads, batch_first=True) for _ in range(2)])
        self.forwards = nn.ModuleList(
            [
                nn.Sequential(
                    nn.LayerNorm(width), nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width)
                )
                for _ in range(2)
            ]
        )

    def forward(self, a: Tensor, b: Tensor, a_mask: Tensor, b_mask: Tensor) -> tuple[Tensor, Tensor]:
        x, y = self.norms[0](a), self.norms[1](b)
        a = a + self.reads[0](x, y, y, key_padding_mask=~b_mask.bool(), need_weights=False)[0]
        b = b + self.reads[1](y, x, x, key_padding_mask=~a_mask.bool(), need_weights=False)[0]
        return a + self.forwards[0](a), b + self.forwards[1](b)
