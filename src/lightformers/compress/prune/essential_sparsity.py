"""Essential sparsity: how much of a pre-trained model one-shot magnitude pruning removes for free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.compress.layers import linears
from lightformers.compress.prune import masks
from lightformers.errors import UserError
from lightformers.steps import Run, Stage

Method = Literal["global", "layer-wise", "random", "erdos-renyi"]


@dataclass(frozen=True)
class EssentialSparsity:
    """One-shot pruning of a pre-trained model (Jaiswal et al., 2023, arXiv 2306.03805).

    Zeroes weights of the projections of attention and feed-forward; embeddings, norms, biases, pooler and head are
    never touched. Zeros stay zero when this model is trained further in the same process (`masks.hold`).

    sparsity: share of those weights that is removed, in [0, 1); exact, also among equal weights.
    method: "global" removes the smallest magnitudes of all layers together (the paper's); "layer-wise" the smallest of
        each layer; "random" any; "erdos-renyi" any, with densities proportional to (in + out) / (in * out).
    n_of_m: (n, m) keeps the n largest of each m consecutive inputs of a row instead; `sparsity` and `method` are then
        not looked at. n is the number KEPT (the paper's code takes the number removed first).
    The model is no faster by this alone: dense kernels multiply zeros too.
    """

    sparsity: float = 0.3
    method: Method = "global"
    n_of_m: tuple[int, int] | None = None
    stage: ClassVar[Stage] = Stage.SPARSIFY

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise UserError(f"sparsity is a share in [0, 1), got {self.sparsity}")
        if self.method not in get_args(Method):
            raise UserError(f"method {self.method!r} is not one of {', '.join(get_args(Method))}")
        if self.n_of_m is not None and len(self.n_of_m) != 2:
            raise UserError(f"n_of_m is a pair (kept, of each), got {self.n_of_m}")

    def masks(self, model: nn.Module, seed: int = 0) -> masks.Masks:
        """The masks of all prunable layers; the model is not changed."""
        found = masks.weights(model, linears(anatomy.of(model)))
        magnitude = {p: w.detach().abs() for p, w in found.items()}
        if self.n_of_m:
            return masks.n_of_m(magnitude, *self.n_of_m)
        if self.method == "global":
            return masks.smallest(magnitude, round(self.sparsity * sum(w.numel() for w in found.values())))
        if self.method == "layer-wise":
            return masks.per_layer(magnitude, [round(self.sparsity * w.numel()) for w in found.values()])
        generator = torch.Generator().manual_seed(seed)
        chance = {p: torch.rand(w.shape, generator=generator).to(w.device) for p, w in found.items()}
        if self.method == "random":
            return masks.smallest(chance, round(self.sparsity * sum(w.numel() for w in found.values())))
        shapes = [(w.shape[0], w.shape[1]) for w in found.values()]
        densities = masks.erdos_renyi(shapes, self.sparsity)
        return masks.per_layer(chance, [round((1 - d) * a * b) for d, (a, b) in zip(densities, shapes)])

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises ModelError for NaN weights and for layers that are replaced already (factorized, int8)."""
        masks.hold(bundle.model, self.masks(bundle.model, run.seed))
        return bundle


@dataclass(frozen=True)
class Essential:
    """sparsity: the largest whose drop is tolerated, before the first that is not. knee: where the curve bends most.

    broken: the first sparsity whose drop is too large, or None if the whole curve is tolerable.
    """

    sparsity: float
    knee: float
    broken: float | None


def essential(
    curve: Mapping[float, float], tolerance: float = 0.01, higher_is_better: bool = True
) -> Essential:
    """Read a curve sparsity -> score (with an entry for sparsity 0).

    A curve that is not monotone is judged by its first violation: what recovers after a break does not count.
    knee: the grid point with the largest change of slope towards worse; the last point if it never bends.
    tolerance: absolute loss of score against sparsity 0. Raises UserError without an entry at 0.
    """
    if 0 not in curve or len(curve) < 2:
        raise UserError("the curve needs a score at sparsity 0 and at least one more")
    grid = sorted(curve)
    sign = 1.0 if higher_is_better else -1.0
    loss = [sign * (curve[0] - curve[s]) for s in grid]
    # a NaN score is a violation: `not <=` catches it. A hair of slack, so that 0.90 - 0.89 is one hundredth
    broken = next((s for s, drop in zip(grid, loss) if not drop <= tolerance + 1e-9), None)
    free = [s for s in grid if broken is None or s < broken]
    slopes = [(b - a) / (t - s) for s, t, a, b in zip(grid, grid[1:], loss, loss[1:])]
    bends = [after - before for before, after in pairwise(slopes)]
    steepest = max(range(len(bends)), key=bends.__getitem__, default=None)
    knee = grid[-1] if steepest is None or bends[steepest] <= 0 else grid[steepest + 1]
    return Essential(max(free, default=0.0), knee, broken)


def shares(model: nn.Module) -> dict[str, float]:
    """Share of zeros: "prunable" over the projections of all blocks, "model" over all parameters."""
    shown = masks.zeros(model, linears(anatomy.of(model)))
    tensors: list[Tensor] = list(model.parameters())
    total = sum(t.numel() for t in tensors)
    return {
        "prunable": masks.sparsity(shown),
        "model": sum(int((t == 0).sum()) for t in tensors) / total if total else 0.0,
    }
