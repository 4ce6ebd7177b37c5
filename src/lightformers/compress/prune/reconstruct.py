"""Label-free repair after a cut: the layer that reads what was cut is refitted to give its old outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def removed_mean(weight: Tensor, keep: Sequence[int], mean: Tensor) -> Tensor:
    """What the removed inputs add on average: weight (out, c), mean (c,) -> (out,), to be added to the bias."""
    gone = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    gone[torch.as_tensor(keep, device=weight.device)] = False
    return weight[:, gone].float() @ mean[gone].to(weight.device).float()


def least_squares(
    weight: Tensor, keep: Sequence[int], gram: Tensor, mean: Tensor | None = None, ridge: float = 1e-2
) -> tuple[Tensor, Tensor | None]:
    """Refit a linear layer to the inputs that are left: `argmin E|W a + b - W' a_keep - b'|^2 + ridge |W' - W_keep|^2`.

    weight: (out, c). keep: indices of the k inputs that stay. gram: mean of a a^T, (c, c). mean: mean of a, (c,),
    where the layer has a bias; None where it has none.
    ridge: pull towards the old weights, relative to the mean of the diagonal; it decides where the calibration
    data says nothing, so that few examples cannot do harm.
    Returns W' (out, k) and what to add to the bias (out,), None without `mean`. With all inputs kept: the old weights,
    bit by bit.
    """
    keep_index = torch.as_tensor(keep, dtype=torch.long, device=weight.device)
    gone_mask = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    gone_mask[keep_index] = False
    gone = gone_mask.nonzero().flatten()
    kept = weight[:, keep_index]
    if not len(gone):
        return kept.clone(), None if mean is None else weight.new_zeros(weight.shape[0])
    moments = gram.to(weight.device).float()
    if mean is not None:
        centre = mean.to(weight.device).float()
        moments = moments - centre[:, None] * centre[None, :]
    system = moments[keep_index[:, None], keep_index[None, :]]
    system.diagonal().add_(float(ridge * system.diagonal().mean().clamp(min=0)) or 1e-12)
    lost = weight[:, gone].float() @ moments[gone[:, None], keep_index[None, :]]  # (out, k)
    fitted = kept.float() + _solve(system, lost.T).T
    if mean is None:
        return fitted.to(weight.dtype), None
    bias = weight.float() @ centre - fitted @ centre[keep_index]
    return fitted.to(weight.dtype), bias.to(weight.dtype)


def _solve(system: Tensor, right: Tensor) -> Tensor:
    """Solve a symmetric positive system; in float32 where that goes well, it is several times faster."""
    factor, failed = torch.linalg.cholesky_ex(system)
    if not int(failed):
        return torch.cholesky_solve(right, factor)
    return torch.linalg.lstsq(system.double(), right.double())[0].to(right.dtype)
