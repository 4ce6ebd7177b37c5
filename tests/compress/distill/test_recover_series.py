"""Recovery of a forecaster: what a cut took is learned back from the original's forecasts, without the future."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lightformers.bundle import Bundle
from lightformers.compress import DropBlocks, PruneChannels
from lightformers.compress.distill import Recover, targets
from lightformers.compress.prune import leave_out
from lightformers.steps import Recipe, Run
from lightformers.tasks import Forecasting


def world() -> tuple[Bundle, Forecasting]:
    from transformers import PatchTSTConfig, PatchTSTForPrediction

    phase = np.arange(600)[:, None] * 2 * np.pi / 24 + np.arange(2)
    values = np.sin(phase) + 0.1 * np.random.default_rng(0).standard_normal((600, 2))
    task = Forecasting.from_values(values, ["a", "b"], 6, 24)
    torch.manual_seed(0)
    model = PatchTSTForPrediction(
        PatchTSTConfig(
            context_length=24, prediction_length=6, num_input_channels=2, d_model=16, num_attention_heads=2, ffn_dim=32,
            num_hidden_layers=3, patch_length=4, patch_stride=4, scaling="std", norm_type="layernorm",
        )
    )  # fmt: skip
    with torch.no_grad():  # blocks of a new model hardly differ from each other
        for parameter in model.model.encoder.layers.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    bundle = Bundle(model.eval(), None, "forecasting")
    task.check(bundle)
    return bundle, task


def apart(one: Bundle, two: Bundle, task: Forecasting) -> float:
    batch = one.collate(task.splits["verify"][:64])
    with torch.no_grad():
        a, b = (m.module()(**batch.inputs).prediction_outputs for m in (one, two))
    return float((a - b).square().mean())


@pytest.mark.parametrize("labels", [False, True])
def test_forecasts_come_back(labels: bool) -> None:
    teacher, task = world()
    student = Recipe([DropBlocks(blocks=(0, 2))]).apply(teacher, task)
    before = apart(student, teacher, task)
    run = Run(teacher=teacher, tokens=64 * 60, dtype="fp32", use_labels=labels)
    out = Recover(lr=3e-3, labels=0.0 if labels else 0.5).apply(student, task, run)
    assert apart(out, teacher, task) < 0.5 * before


def test_sensitivities_and_channels() -> None:
    """The search's first look works on forecasts: distance 0 to itself, more for a cut; importance of channels."""
    teacher, task = world()
    reference = leave_out.outputs(teacher, task, 24, Run(dtype="fp32"))
    assert reference[0][0].shape[1] == 6 * 2 and not reference[0][1]
    cut = Recipe([PruneChannels(keep=0.5)]).apply(teacher, task)
    told = leave_out.outputs(cut, task, 24, Run(dtype="fp32"))
    assert abs(leave_out.distance(reference, reference)) < 1e-6 < leave_out.distance(told, reference)
    from lightformers import anatomy

    order = leave_out.removal_order(teacher, task, anatomy.of(teacher.model).blocks, 2, 24, Run(dtype="fp32"))
    assert len(set(order)) == 2


def test_windows_are_known_by_what_is_in_them() -> None:
    teacher, task = world()
    encoded: list[Any] = teacher.encode(list(task.training_examples(False)[:3]))
    keys = [targets.key(e) for e in encoded]
    assert len(set(keys)) == 3 and targets.key(dict(encoded[0])) == keys[0]
