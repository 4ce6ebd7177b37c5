"""How adaptive modules choose: their choices recorded while they run, and what they spend on examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lightformers.bundle import Bundle, Example
from lightformers.compress import calibration
from lightformers.compress.adaptive import gating
from lightformers.compress.adaptive.sites import valid
from lightformers.errors import ModelError
from lightformers.parts.adaptive import AdaptiveModule
from lightformers.runners.named import plain_arguments
from lightformers.steps import Run


@contextmanager
def recording(
    parts: Sequence[AdaptiveModule], temperature: float | None, run: Run
) -> Iterator[dict[int, Tensor]]:
    """While it is open, modules choose by Gumbel noise (temperature None: the likeliest), and leave their choices here.

    Place in `parts` -> weights, (B, S, choices) or (B * S, choices), of the last forward.
    """
    record: dict[int, Tensor] = {}
    generator = torch.Generator(run.device).manual_seed(run.seed)

    def route(i: int, logits: Tensor) -> Tensor:
        if temperature is None:
            record[i] = gating.one_hot(logits)
        else:
            record[i] = gating.straight_through(logits, temperature, generator)
        return record[i]

    try:
        for i, part in enumerate(parts):
            part.router = partial(route, i)
        yield record
    finally:
        for part in parts:
            part.router = None
        record.clear()


@dataclass(frozen=True)
class Usage:
    """What adaptive modules spend on given examples, padding excluded.

    shares: path -> share of the tokens that run 0, 1, ... N learners. macs: multiply-adds of all of them on a token, in
    the mean, gates included; full: the same if all learners ran; spent: share of the learners' cost, without gates.
    """

    shares: Mapping[str, tuple[float, ...]]
    macs: float
    full: float
    spent: float


def modules(model: nn.Module) -> dict[str, AdaptiveModule]:
    """Path -> adaptive module."""
    return {path: m for path, m in model.named_modules() if isinstance(m, AdaptiveModule)}


def usage(bundle: Bundle, examples: Sequence[Example]) -> Usage:
    """Run examples and count learners. Raises ModelError where the model holds no adaptive modules."""
    found = modules(bundle.model)
    if not found or not examples:
        raise ModelError("there are no adaptive modules to count, or no examples to count them on")
    totals = {path: torch.zeros(part.learners + 1, dtype=torch.float64) for path, part in found.items()}
    device = next(bundle.model.parameters()).device
    module = bundle.module().eval()
    with (
        calibration.evaluating(bundle.model),
        recording(list(found.values()), None, Run(device=str(device))) as record,
    ):
        for batch in calibration.batches(bundle, examples):
            module(**batch.inputs, **plain_arguments(module))
            for i, (path, part) in enumerate(found.items()):
                rows = valid(record[i], batch.inputs.get("attention_mask"))
                totals[path][part.least :] += rows.sum(0).double().cpu()
    shares = {path: total / total.sum() for path, total in totals.items()}
    mean = {path: float((s * torch.arange(len(s))).sum()) for path, s in shares.items()}
    learnt = sum(mean[path] * part.learner_macs for path, part in found.items())
    most = sum(part.learners * part.learner_macs for part in found.values())
    gates = sum(part.gate_macs for part in found.values())
    plain = {path: tuple(s.tolist()) for path, s in shares.items()}
    return Usage(plain, learnt + gates, most + gates, learnt / most)
