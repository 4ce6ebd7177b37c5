"""LayerNorm and RMSNorm between quantized tensors: what comes in, the gain and what goes out have few bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightformers.parts.activation_quantizer import ActivationQuantizer, build


class QuantizedNorm(nn.Module):
    """`(x - mean) / sqrt(variance + eps) * gain + bias` in float32 over the last dimension, operands rounded.

    center: subtract the mean (LayerNorm); else divide by the root of the mean square (RMSNorm).
    input, output, table: `args` of an `ActivationQuantizer` of what comes in, goes out, and of gain and bias.
    Mean and variance are exact sums, as wide integers would give; the division stays a float.
    """

    def __init__(
        self,
        width: int,
        eps: float,
        center: bool = True,
        bias: bool = True,
        input: dict[str, Any] | None = None,
        output: dict[str, Any] | None = None,
        table: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.width, self.eps, self.center = width, eps, center
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.input, self.output, self.table = build(input), build(output), build(table)

    @property
    def args(self) -> dict[str, Any]:
        """What a manifest needs to rebuild this part."""

        def of(part: ActivationQuantizer | None) -> dict[str, Any] | None:
            return None if part is None else part.args

        return {
            "width": self.width,
            "eps": self.eps,
            "center": self.center,
            "bias": self.bias is not None,
            "input": of(self.input),
            "output": of(self.output),
            "table": of(self.table),
        }

    def forward(self, x: Tensor) -> Tensor:
        kind = x.dtype
        wide = (x if self.input is None else self.input(x)).float()
        if self.center:
            wide = wide - wide.mean(-1, keepdim=True)
        out = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        out = out * self._rounded(self.weight)
        if self.bias is not None:
            out = out + self._rounded(self.bias)
        out = out.to(kind)
        return out if self.output is None else self.output(out)

    def _rounded(self, values: Tensor) -> Tensor:
        return values.float() if self.table is None else self.table(values.float())

    def extra_repr(self) -> str:
        return f"{self.width}, eps={self.eps}, center={self.center}"


def from_norm(norm: nn.Module, **quantizers: dict[str, Any] | None) -> QuantizedNorm | None:
    """The same norm with quantizers, or None if it is neither LayerNorm nor RMSNorm (found out by trying).

    quantizers: `input`, `output`, `table` of `QuantizedNorm`.
    """
    weight = getattr(norm, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 1:
        return None
    bias = getattr(norm, "bias", None)
    eps = next(
        (
            float(v)
            for n in ("eps", "variance_epsilon", "epsilon")
            if isinstance(v := getattr(norm, n, None), float)
        ),
        1e-6,
    )
    probe = torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
    with torch.no_grad():
        wanted = norm(probe)
        for center in (True, False):
            for gain in (weight, 1 + weight):  # gemma keeps its gains less one
                made = QuantizedNorm(len(weight), eps, center, bias is not None).to(weight)
                made.weight.copy_(gain)
                if bias is not None:
                    made.bias.copy_(bias)  # type: ignore[union-attr]
                if torch.allclose(made(probe), wanted, rtol=1e-3, atol=1e-5):
                    made.input, made.output = build(quantizers.get("input")), build(quantizers.get("output"))
                    made.table = build(quantizers.get("table"))
                    return made
    return None
