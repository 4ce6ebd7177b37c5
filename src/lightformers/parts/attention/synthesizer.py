"""Attention whose weights do not compare queries with keys: Synthesizer (Tay et al., 2020, arXiv 2005.00743)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.attention.heads import softmax
from lightformers.parts.attention.table import positive, within

FORMS = ("random", "factorised", "dense", "dot")


class SynthesizerAttention(nn.Module):
    """softmax(synthesized logits) v. Time and memory grow with n * n; it saves the projections that are not read.

    form: "random": a learnt table (heads, length, length); "factorised": a product of two of rank `rank`; "dense": each
    token gives its own row, relu(queries) W + b; "dot": plain attention; several joined by "+" add their logits
    (a mixture, without the paper's weights, as in the benchmark). length: most positions.
    std: of the tables at first; 0 starts "random+dot" as plain attention.
    """

    second, anywhere = False, False

    def __init__(
        self, heads: int, size: int, length: int = 512, form: str = "factorised", rank: int = 32, std: float = 1.0
    ) -> None:  # fmt: skip
        super().__init__()
        positive(length=length, rank=rank)
        forms = form.split("+")
        if set(forms) - set(FORMS) or len(set(forms)) < len(forms) or forms == ["dot"] or std < 0:
            raise UserError(
                f"form is one of {', '.join(FORMS[:3])}, or several with dot joined by +, std at least 0; got {form!r}, {std}"
            )
        self.forms, self.length, self.std = forms, length, std
        self.reads = ("q" if {"dense", "dot"} & set(forms) else "") + ("k" if "dot" in forms else "") + "v"

        def table(*shape: int, scale: float = 1.0) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape) * std * scale)

        self.random = table(heads, length, length) if "random" in forms else None
        two = "factorised" in forms
        # each begins so that logits have the deviation `std`
        self.left = table(heads, length, rank, scale=rank**-0.5) if two else None
        self.right = table(heads, rank, length) if two else None
        self.dense = table(heads, size, length, scale=size**-0.5) if "dense" in forms else None
        self.bias = nn.Parameter(torch.zeros(heads, 1, length)) if "dense" in forms else None

    def forward(self, q: Tensor | None, k: Tensor | None, v: Tensor, mask: Tensor | None = None) -> Tensor:
        n = v.shape[2]
        within(n, self.length, "synthesizer")
        seen = None if mask is None else mask[:, None, None, :]
        return softmax(self.logits(q, k, n).to(v.dtype), seen) @ v

    def logits(self, q: Tensor | None, k: Tensor | None, n: int) -> Tensor:
        """(batch or nothing, heads, n, n), before softmax."""
        parts: list[Tensor] = []
        if self.random is not None:
            parts.append(self.random[:, :n, :n])
        if self.left is not None and self.right is not None:
            parts.append(self.left[:, :n] @ self.right[..., :n])
        if self.dense is not None and self.bias is not None:
            assert q is not None
            parts.append(q.relu() @ self.dense[..., :n].to(q.dtype) + self.bias[..., :n])
        if "dot" in self.forms:
            assert q is not None and k is not None
            parts.append(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5)
        return sum(parts[1:], parts[0])

    def equals_softmax(self, n: int) -> bool:
        return (
            self.random is not None and set(self.forms) == {"dot", "random"} and not bool(self.random.any())
        )
