"""Store sparse layers without their zeros."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.compress.layers import WHERE, linears
from lightformers.compress.prune import masks
from lightformers.errors import ModelError
from lightformers.parts.sparse import BlockSparseLinear, NOfMLinear, stored_bytes
from lightformers.steps import Run, Stage

#: Forms that are tried, and the pieces of consecutive inputs.
PATTERNS = ((1, 2), (1, 4), (2, 4), (1, 8), (2, 8), (4, 8))
BLOCKS = (1, 4, 8, 16, 32)


def packed(weight: Tensor, bias: Tensor | None) -> nn.Module | None:
    """The smallest layer that holds exactly weight (out, in) and bias; None where the dense one is no larger."""
    dense = weight.numel() * weight.element_size() + (
        0 if bias is None else bias.numel() * bias.element_size()
    )
    found: list[nn.Module] = []
    columns = weight.shape[1]
    for n, m in PATTERNS:
        if columns % m == 0 and int((weight.reshape(len(weight), -1, m) != 0).sum(-1).max()) <= n:
            found.append(NOfMLinear.from_weight(weight, bias, n, m))
    found += [BlockSparseLinear.from_weight(weight, bias, b) for b in BLOCKS if columns % b == 0]
    best = min(found, key=stored_bytes)
    return best if stored_bytes(best) < dense else None


@dataclass(frozen=True)
class PackSparse:
    """Store the zeros of attention and feed-forward no longer: n of m, blocks, or a bitmap, whichever is smallest.

    Comes after a step that prunes weights (`EssentialSparsity`, `OptimalBertSurgeon`, ...). Outputs stay equal, bit by
    bit; memory at rest and files shrink, the time does not, because the layers multiply densely. Training goes on
    with the zeros where they are. The result needs lightformers to load, and layers that are packed can't be cut,
    factorized or quantized any more.

    where: "attention", "ffn" or both. A layer that is not sparse enough to gain stays as it is.
    """

    where: tuple[str, ...] = WHERE
    stage: ClassVar[Stage] = Stage.SPARSIFY

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", tuple(self.where))

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises ModelError where no layer would become smaller."""
        model = bundle.model
        layers: dict[str, nn.Module] = {}
        for path in masks.weights(model, linears(anatomy.of(model), self.where)):
            if (layer := packed(*anatomy.linear(model, path))) is not None:
                layers[path] = layer
        if not layers:
            raise ModelError("no layer is sparse enough to be stored smaller: prune weights first")
        for path, layer in layers.items():
            anatomy.surgery.replace(model, path, layer.to(anatomy.get(model, path).weight.device))  # type: ignore[arg-type]
        return bundle
