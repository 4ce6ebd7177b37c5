"""Linear layers as products of two thin ones, by (data-aware) singular value decomposition."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.compress import calibration
from lightformers.compress.layers import WHERE, input_of, linears
from lightformers.errors import ModelError, UserError
from lightformers.memory import release
from lightformers.parts.low_rank import LowRankLinear, break_even
from lightformers.steps import Run, Stage


def factors(weight: Tensor, rank: int, gram: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The best W ~ B A of a rank: weight (out, in) -> A (rank, in), B (out, rank), in the weight's dtype.

    Without gram: least |W - B A| (Eckart-Young). With gram = mean of x x^T (in, in): least mean |W x - B A x|^2, the
    error on data, by decomposing W L with gram = L L^T (SVD-LLM, Wang et al., 2024, arXiv 2403.07378).
    """
    matrix = weight.double()
    lower = None if gram is None else _root(gram.to(weight.device, torch.float64, copy=True))
    u, s, v = torch.linalg.svd(matrix if lower is None else matrix @ lower, full_matrices=False)
    u, s, v = u[:, :rank], s[:rank], v[:rank]
    if lower is not None:
        v = torch.linalg.solve_triangular(lower, v, upper=False, left=False)
    scale = s.sqrt()
    return (scale[:, None] * v).to(weight.dtype), (u * scale).to(weight.dtype)


def _root(gram: Tensor) -> Tensor:
    """Lower Cholesky factor; directions the data never takes are given a little weight, so that it exists.

    gram is written to: it is the largest thing that a step of this kind holds, so there is no second one.
    """
    own = gram.diagonal().clone()
    size = float(own.mean())
    for ridge in (1e-4, 1e-3, 1e-2) if size > 0 else ():
        gram.diagonal().copy_(own + ridge * size)
        lower, failed = torch.linalg.cholesky_ex(gram)
        if not int(failed):
            return lower
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return identity * math.sqrt(size) if size > 0 else identity


@dataclass(frozen=True)
class LowRank:
    """Replace linear layers by products of two thin ones.

    rank: a whole number, or a share in (0, 1] of the smaller side of each matrix.
    where: "ffn", "attention" or both. weighted: least error on calibration data instead of on the weights; needs a
        task. examples: how many calibration examples are looked at.

    A layer in which two factors would hold no fewer weights (rank above out * in / (out + in)) stays as it is; if that
    is true of all of them, an error says from which rank on it pays. The result needs lightformers to load.
    """

    rank: float | int = 0.25
    where: tuple[str, ...] = ("ffn", "attention")
    weighted: bool = True
    examples: int = 64
    stage: ClassVar[Stage] = Stage.FACTORIZE

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", tuple(self.where))
        whole = isinstance(self.rank, int)
        if (whole and self.rank < 1) or (not whole and not 0 < self.rank <= 1):
            raise UserError(f"rank is a whole number from 1 on, or a share in (0, 1]; got {self.rank}")
        if not self.where or set(self.where) - set(WHERE):
            raise UserError(
                f"where must be some of {', '.join(WHERE)}, got {', '.join(self.where) or 'nothing'}"
            )

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises ModelError where no layer would become smaller; UserError for `weighted` without a task."""
        model, found = bundle.model, anatomy.of(bundle.model)
        sizes = {p: anatomy.linear(model, p)[0].shape for p in linears(found, self.where)}
        ranks = {p: self._rank(*shape) for p, shape in sizes.items()}
        pays = [p for p, shape in sizes.items() if ranks[p] <= break_even(*shape)]
        if not pays:
            limit = max(break_even(*shape) for shape in sizes.values())
            raise ModelError(
                f"rank {self.rank} saves nothing: two factors would be no smaller than any of the {len(sizes)} "
                f"matrices; take a rank of at most {limit}"
            )

        def factorize(path: str, gram: Tensor | None) -> None:
            weight, bias = anatomy.linear(model, path)
            made = LowRankLinear.from_factors(*factors(weight.detach(), ranks[path], gram), bias)
            anatomy.surgery.replace(model, path, made)

        if self.weighted:
            source = input_of(found)
            wanted = [source[p] for p in pays]
            groups = calibration.moment_groups(bundle, wanted)
            for shared, inputs in calibration.second_moments(bundle, task, wanted, self.examples, run):
                gram = inputs.gram
                if len(groups) > 1:
                    inputs.products = None  # remembered by nobody
                for path in (p for p in pays if source[p] == shared):
                    factorize(path, gram)
                del gram
                release()
        else:
            for path in pays:
                factorize(path, None)
        return bundle

    def _rank(self, out_features: int, in_features: int) -> int:
        smaller = min(out_features, in_features)
        if isinstance(self.rank, int):
            return min(self.rank, smaller)
        return max(1, round(self.rank * smaller))
