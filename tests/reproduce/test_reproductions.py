"""Every experiment runs on a tiny budget, on the real data, and ends in a finding that can be kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from data_sets import needs
from reproduction_checks import CHECKS, NEEDS, SLOW

from lightformers import reproduce
from lightformers.errors import MissingExtra
from lightformers.loading import packaged_model
from lightformers.reproduce import Finding, common, llm_int8


@pytest.mark.parametrize(
    "slug", [pytest.param(s, marks=pytest.mark.slow) if s in SLOW else s for s in sorted(NEEDS)]
)
def test_experiment_on_a_tiny_budget(slug: str, tmp_path: Path) -> None:
    needs(*NEEDS[slug])
    try:
        packaged_model()
    except MissingExtra as missing:
        pytest.skip(str(missing))
    made = reproduce.run(slug, budget_seconds=2)
    made.write(tmp_path)  # refuses NaN
    assert Finding.read(slug, tmp_path).slug == slug
    assert len(made.seeds) == 2 and "instead of 300" in made.limits and made.machine and made.versions
    for row in made.table:
        for cell in row.values():
            assert not isinstance(cell, dict) or len(cell["values"]) == len(made.seeds)
    CHECKS[slug](made)


def test_planted_outliers_change_nothing_but_the_activations() -> None:
    model = llm_int8._train(torch.arange(400) % 7, 7, tokens=1, seed=0)
    planted = llm_int8.plant(model, 3, 50.0)
    batch = llm_int8._windows(torch.arange(400) % 7, 2)[0]
    assert llm_int8._difference(model, planted, batch) < 1e-4
    peaks = [max(float(x.abs().max()) for x, _ in llm_int8._inputs(m, batch)) for m in (model, planted)]
    assert peaks[1] > 10 * peaks[0]
    assert llm_int8._loss(llm_int8.quantized(planted, "LLM.int8(), fp16 outlier weights"), [batch]) == pytest.approx(
        llm_int8._loss(model, [batch]), abs=0.01
    )  # fmt: skip


def test_rounds_shrink_when_time_runs_out() -> None:
    clock = common.Clock(budget=1e9)
    assert list(clock.rounds((0, 1, 2), 1000)) == [(0, 1000), (1, 1000), (2, 1000)]
    spent = common.Clock(budget=1e-9)
    assert [tokens for _, tokens in spent.rounds((0, 1), 1000)] == [1000, 1]
    assert 0 < spent.left() < 1  # a training still gets a moment, and comes to its end


def test_verdicts_join() -> None:
    holds, fails, open_ = "holds here", "does not hold here", "inconclusive"
    assert common.together(holds, holds) == holds
    assert common.together(holds, open_) == open_
    assert common.together(open_, fails) == fails
    assert common.gain([2.0, 3.0], [1.0, 1.0]) == [1.0, 2.0]
    assert common.said([1.0]) == "+1.000"
