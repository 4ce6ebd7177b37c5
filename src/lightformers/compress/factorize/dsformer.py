"""DSFormer: weights as sparse coefficients times a small dense basis (Chand et al., 2023, arXiv 2312.13211).

Like low rank, but every row of a column block picks its own few basis vectors. No code of the paper is public and its
details are not either; block layout, dictionary learning and the refresh of the factors are choices of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.compress.distill.recover import Recover
from lightformers.compress.factorize.dictionary import Factors, factorize, refresh
from lightformers.compress.layers import WHERE, linears
from lightformers.errors import ModelError, UserError
from lightformers.parts.dense_sparse import DenseSparseLinear, stored_bits
from lightformers.steps import Run, Stage

Method = Literal["straight-through", "fixed", "once"]


class StraightThroughLinear(nn.Module):
    """A dense layer that multiplies with the factorised form of its weight, and learns as if it did not.

    Forward: the matrix of the factors; backward: the gradient goes to the latent `weight` unchanged. Each time the weight
    has changed `every` times, the factors are brought up to date.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, factors: Factors, every: int = 1) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.factors, self.every = factors, every
        self.changes = 0
        self.stale = False
        self._seen = self.weight._version
        self._matrix = factors.dense(self.in_features)

    def matrix(self) -> Tensor:
        """The factorised weight."""
        if self.weight._version < self._seen:  # a copy, whose count begins anew
            self._seen = self.weight._version
        if self.weight._version > self._seen:
            self._seen, self.stale = self.weight._version, True
            self.changes += 1
            if self.changes % self.every == 0:
                self.update()
        return self._matrix.to(self.weight)

    @torch.no_grad()
    def update(self) -> None:
        """Bring the factors up to date with the weight."""
        factors = Factors(*(t.to(self.weight.device) for t in self.factors))
        with torch.autocast(self.weight.device.type, enabled=False):
            factors = refresh(self.weight, factors)
            self._matrix = factors.dense(self.in_features)
        self.factors, self.stale = factors, False

    def forward(self, x: Tensor) -> Tensor:
        straight = self.matrix() + (self.weight - self.weight.detach())
        return nn.functional.linear(x, straight, self.bias)

    def drift(self) -> float:
        """|W - S D| / |W|: how far the latent weight has left what factors can say."""
        return float(
            (self.weight - self.matrix()).detach().norm() / self.weight.detach().norm().clamp(min=1e-12)
        )


