"""Dropout on the processor, from bits: sixty-four elements share a random number where torch draws one for each.

torch fills a mask with a number per element, which costs more than the products around it. Here every element gets a bit
that is 1 with probability 1 - p: random words are joined by AND and OR along the binary places of 1 - p, from the last to
the first, which is exact for a probability of so many places. p = 0.5 takes one word for 64 elements, any other at most
sixteen. A table of bytes turns the bits into factors.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lightformers.errors import UserError

#: Binary places of the probability: it is off by 2 ** -17 at most, and the factor is that of what is drawn.
PLACES = 16
_KINDS = (torch.float32, torch.float64, torch.bfloat16)


def reference(x: Tensor, p: float) -> Tensor:
    """Every element is 0 with probability p, else divided by 1 - p."""
    return torch.nn.functional.dropout(x, p, True)


def draw(count: int, p: float) -> tuple[Tensor, float]:
    """One bit per element, 1 where it is kept, as int32 bytes of 8 (the last may hold more), and the factor of what is kept.

    Comes from torch's generator of the processor. p is in (0, 1).
    """
    share = min(max(round((1 - p) * 2**PLACES), 1), 2**PLACES - 1)
    lowest = (share & -share).bit_length() - 1
    kept: Tensor | None = None
    for place in range(lowest, PLACES):
        words = torch.empty(-(-count // 64), dtype=torch.int64, device="cpu").random_(-(2**63), None)
        if kept is None:
            kept = words
        elif share >> place & 1:
            kept |= words
        else:
            kept &= words
    assert kept is not None
    return kept.view(torch.uint8)[: -(-count // 8)].int(), 2**PLACES / share


@functools.cache
def _table() -> Tensor:
    """(256, 8) the bits of every byte, lowest first."""
    numbers, places = (torch.arange(n, device="cpu") for n in (256, 8))
    return (numbers[:, None] >> places) & 1


def spread(
    bits: Tensor, shape: torch.Size | tuple[int, ...], kind: torch.dtype, dropped: float, kept: float
) -> Tensor:
    """`draw`'s bits as a tensor of that shape: `kept` where a bit is 1, `dropped` elsewhere."""
    table = (_table() * (kept - dropped) + dropped).to(kind)
    count = 1
    for size in shape:
        count *= size
    return table.index_select(0, bits).view(-1)[:count].view(shape)


def eager(x: Tensor) -> bool:
    """Whether x lies in the memory of the CPU, has a type that is drawn for here, and nothing records what is done."""
    plain = type(x) in (Tensor, torch.nn.Parameter) and x.device.type == "cpu" and x.dtype in _KINDS
    return plain and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """`reference` while training, x otherwise. Elsewhere than on the processor, or recorded into a graph: torch's own.

    Raises UserError for p outside [0, 1).
    """
    if not 0 <= p < 1:
        raise UserError(f"dropout is a probability in [0, 1), not {p}")
    if not training or p == 0 or not x.numel():
        return x
    return _Dropout.apply(x, p) if eager(x) else reference(x, p)  # type: ignore[no-any-return]


class _Dropout(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        bits, factor = draw(x.numel(), p)
        ctx.save_for_backward(bits)
        ctx.factor = factor
        return spread(bits, x.shape, x.dtype, 0.0, factor).mul_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (bits,) = ctx.saved_tensors
        return spread(bits, grads[0].shape, grads[0].dtype, 0.0, ctx.factor).mul_(grads[0]), None
