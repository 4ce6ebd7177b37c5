"""Pre-training GPHT on a mixture, one model for several horizons, tuning of its heads alone."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lightformers as lf
from lightformers.bundle import Bundle
from lightformers.errors import DataError, ModelError, UserError
from lightformers.export import huggingface
from lightformers.models.forecasting.itransformer import ITransformer, ITransformerConfig
from lightformers.tasks.forecasting import Forecasting
from lightformers.train.forecasting import Epochs, evaluate
from lightformers.train.gpht import HEADS, Pretraining, pretrain, tune_heads, zero_shot
from lightformers.train.resolutions import Source

FIELDS: dict[str, Any] = {
    "context_length": 48, "token_length": 12, "pooling": (4, 1), "hidden_size": 16, "intermediate_size": 32,
    "num_hidden_layers": 1, "num_attention_heads": 2, "dropout": 0.0,
}  # fmt: skip


def waves(rows: int, channels: int, seed: int) -> np.ndarray:
    drawn, time = np.random.default_rng(seed), np.arange(rows)
    clean = [np.sin(2 * np.pi * time / 12 + p) * s for p, s in drawn.uniform(0.5, 6, (channels, 2))]
    return np.stack(clean, 1) + 0.1 * drawn.standard_normal((rows, channels))


@functools.cache
def learned(steps: int) -> Bundle:
    sources = [Source("a", waves(600, 3, 0)), Source("b", waves(300, 2, 1)), Source("short", waves(20, 1, 2))]
    return pretrain(sources, Pretraining(FIELDS, steps=steps, seconds=None, batch=32, lr=5e-3))


def unseen(horizon: int) -> Forecasting:
    return Forecasting.from_values(5 + waves(500, 2, 9), ["x", "y"], horizon, 48)


def test_one_model_forecasts_unseen_series_at_every_horizon() -> None:
    bundle, fresh = learned(80), learned(1)
    assert bundle.history[0]["updates"] == 80 and bundle.history[0]["windows"] == 3 * 541 + 2 * 241
    before = {n: p.clone() for n, p in bundle.model.named_parameters()}
    for horizon in (7, 30):
        task = unseen(horizon)
        ready = zero_shot(bundle, task)
        assert ready.model.config.prediction_length == horizon and ready.processor.columns == ("x", "y")
        error = evaluate(ready, task)["mse"]
        assert error < 0.5 * evaluate(zero_shot(fresh, task), task)["mse"] and error < 0.6
    assert all(torch.equal(p, before[n]) for n, p in bundle.model.named_parameters())
    assert bundle.processor is None and bundle.model.config.prediction_length == 96


def test_tuning_trains_the_heads_alone_and_the_result_loads(tmp_path: Path) -> None:
    bundle, task = learned(80), unseen(12)
    tuned, found = tune_heads(bundle, task, Epochs(epochs=2, lr=3e-3, windows=200))
    old = dict(bundle.model.named_parameters())
    moved = {n for n, p in tuned.model.named_parameters() if not torch.equal(p, old[n])}
    assert moved == {f"stages.{i}.head.{kind}" for i in range(2) for kind in ("weight", "bias")}
    assert (
        len(found.history) == 2
        and evaluate(tuned, task)["mse"] < evaluate(zero_shot(bundle, task), task)["mse"]
    )
    huggingface.save(tuned, tmp_path)
    again = lf.load(tmp_path)
    assert evaluate(again, task) == evaluate(tuned, task)
    assert (HEADS.lr, HEADS.batch, HEADS.dropout) == (1e-4, 32, False)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="reads 48 steps, the task gives 24"):
        zero_shot(learned(1), Forecasting.from_values(waves(300, 2, 9), ["x", "y"], 12, 24))
    other = Bundle(ITransformer(ITransformerConfig(48, 12, hidden_size=16, intermediate_size=16)))
    with pytest.raises(ModelError, match="ITransformer forecasts one horizon"):
        tune_heads(other, unseen(12))
    with pytest.raises(DataError, match="60 rows of a window"):
        pretrain([Source("short", waves(20, 1, 2))], Pretraining(FIELDS, steps=1))
