"""Drawn series: their seasons, that they differ, and that a forecaster learns seasons from nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lightformers.errors import UserError
from lightformers.tasks import Forecasting
from lightformers.train.drawn_series import drawn, seasons, with_drawn
from lightformers.train.forecasting import evaluate
from lightformers.train.resolutions import Source
from lightformers.train.ttm import Pretraining, pretrain, zero_shot


def test_seasons_of_a_frequency() -> None:
    assert seasons("h") == (24, 168, 8760) and seasons("15min")[:2] == (96, 672)
    assert seasons("D") == (7, 365) and seasons("MS") == (12,) and seasons("s")[0] == 60
    with pytest.raises(UserError, match="no season"):
        seasons("")


def test_a_day_comes_back() -> None:
    values = drawn("h", 60, 1000).values
    assert values.shape == (1000, 60) and np.isfinite(values).all()
    changes = np.diff(values, axis=0)

    def alike(lag: int) -> float:
        return float(np.mean([np.corrcoef(c[lag:], c[:-lag])[0, 1] for c in changes.T]))

    assert alike(24) > 0.1 + max(alike(12), alike(17))
    between = np.corrcoef(changes.T)[np.triu_indices(60, 1)]
    assert np.abs(between).mean() < 0.3


def test_seeds_draw_the_same_again() -> None:
    assert np.array_equal(drawn("h", 3, 400, seed=1).values, drawn("h", 3, 400, seed=1).values)
    assert not np.array_equal(drawn("h", 3, 400, seed=1).values, drawn("h", 3, 400, seed=2).values)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(UserError, match="draw more rows"):
        drawn("h", 1, 100)


def test_every_rate_at_hand_is_drawn_as_often() -> None:
    wide, few, other = (
        Source("a", np.ones((50, 40)), "h"),
        Source("b", np.ones((50, 2)), "D"),
        Source("c", np.ones((9, 1))),
    )
    found = with_drawn([wide, few, other], 24)
    assert found[:3] == [wide, few, other] and [s.name for s in found[3:]] == ["drawn D", "drawn h"]
    assert [s.values.shape for s in found[3:]] == [(3000, 16), (3000, 40)]
    assert len(with_drawn([few], 4000)[1].values) == 8000


def test_seasons_are_learned_from_drawn_series_alone() -> None:
    """A wave that was never seen is foreseen better than by its mean or its last value."""
    fields: dict[str, Any] = {
        "patch_length": 8,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "levels": 2,
        "decoder_hidden_size": 12,
        "decoder_num_layers": 1,
    }
    bundle = pretrain(
        [drawn("h", 50, 600)],
        Pretraining(48, 12, fields, factors=(), steps=150, seconds=None, batch=32, lr=5e-3),
    )
    time = np.arange(600)[:, None] * 2 * np.pi / 24
    noise = 0.1 * np.random.default_rng(0).standard_normal((600, 1))
    task = Forecasting.from_values(np.sin(time) + 0.5 * np.sin(2 * time + 1) + noise, horizon=12, context=48)
    assert evaluate(zero_shot(bundle, task), task)["mse"] < 0.6
