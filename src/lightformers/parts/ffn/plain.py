"""The feed-forwards of plain transformers: two linear layers with an activation between, and the gated one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from lightformers.errors import UserError
from lightformers.parts.ffn.polycom import PolyNorm, PolyReLU
from lightformers.parts.initial import linear, once, residual


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh approximation, as in GPT-2."""
    return F.gelu(x, approximate="tanh")


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)^2 (So et al., 2021, arXiv 2109.08668). Its values grow quadratically: clip gradients, avoid float16."""
    return F.relu(x).square()


#: Functions, and classes of activations with parameters of their own.
ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "poly_norm": PolyNorm,
    "poly_relu": PolyReLU,
    "relu": F.relu,
    "silu": F.silu,
    "squared_relu": squared_relu,
}


def activation_of(name: str) -> Callable[[Tensor], Tensor]:
    """The function of this name, or a new module. Raises UserError, naming the known ones."""
    if name not in ACTIVATIONS:
        raise UserError(f"{name!r} is not one of {', '.join(sorted(ACTIVATIONS))}")
    found: Any = ACTIVATIONS[name]
    return found() if isinstance(found, type) else found


class MLP(nn.Module):
    """down(activation(up(x))). (..., width) -> (..., width). hidden: the width between.

    Weights are drawn from N(0, std), the last ones scaled by 1 / sqrt(2 layers) where `scaled`; biases are 0.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: str = "gelu",
        bias: bool = False,
        std: float = 0.02,
        scaled: bool = True,
        layers: int = 1,
    ) -> None:
        super().__init__()
        self.activation = activation_of(activation)
        self.up = linear(width, _some(hidden), bias, std)
        self.down = linear(hidden, width, bias, residual(std, layers) if scaled else std)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class SwiGLU(nn.Module):
    """down(activation(gate(x)) * up(x)) (Shazeer, 2020, arXiv 2002.05202). (..., width) -> (..., width).

    hidden: the width between; 8/3 of the width has the parameters of an MLP of 4 times the width. Starts as `MLP`.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: str = "silu",
        bias: bool = False,
        std: float = 0.02,
        scaled: bool = True,
        layers: int = 1,
    ) -> None:
        super().__init__()
        self.activation = activation_of(activation)
        self.gate, self.up = (linear(width, _some(hidden), bias, std) for _ in range(2))
        self.down = linear(hidden, width, bias, residual(std, layers) if scaled else std)

    def forward(self, x: Tensor) -> Tensor:
        x = once(x)
        return self.down(self.activation(self.gate(x)) * self.up(x))


def _some(hidden: int) -> int:
    if hidden < 1:
        raise UserError(f"a feed-forward needs a hidden width of at least 1, not {hidden}")
    return hidden
