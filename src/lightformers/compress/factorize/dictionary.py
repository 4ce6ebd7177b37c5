"""Dictionary learning with exactly s coefficients per row: W ~ S D, column block by column block."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightformers.parts.dense_sparse import assemble

_RIDGE = 1e-6


class Factors(NamedTuple):
    """atoms (t, r, c); support int64 and values (t, out, s): row o of block t is the sum of values times atoms."""

    atoms: Tensor
    support: Tensor
    values: Tensor

    def dense(self, in_features: int) -> Tensor:
        """The matrix (out, in) that they stand for."""
        return assemble(self.atoms, self.support, self.values, in_features)


def split(weight: Tensor, block: int) -> Tensor:
    """(out, in) -> (t, out, block); the last block is filled up with zeros."""
    padded = nn.functional.pad(weight, (0, -weight.shape[1] % block))
    return padded.unflatten(1, (-1, block)).transpose(0, 1)


def best(coefficients: Tensor, count: int) -> Tensor:
    """The places of the `count` largest |coefficients| of each row, ascending; of equal ones the earlier."""
    order = coefficients.abs().argsort(dim=-1, descending=True, stable=True)
    return order[..., :count].sort(-1).values


def coefficients(targets: Tensor, atoms: Tensor, index: Tensor) -> Tensor:
    """Least-squares values for known supports: targets (t, out, c), atoms (t, r, c), index (t, out, s) -> (t, out, s)."""
    gram, shape = atoms @ atoms.transpose(1, 2), index.shape
    flat = index.flatten(1)  # (t, out * s)
    rows = gram.gather(1, flat[..., None].expand(-1, -1, gram.shape[2])).unflatten(1, shape[1:])
    small = rows.gather(3, index[:, :, None, :].expand(-1, -1, shape[2], -1))  # (t, out, s, s)
    right = (targets @ atoms.transpose(1, 2)).gather(-1, index)
    ridge = _RIDGE * small.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=_RIDGE)
    small = small + ridge[..., None, None] * torch.eye(shape[2], dtype=small.dtype, device=small.device)
    return torch.linalg.solve(small, right[..., None])[..., 0]


def pursue(targets: Tensor, factors: Factors) -> Factors:
    """New codes by orthogonal matching pursuit; a row whose old support fits better keeps it, so errors do not grow.

    One atom after the other is taken, that which the rest of the row is most like, and all values are fitted anew (Pati,
    Rezaiifar and Krishnaprasad, 1993). Atoms are of unit length.
    """
    atoms, old, _ = factors
    turned = atoms.transpose(1, 2)
    gram, right = atoms @ turned, targets @ turned
    index = old[..., :0]
    rest = right
    for _ in range(old.shape[2]):
        likeness = rest.abs().scatter(-1, index, -1.0)
        index = torch.cat([index, likeness.argmax(-1, keepdim=True)], -1)
        values = coefficients(targets, atoms, index)
        rest = right - torch.zeros_like(right).scatter(-1, index, values) @ gram
    index, order = index.sort(-1)
    new = Factors(atoms, index, values.gather(-1, order))
    kept = Factors(atoms, old, coefficients(targets, atoms, old))
    better = (_errors(targets, new) < _errors(targets, kept))[..., None]
    return Factors(atoms, torch.where(better, index, old), torch.where(better, new.values, kept.values))


def _errors(targets: Tensor, factors: Factors) -> Tensor:
    """Squared error of each row, (t, out)."""
    sparse = targets.new_zeros(*targets.shape[:2], factors.atoms.shape[1])
    return (targets - sparse.scatter(-1, factors.support, factors.values) @ factors.atoms).square().sum(-1)


def refit(targets: Tensor, factors: Factors) -> Factors:
    """New atoms by least squares for known coefficients, at unit length; unused ones become the worst rows' errors."""
    _, index, values = factors
    count = factors.atoms.shape[1]
    sparse = values.new_zeros(*values.shape[:2], count).scatter(-1, index, values)
    turned = sparse.transpose(1, 2)
    gram = turned @ sparse
    ridge = _RIDGE * gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=1e-12)[:, None, None]
    atoms = torch.linalg.solve(
        gram + ridge * torch.eye(count, dtype=gram.dtype, device=gram.device), turned @ targets
    )
    norm = atoms.norm(dim=-1)
    used = (sparse != 0).any(1) & (norm > 1e-12)
    values = values * norm.gather(-1, index.flatten(1)).view_as(values)
    atoms = torch.where(used[..., None], atoms / norm.clamp(min=1e-12)[..., None], 0)
    values = torch.where(used.gather(-1, index.flatten(1)).view_as(values), values, 0)
    if not bool(used.all()):
        atoms = _reseed(targets, Factors(atoms, index, values), used)
    return Factors(atoms, index, values)


def _reseed(targets: Tensor, factors: Factors, used: Tensor) -> Tensor:
    """Atoms that nobody uses point at the errors of the worst rows, largest first."""
    atoms = factors.atoms.clone()
    sparse = factors.values.new_zeros(*factors.values.shape[:2], atoms.shape[1])
    error = targets - sparse.scatter(-1, factors.support, factors.values) @ atoms
    for t in range(len(atoms)):
        free = (~used[t]).nonzero().flatten()
        worst = error[t].norm(dim=-1).argsort(dim=-1, descending=True, stable=True)[: len(free)]
        rows = error[t, worst]
        atoms[t, free[: len(rows)]] = rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return atoms


def factorize(weight: Tensor, block: int, atoms: int, nonzeros: int, iterations: int = 10) -> Factors:
    """weight (out, in) -> factors, in the weight's dtype. Nothing is random.

    Atoms begin as rows, long ones that are unlike each other; then codes (`pursue`) and atoms (`refit`) are improved in
    turn. On all-MiniLM-L6-v2's matrices this came out better than singular vectors to begin with.
    """
    targets = split(weight.detach().float(), block)
    basis = unlike(targets, atoms)
    index = best(targets @ basis.transpose(1, 2), nonzeros)
    found = pursue(targets, Factors(basis, index, coefficients(targets, basis, index)))
    for _ in range(iterations):
        found = pursue(targets, refit(targets, found))
    found = refit(targets, found)
    return Factors(found.atoms.to(weight.dtype), found.support, found.values.to(weight.dtype))


def unlike(targets: Tensor, count: int) -> Tensor:
    """`count` rows of each block, at unit length, taken one by one: the longest of those least like any taken before.

    targets (t, out, c) -> (t, count, c).
    """
    length = targets.norm(dim=-1)
    unit = targets / length.clamp(min=1e-12)[..., None]
    likeness = torch.zeros_like(length)
    chosen = []
    for _ in range(count):
        place = (length * (1 - likeness)).argmax(-1)  # (t,)
        row = unit.gather(1, place[:, None, None].expand(-1, 1, unit.shape[2]))
        chosen.append(row)
        likeness = torch.maximum(likeness, (unit * row).sum(-1).abs())
    return torch.cat(chosen, 1)


def refresh(weight: Tensor, factors: Factors) -> Factors:
    """Factors of a matrix that has moved: new codes by pursuit among the old atoms, then new atoms, once (float32)."""
    targets = split(weight.detach().float(), factors.atoms.shape[2])
    return refit(targets, pursue(targets, factors))
