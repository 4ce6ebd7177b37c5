"""LLM.int8(): weights of attention and feed-forward in eight bits, outlier features multiplied apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.compress.layers import linears
from lightformers.errors import ModelError, UserError
from lightformers.parts.int8 import Int8Linear, Outliers
from lightformers.steps import Run, Stage


@dataclass(frozen=True)
class LLMInt8:
    """8-bit matrix multiplication without calibration (Dettmers et al., 2022, arXiv 2208.07339).

    Every linear layer of attention and feed-forward becomes an `Int8Linear`: one step per weight row, one per token,
    and features that reach `threshold` in magnitude multiplied in the input's precision. Head, embeddings, norms and
    the products inside attention stay. Weights take a quarter of fp32. Runs in torch on any device; where the
    processor has 8-bit instructions (VNNI, AMX) through integer kernels, elsewhere through exact float arithmetic.

    threshold: 6.0 as in the paper; 0 switches the split off (plain vector-wise int8, faster).
    outliers: "batch" (the paper), "sequence" or "token"; only "token" makes a result independent of its batch.
    half: keep an fp16 copy of the weights for the outliers (the paper; costs the memory it saves), instead of
        dequantized int8 (its library).
    Deviation: outliers multiply in the input's dtype instead of always fp16.
    """

    threshold: float = 6.0
    outliers: Outliers = "batch"
    half: bool = False
    stage: ClassVar[Stage] = Stage.QUANTIZE

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise UserError(f"threshold must be 0 (no split) or more, got {self.threshold}")

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Replace the layers. Raises ModelError where there is none, or where one is already replaced."""
        model = bundle.model
        paths = linears(anatomy.of(model), ("attention", "ffn"))
        layers: dict[str, nn.Module] = {}
        for path in paths:
            weight, bias = anatomy.linear(model, path)
            try:
                layers[path] = Int8Linear.from_weight(weight, bias, self.threshold, self.outliers, self.half)
            except ValueError as error:
                raise ModelError(f"{path}: {error}") from error
        for path, layer in layers.items():
            anatomy.surgery.replace(model, path, layer)
        return bundle
