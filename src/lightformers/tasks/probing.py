"""Training and scoring on tasks whose answers stand at places of the sequence (`lightformers.tasks.probes`).

train.fit(model, Fresh(PROBES["mqar"], size=32, seed=1), asked_loss, Settings(steps=500, lr=1e-3))
score(model, PROBES["mqar"], seed=0, count=512)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightformers import stats
from lightformers.bundle import Batch
from lightformers.errors import UserError
from lightformers.stats import Scores
from lightformers.tasks.probes import NOTHING, Array, Probe

#: Mixed into seeds of training: the same number gives other examples to be scored on.
_TRAINING = 0x7E57


@dataclass(frozen=True)
class Fresh:
    """Batches that never come again: the one at `position` is a pure function of (seed, position).

    size: examples in a batch. changed: options of the probe, such as another length. `inputs` holds input_ids (size,
    length), `targets` holds "asked", of the same shape, -100 where nothing is asked.
    """

    probe: Probe
    size: int = 32
    seed: int = 0
    changed: Mapping[str, Any] = field(default_factory=dict)

    def batch(self, position: int) -> Batch:
        rng = np.random.default_rng((_TRAINING, self.seed, position))
        return as_batch(*self.probe.draw(rng, self.size, **self.changed))


def as_batch(tokens: Array, targets: Array) -> Batch:
    """What a generator gave, for `train.fit`."""
    return Batch({"input_ids": torch.from_numpy(tokens)}, {"asked": torch.from_numpy(targets)})


def asked_loss(module: nn.Module, batch: Batch) -> Tensor:
    """The objective: cross-entropy in nats, mean over the places that are asked. module(input_ids=...) gives logits
    (batch, length, vocab), as field `logits`, as entry "logits", or by themselves."""
    logits, targets = answers(module, batch), batch.targets["asked"]
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=NOTHING)


def answers(module: nn.Module, batch: Batch) -> Tensor:
    """The logits for a batch."""
    out: Any = module(**batch.inputs)
    found = out["logits"] if isinstance(out, Mapping) else getattr(out, "logits", out)
    if not isinstance(found, Tensor):
        raise UserError(f"the model gives {type(out).__name__} without logits")
    return found


@torch.no_grad()
def score(
    module: nn.Module, probe: Probe, seed: int = 0, count: int = 512, size: int = 64, **changed: Any
) -> Scores:
    """Accuracy over the places that are asked, on `count` fresh examples; one row (right, asked) per example."""
    tokens, targets = probe.draw(seed, count, **changed)
    device = next(module.parameters()).device
    training = module.training
    module.eval()
    rows = []
    try:
        for start in range(0, count, size):
            part = as_batch(tokens[start : start + size], targets[start : start + size]).to(device)
            asked = part.targets["asked"] != NOTHING
            right = (answers(module, part).argmax(-1) == part.targets["asked"]) & asked
            rows.append(torch.stack([right.sum(1), asked.sum(1)], 1).cpu().numpy())
    finally:
        module.train(training)
    return Scores(np.concatenate(rows).astype(float), stats.METRICS["accuracy"])
