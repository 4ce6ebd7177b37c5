"""A linear layer with a frozen matrix and an update that is low-rank plus a few free entries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class SparseLowRankLinear(nn.Module):
    """`y = W x + b + (alpha / rank) (B A x + S x)`, S zero but for `entries` places. (..., in) -> (..., out).

    The update of DSEE (Chen et al., 2021, arXiv 2111.00160). base, offset: W (out, in) and b (out,), buffers, frozen.
    first: A (rank, in); second: B (out, rank); values: (entries,), the free entries of S. rows, columns: (entries,),
    where they stand. S is never written out: rank * (in + out) + entries numbers are trained.
    """

    #: Models that look at `layer.weight.dtype` (t5) find no single matrix here, and skip their check.
    weight = None

    def __init__(
        self, in_features: int, out_features: int, rank: int, entries: int, alpha: float = 32.0, bias: bool = True,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if not 1 <= rank <= min(in_features, out_features):
            raise ValueError(f"rank {rank} is not between 1 and {min(in_features, out_features)}")
        if not 0 <= entries <= in_features * out_features:
            raise ValueError(f"{entries} free entries do not fit {out_features} x {in_features}")
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.entries, self.alpha = entries, float(alpha)
        self.base: Tensor
        self.offset: Tensor | None
        self.rows: Tensor
        self.columns: Tensor
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.register_buffer("base", torch.zeros(out_features, in_features, **kind))
        self.register_buffer("offset", torch.zeros(out_features, **kind) if bias else None)
        for name in ("rows", "columns"):
            self.register_buffer(name, torch.zeros(entries, dtype=torch.int32, device=device))
        self.first = nn.Parameter(torch.empty(rank, in_features, **kind))
        self.second = nn.Parameter(torch.zeros(out_features, rank, **kind))
        self.values = nn.Parameter(torch.zeros(entries, **kind))
        nn.init.normal_(self.first, std=0.02)

    @classmethod
    def from_weight(
        cls, weight: Tensor, bias: Tensor | None, rank: int, support: Tensor, alpha: float = 32.0,
        generator: torch.Generator | None = None,
    ) -> SparseLowRankLinear:  # fmt: skip
        """Around weight (out, in), at first equal to it. support: flat positions (entries,) of the free entries."""
        out_features, in_features = weight.shape
        layer = cls(
            in_features,
            out_features,
            rank,
            len(support),
            alpha,
            bias is not None,
            weight.device,
            weight.dtype,
        )
        with torch.no_grad():
            layer.base.copy_(weight)
            if bias is not None:
                layer.offset.copy_(bias)  # type: ignore[union-attr]
            layer.rows.copy_(support // in_features)
            layer.columns.copy_(support % in_features)
            layer.first.copy_(0.02 * torch.randn(layer.first.shape, generator=generator))
        return layer

    @property
    def args(self) -> dict[str, Any]:
        """What a manifest needs to rebuild this layer."""
        names = ("in_features", "out_features", "rank", "entries", "alpha")
        return {name: getattr(self, name) for name in names} | {"bias": self.offset is not None}

    def update(self) -> Tensor:
        """(alpha / rank) (B A + S), written out (out, in): to score and to merge with, not to run."""
        index = (self.rows.long(), self.columns.long())
        return (
            self.alpha / self.rank * (self.second @ self.first).index_put(index, self.values, accumulate=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        low = nn.functional.linear(nn.functional.linear(x, self.first), self.second)
        # S x: what each free entry reads, times its value, added to what it writes
        read = (x.index_select(-1, self.columns) * self.values).to(low.dtype)
        change = low.index_add(-1, self.rows, read)
        return nn.functional.linear(x, self.base, self.offset) + self.alpha / self.rank * change

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.args.items())
