"""Batch statistics of a sub-network: those of the super-network are a mixture of all widths and fit none of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from lightformers.bundle import Batch
from lightformers.errors import UserError
from lightformers.parts.elastic import ElasticBatchNorm

_KINDS = (ElasticBatchNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def run(module: nn.Module, batch: Batch) -> Any:
    """The module on a batch's inputs."""
    return module(**batch.inputs)


@torch.no_grad()
def recalibrate(
    module: nn.Module, batches: Iterable[Batch], forward: Callable[[nn.Module, Batch], Any] = run
) -> int:
    """Measure the running statistics of every batch norm anew, as the mean over `batches`; returns how many there are.

    forward: how the module is run, `run` by default; another one recalibrates a super-network for one of its
    sub-networks. Statistics of channels that it does not use are left alone. Weights and modes stay as they are.
    Raises UserError where there are no batches.
    """
    norms = [m for m in module.modules() if isinstance(m, _KINDS)]
    before = [(m, m.training) for m in module.modules()]
    momenta = [norm.momentum for norm in norms]
    seen = 0
    try:
        module.eval()
        for norm in norms:
            norm.training = True
        for seen, batch in enumerate(batches, 1):
            for norm in norms:
                norm.momentum = (
                    1 / seen
                )  # the first batch replaces what was there, each later one has its share
            forward(module, batch)
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum  # type: ignore[assignment]
        for part, training in before:
            part.training = training
    if not seen:
        raise UserError("batch statistics are measured on images: there are no batches")
    return len(norms)
