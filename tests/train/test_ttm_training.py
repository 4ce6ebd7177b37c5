"""Pre-training over many series: rates, windows, what zero-shot and few-shot change, and that they beat what they should."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lightformers.errors import DataError, UserError
from lightformers.models.forecasting.ttm import TinyTimeMixer
from lightformers.processors.series import FREQUENCIES
from lightformers.tasks import Forecasting
from lightformers.train.forecasting import Epochs, evaluate
from lightformers.train.resolutions import Source, SourceFeed, down_sampled, resolutions
from lightformers.train.ttm import Pretraining, few_shot, pretrain, zero_shot

FIELDS: dict[str, Any] = {
    "patch_length": 8, "hidden_size": 16, "num_hidden_layers": 1, "levels": 2, "decoder_hidden_size": 12,
    "decoder_num_layers": 1, "resolution_prefix": True,
}  # fmt: skip


def waves(rows: int, channels: int, seed: int, noise: float = 0.2) -> np.ndarray:
    """A daily wave of 12 steps with harmonics, phases and levels of its own in every channel."""
    drawn = np.random.default_rng(seed)
    time = np.arange(rows)[:, None] * 2 * np.pi / 12 + drawn.uniform(0, 6, channels)
    shape = np.sin(time) + drawn.uniform(-0.5, 0.5, channels) * np.sin(2 * time)
    return 5 * drawn.standard_normal(channels) + shape + noise * drawn.standard_normal((rows, channels))


def test_down_sampling_takes_means_from_the_end() -> None:
    values = np.array([[9.0], [1.0], [3.0], [np.nan], [5.0], [np.nan], [np.nan]])
    source = Source("a", values, "15min")
    assert down_sampled(source, 2).values.ravel().tolist()[:2] == [2.0, 5.0]
    assert np.isnan(down_sampled(source, 2).values[2, 0])
    assert down_sampled(source, 2).frequency == "30min" and down_sampled(source, 4).frequency == "h"
    assert down_sampled(source, 3).frequency == "" and down_sampled(source, 3, "pick").values[0, 0] != 2
    with pytest.raises(DataError, match="too few"):
        down_sampled(source, 8)


def test_copies_that_are_too_short_are_left_out() -> None:
    sources = [Source("long", np.ones((100, 1)), "h"), Source("short", np.ones((30, 1)))]
    assert [s.name for s in resolutions(sources, (1, 2, 4), 40)] == ["long", "long / 2"]


def test_windows_are_pieces_of_the_channels() -> None:
    ramp = np.arange(60.0)[:, None]
    broken = np.stack([np.sin(np.arange(40.0)), np.full(40, 7.0), np.full(40, np.nan)], 1)
    broken[3, 0] = np.nan
    feed = SourceFeed([Source("ramp", ramp, "h"), Source("broken", broken)], 8, 4, size=64, seed=1)
    assert feed.windows == (60 - 11) + (40 - 11)  # the constant and the empty channel are no series
    batch = feed.batch(3)
    past, future = batch.inputs["past_values"], batch.targets["future_values"]
    assert past.shape == (64, 8, 1) and future.shape == (64, 4, 1)
    hourly = batch.inputs["frequency"] == FREQUENCIES.index("h")
    assert 0 < hourly.sum() < 64
    steps = torch.cat([past, future], 1)[hourly, :, 0].diff(dim=1)
    assert torch.allclose(steps, torch.full_like(steps, 1 / ramp.std()), atol=1e-4)
    masks = batch.inputs["past_observed_mask"]
    assert masks[hourly].all() and not masks[~hourly].all()
    again = SourceFeed(feed.sources, 8, 4, size=64, seed=1).batch(3)
    assert torch.equal(again.inputs["past_values"], past)
    assert not torch.equal(feed.batch(4).inputs["past_values"], past)
    with pytest.raises(DataError, match="rows of a window"):
        SourceFeed([Source("ramp", ramp)], 60, 4)


def test_zero_shot_beats_naive_and_few_shot_keeps_the_backbone() -> None:
    """Learned on other waves of the same period; the task's own are unseen."""
    sources = [Source(f"wave {i}", waves(300, 2, i), "h") for i in range(4)]
    settings = Pretraining(24, 12, FIELDS, factors=(), steps=100, seconds=None, batch=32, lr=1e-2)
    bundle = pretrain(sources, settings)
    assert bundle.history[0]["updates"] == 100 and bundle.processor is None
    values = waves(400, 2, 99)
    task = Forecasting.from_values(values, ["a", "b"], horizon=12, context=24)
    ready = zero_shot(bundle, task)
    untrained = zero_shot(
        pretrain(sources, Pretraining(24, 12, FIELDS, factors=(), steps=1, seconds=None)), task
    )
    found = evaluate(ready, task)
    scale = values[: task.borders[0]].std(0)
    last = (values[24:-12] - values[12:-24])[-50:] / scale  # the value one period before
    assert (
        found["mse"] < 0.75 * float((last**2).mean())
        and found["mse"] < 0.5 * evaluate(untrained, task)["mse"]
    )
    assert bundle.processor is None and ready.processor is not None and ready.processor.coded
    tuned, trained = few_shot(bundle, task, Epochs(epochs=2, patience=2, batch=16, lr=1e-3, share=0.3))
    before, after = bundle.model.state_dict(), tuned.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and not any(name.startswith("backbone") for name in moved) and trained.epochs == 2
    assert all(p.requires_grad for p in tuned.model.parameters())


def test_a_shorter_horizon_is_served_and_a_longer_refused() -> None:
    bundle = pretrain(
        [Source("wave", waves(100, 1, 0))],
        Pretraining(24, 12, FIELDS, factors=(), steps=1, seconds=None, batch=4),
    )
    assert isinstance(bundle.model, TinyTimeMixer)
    short = Forecasting.from_values(waves(200, 1, 1), horizon=5, context=24)
    batch = zero_shot(bundle, short).collate([short.splits["verify"][0]])
    assert zero_shot(bundle, short).model(**batch.inputs).prediction.shape == (1, 5, 1)
    assert bundle.model.config.prediction_length == 12
    for horizon, context in ((13, 24), (12, 20)):
        with pytest.raises(UserError, match="this model reads 24 steps"):
            zero_shot(bundle, Forecasting.from_values(waves(200, 1, 1), horizon=horizon, context=context))
    with pytest.raises(UserError, match="factors"):
        Pretraining(factors=(0,))
