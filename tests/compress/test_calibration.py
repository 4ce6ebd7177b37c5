"""The calibration runner: what it collects, and what it remembers."""

from __future__ import annotations

from typing import Any

import pytest
import steps_world as world
import torch

from lightformers import anatomy, compress
from lightformers.compress import calibration
from lightformers.steps import Run

RUN = Run(dtype="fp32")


def test_statistics_are_shared_by_copies_and_know_edits() -> None:
    bert, task = world.bundle(), world.task()
    downs = [b.feed_forward.down for b in anatomy.of(bert.model).blocks]
    first = calibration.collect(bert, task, grams=downs)
    assert calibration.collect(bert.copy(), task, inputs=downs) is first
    edited = bert.copy()
    with torch.no_grad():
        next(edited.model.parameters()).view(-1)[3] += 1e-3
    assert calibration.collect(edited, task, inputs=downs) is not first


def test_statistics_leave_padding_out() -> None:
    """One batch of mixed lengths gives the moments of each text on its own."""
    bert, task = world.bundle(), world.task()
    path = anatomy.of(bert.model).blocks[1].feed_forward.down
    found = calibration.collect(bert, task, grams=[path], examples=9, run=RUN).inputs[path]
    rows = []
    handle = anatomy.get(bert.model, path).register_forward_pre_hook(
        lambda m, a: rows.append(a[0][0].detach())
    )
    for example in task.calibration(9):
        bert.module()(**bert.collate([example]).inputs)
    handle.remove()
    x = torch.cat(rows)
    assert found.rows == len(x)
    torch.testing.assert_close(found.mean, x.mean(0), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.magnitude, x.abs().mean(0), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.gram, x.T @ x / len(x), rtol=1e-3, atol=1e-5)
    assert not bert.model.training and not anatomy.get(bert.model, path)._forward_pre_hooks


def test_second_moments_in_groups_are_those_of_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    bert, task = world.bundle(), world.task()
    downs = [b.feed_forward.down for b in anatomy.of(bert.model).blocks]
    at_once = dict(calibration.second_moments(bert, task, downs, 9, RUN))
    assert calibration.statistics(bert, task, 9).inputs.keys() == set(downs)
    calibration.forget()
    monkeypatch.setattr(calibration, "_MOMENTS", 1)
    assert [len(g) for g in calibration.moment_groups(bert, downs)] == [1] * len(downs)
    one_by_one = dict(calibration.second_moments(bert, task, downs, 9, RUN))
    assert list(one_by_one) == downs[::-1] and not calibration.statistics(bert, task, 9).inputs
    for path in downs:
        torch.testing.assert_close(one_by_one[path].gram, at_once[path].gram)
        torch.testing.assert_close(one_by_one[path].mean, at_once[path].mean)


@pytest.mark.parametrize("step", [compress.PruneChannels(0.5), compress.LowRank(0.25)])
def test_steps_give_the_same_in_groups(step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bert, task = world.bundle(), world.task()
    whole = compress_with(step, bert, task)
    calibration.forget()
    monkeypatch.setattr(calibration, "_MOMENTS", 1)
    grouped = compress_with(step, bert, task)
    for name, value in whole.items():
        torch.testing.assert_close(grouped[name], value)


def compress_with(step: Any, bundle: Any, task: Any) -> dict[str, torch.Tensor]:
    return dict(step.apply(bundle.copy(), task, RUN).model.state_dict())
