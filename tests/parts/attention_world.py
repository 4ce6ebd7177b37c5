"""What tests of attention cores share: small settings of each, heads at random, masked softmax row by row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightformers.parts.attention.table import make_core

HEADS, SIZE = 2, 6
SMALL: dict[str, dict[str, Any]] = {
    "softmax": {},
    "local": {"block": 4},
    "sparse": {"block": 4, "columns": 2},
    "longformer": {"window": 4, "tokens": 2, "separate": False},
    "linformer": {"length": 40, "rank": 5},
    "reformer": {"buckets": 4, "chunk": 4},
    "sinkhorn": {"block": 4, "length": 40},
    "synthesizer": {"length": 40, "rank": 3},
    "bigbird": {"block": 2, "random": 1, "length": 40},
    "linear": {},
    "performer": {"features": 16},
}
LENGTHS = (1, 3, 16, 37)


def made(kind: str, heads: int = HEADS, size: int = SIZE, **options: Any) -> Any:
    torch.manual_seed(0)
    return make_core(kind, heads, size, **{**SMALL[kind], **options}).double()


def heads(n: int, batch: int = 2, seed: int = 0, size: int = SIZE) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (3, batch, HEADS, n, size)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64))  # type: ignore[return-value]


def right(n: int, *lengths: int) -> Tensor:
    return torch.tensor([[i < length for i in range(n)] for length in lengths])


def dense(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Masked softmax attention, one row after the other; a row without any key is 0."""
    out = torch.zeros_like(v)
    for b, h, i in torch.cartesian_prod(*(torch.arange(s) for s in q.shape[:3])).tolist():
        keys = seen[b, h, i].nonzero()[:, 0]
        if len(keys):
            weights = (k[b, h, keys] @ q[b, h, i] * q.shape[-1] ** -0.5).softmax(0)
            out[b, h, i] = weights @ v[b, h, keys]
    return out
