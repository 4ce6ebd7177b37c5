"""Dictionary learning with exactly s coefficients per row: W ~ S D, column block by column block."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightformers.parts.dense_sparse import assemble

_RIDGE = 1e-6


class Factors(NamedTuple):
    """atoms (t, r, c); index int64 and values (t, out, s): row o of block t is the sum of values times atoms."""

    atoms: Tensor
    index: Tensor
    values: Tensor

    def dense(self, in_features: int) -> Tensor:
        """The matrix (out, in) that they stand for."""
        return assemble(self.atoms, self.index, self.values, in_features)


def split(weight: Tensor, block: int) -> Tensor:
    """(out, in) -> (t, out, block); the last block is filled up with zeros."""
    padded = nn.functional.pad(weight, (0, -weight.shape[1] % block))
    return padded.unflatten(1, (-1, block)).transpose(0, 1)


def best(coefficients: Tensor, count: int) -> Tensor:
    """The places of the `count` largest |coefficients| of each row, ascending; of equal ones the earlier."""
    order = coefficients.abs().argsort(-1, descending=True, stable=True)
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


def encode(targets: Tensor, factors: Factors, steps: int = 1, exact: bool = True) -> Factors:
    """New supports by hard thresholding; |targets - S D| does not grow. exact: values by least squares in the end.

    Each step goes down the gradient of the squared error and keeps the largest coefficients of each row (Blumensath and
    Davies, 2008, arXiv 0805.0510).
    """
    atoms, index, values = factors
    turned = atoms.transpose(1, 2)
    gram, right = atoms @ turned, targets @ turned
    rate = 1 / torch.linalg.eigvalsh(gram)[:, -1].clamp(min=1e-12)[:, None, None]
    sparse = values.new_zeros(*values.shape[:2], atoms.shape[1]).scatter(-1, index, values)
    for _ in range(steps):
        moved = sparse + rate * (right - sparse @ gram)
        index = best(moved, values.shape[2])
        sparse = torch.zeros_like(moved).scatter(-1, index, moved.gather(-1, index))
    values = coefficients(targets, atoms, index) if exact else sparse.gather(-1, index)
    return Factors(atoms, index, values)


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
    error = targets - sparse.scatter(-1, factors.index, factors.values) @ atoms
    for t in range(len(atoms)):
        free = (~used[t]).nonzero().flatten()
        worst = error[t].norm(dim=-1).argsort(descending=True, stable=True)[: len(free)]
        rows = error[t, worst]
        atoms[t, free[: len(rows)]] = rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return atoms


def factorize(weight: Tensor, block: int, atoms: int, nonzeros: int, iterations: int = 10) -> Factors:
    """weight (out, in) -> factors, in the weight's dtype. Nothing is random.

    Atoms begin as the right singular vectors of a block (beyond c of them, its longest rows): with these, each row's
    best coefficients are never worse than a truncated SVD of rank `nonzeros`. Then codes and atoms are improved in turn.
    """
    targets = split(weight.detach().float(), block)
    basis = torch.linalg.svd(targets, full_matrices=False).Vh[:, :atoms]
    if basis.shape[1] < atoms:
        longest = targets.norm(dim=-1).argsort(-1, descending=True, stable=True)[:, : atoms - basis.shape[1]]
        rows = targets.gather(1, longest[..., None].expand(-1, -1, block))
        basis = torch.cat([basis, rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-12)], 1)
    basis = nn.functional.pad(basis, (0, 0, 0, atoms - basis.shape[1]))
    index = best(targets @ basis.transpose(1, 2), nonzeros)
    found = Factors(basis, index, coefficients(targets, basis, index))
    for _ in range(iterations):
        found = encode(targets, refit(targets, found), steps=3)
    found = refit(targets, found)
    return Factors(found.atoms.to(weight.dtype), found.index, found.values.to(weight.dtype))


def refresh(weight: Tensor, factors: Factors) -> Factors:
    """Factors of a matrix that has moved a little: two steps of coding, then new atoms (float32)."""
    targets = split(weight.detach().float(), factors.atoms.shape[2])
    return refit(targets, encode(targets, factors, steps=2, exact=False))