@dataclass(frozen=True)
class DenseSparse:
    """Factorise the projections of all blocks into dense bases and sparse coefficients.

    ratio: how many times smaller each matrix is stored, indices counted; from it follows how many coefficients a row
        has. nonzeros: that number itself, instead.
    block: columns of a block; atoms: basis vectors of a block.
    method: "straight-through" trains latent dense weights through the factorisation, so that supports, bases and
        coefficients adapt to what the model is for; "fixed" factorises once and trains what it got; "once" does not train.
    where: "attention", "ffn" or both. iterations: of the dictionary learning at the beginning.
    every: updates between two refreshes of the factors; fewer learn faster and take longer.
    lr, epochs, seconds, share: of the training, which is that of `Recover`: the original's outputs are the targets, and
        labels count where the run uses them.

    Layers that would not become smaller stay dense; if all would, an error says so. The result needs lightformers to
    load and is stored packed; it saves no time, as there is no kernel for it (see `DenseSparseLinear`).
    """

    ratio: float = 2.0
    nonzeros: int | None = None
    block: int = 64
    atoms: int = 64
    method: Method = "straight-through"
    where: tuple[str, ...] = ("attention", "ffn")
    iterations: int = 10
    every: int = 5
    lr: float = 1e-4
    epochs: float = 3.0
    seconds: float | None = None
    share: float = 1.0
    stage: ClassVar[Stage] = Stage.FACTORIZE

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", tuple(self.where))
        if self.method not in get_args(Method):
            raise UserError(f"method {self.method!r} is not one of {', '.join(get_args(Method))}")
        if not self.ratio > 1:
            raise UserError(f"ratio must be more than 1 (1 is the dense size), got {self.ratio}")
        if min(self.block, self.atoms, self.every) < 1 or self.iterations < 0:
            raise UserError("block, atoms and every must be at least 1, iterations at least 0")
        if self.nonzeros is not None and not 1 <= self.nonzeros <= self.atoms:
            raise UserError(
                f"a row has 1 to {self.atoms} coefficients (as many as there are atoms), got {self.nonzeros}"
            )
        if not self.where or set(self.where) - set(WHERE):
            raise UserError(
                f"where must be some of {', '.join(WHERE)}, got {', '.join(self.where) or 'nothing'}"
            )

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises ModelError where nothing would become smaller; UserError for training without a task."""
        if task is None and self.method != "once":
            raise UserError("training the factors needs a task: give one, or method='once'")
        recovery = Recover(lr=self.lr, epochs=self.epochs, seconds=self.seconds, share=self.share)
        if self.method != "once":
            recovery.check(bundle, task, run)
        factors = self.factors(bundle.model)
        if self.method == "straight-through":
            loosen(bundle.model, factors, self.every)
        else:
            _store(bundle.model, factors)
        if self.method != "once":
            bundle = recovery.apply(bundle, task, run)
        settle(bundle.model)
        return bundle

    def factors(self, model: nn.Module) -> dict[str, Factors]:
        """Path -> factors of every matrix that becomes smaller."""
        shapes: dict[str, tuple[int, int]] = {}
        for path in linears(anatomy.of(model), self.where):
            rows, columns = anatomy.linear(model, path)[0].shape
            shapes[path] = (rows, columns)
        bits = {p: 8 * anatomy.linear(model, p)[0].element_size() for p in shapes}
        counts = {p: self.count(*shape, bits[p]) for p, shape in shapes.items()}
        if not any(counts.values()):
            raise ModelError(
                f"blocks of {self.block} columns with {self.atoms} atoms make none of the {len(shapes)} matrices "
                f"smaller{'' if self.nonzeros else f' by {self.ratio}'}: take fewer atoms, or wider blocks"
            )
        return {
            p: factorize(
                anatomy.linear(model, p)[0], min(self.block, shapes[p][1]), self.atoms, s, self.iterations
            )
            for p, s in counts.items()
            if s
        }

    def count(self, out_features: int, in_features: int, bits: int = 32) -> int:
        """How many coefficients a row of such a layer has; 0 where the layer would not become smaller (enough)."""
        block, dense = min(self.block, in_features), out_features * in_features * bits
        if self.nonzeros is not None:
            size = stored_bits(out_features, in_features, block, self.atoms, self.nonzeros, bits)
            return self.nonzeros if size < dense else 0
        empty = stored_bits(out_features, in_features, block, self.atoms, 0, bits)
        each = stored_bits(out_features, in_features, block, self.atoms, 1, bits) - empty
        return max(0, min(int((dense / self.ratio - empty) // each), self.atoms))


def loosen(model: nn.Module, factors: dict[str, Factors], every: int = 5) -> None:
    """Put straight-through layers in place; `settle` ends the training."""
    for path, found in factors.items():
        weight, bias = anatomy.linear(model, path)
        anatomy.surgery.replace(model, path, StraightThroughLinear(weight, bias, found, every))


def settle(model: nn.Module) -> None:
    """Every straight-through layer becomes what it multiplies with: factors, packed."""
    for path, layer in list(model.named_modules()):
        if isinstance(layer, StraightThroughLinear):
            layer.matrix()  # notices a change
            if layer.stale:
                layer.update()
            found = Factors(*(t.to(layer.weight.device) for t in layer.factors))
            stored = _packed(found, layer.bias, layer.in_features, layer.weight.dtype)
            anatomy.surgery.replace(model, path, stored.train(layer.training))


def _store(model: nn.Module, factors: dict[str, Factors]) -> None:
    for path, found in factors.items():
        weight, bias = anatomy.linear(model, path)
        anatomy.surgery.replace(model, path, _packed(found, bias, weight.shape[1], weight.dtype))


def _packed(found: Factors, bias: Tensor | None, in_features: int, dtype: torch.dtype) -> DenseSparseLinear:
    atoms, values = found.atoms.to(dtype), found.values.to(dtype)
    return DenseSparseLinear.from_factors(atoms, found.support, values, bias, in_features)
