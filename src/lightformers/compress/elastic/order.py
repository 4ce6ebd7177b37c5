"""Put the channels that matter most first, so that a model that was not trained nested starts well nested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.compress import calibration
from lightformers.compress.prune import scores
from lightformers.errors import ModelError
from lightformers.steps import Run


def channel_order(bundle: Bundle, task: Any, run: Run, examples: int = 64) -> dict[int, list[int]]:
    """Place of each block -> its inner channels, the one that adds most to the residual stream first.

    The score is mean |activation| times the norm of the down column (`scores.channel_importance`).
    Raises UserError without a task.
    """
    blocks = {i: b.feed_forward for i, b in enumerate(anatomy.of(bundle.model).blocks) if b.feed_forward}
    downs = [f.down for f in blocks.values()]
    seen = calibration.collect(bundle, task, inputs=downs, examples=examples, run=run).inputs
    out = {}
    for place, forward in blocks.items():
        weight = anatomy.linear(bundle.model, forward.down)[0].detach()
        score = scores.channel_importance(seen[forward.down].magnitude, weight)
        out[place] = score.argsort(descending=True, stable=True).tolist()
    return out


def reorder_channels(model: nn.Module, order: Mapping[int, Sequence[int]]) -> None:
    """Put the inner channels of these blocks in this order, in place. What the model computes stays the same.

    Raises ModelError, before anything is changed, where an order is none of that block's channels.
    """
    found, plan = anatomy.of(model), []
    for place, channels in order.items():
        forward = found.blocks[place].feed_forward
        if forward is None or sorted(channels) != list(range(forward.width)):
            raise ModelError(f"the order of block {place} must name each of its inner channels once")
        plan.append((forward, torch.as_tensor(list(channels))))
    for forward, index in plan:
        both = torch.cat([index, index + forward.width]) if forward.packed else index
        for path in filter(None, (forward.up, forward.gate)):
            weight, bias = anatomy.linear(model, path)
            _permute(weight, both)
            if bias is not None:
                _permute(bias, both)
        _permute(anatomy.linear(model, forward.down)[0].T, index)


@torch.no_grad()
def _permute(rows: Tensor, index: Tensor) -> None:
    rows.copy_(rows[index.to(rows.device)].clone())
