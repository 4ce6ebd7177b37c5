"""Masked pre-training on a task: it learns without futures, and a linear head on it needs fewer labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightformers.errors import UserError
from lightformers.models.forecasting.tsmixer import TSMixer, TSMixerConfig
from lightformers.models.forecasting.tsmixer_pretraining import TSMixerForPretraining
from lightformers.tasks import Forecasting
from lightformers.train.forecasting import Epochs, evaluate, train
from lightformers.train.masked_patches import forecaster, pretrain

FIELDS = {"patch_length": 4, "hidden_size": 12, "num_hidden_layers": 1, "dropout": 0.0, "head_dropout": 0.0}


def task() -> Forecasting:
    time = np.arange(300)[:, None] * np.array([0.5, 0.9])
    values = np.sin(time) + 0.1 * np.random.default_rng(0).standard_normal((300, 2))
    return Forecasting.from_values(values, horizon=4, context=24)


def test_it_learns_and_its_backbone_goes_on() -> None:
    job = task()
    torch.manual_seed(0)
    model = TSMixerForPretraining(TSMixerConfig(context_length=24, prediction_length=4, **FIELDS))
    result = pretrain(model, job, Epochs(epochs=15, batch=32, lr=1e-2))
    assert np.mean(result.losses[-5:]) < 0.6 * np.mean(result.losses[:5])
    bundle = forecaster(model, job)
    before = bundle.model.mixer.embedding.weight.clone()
    assert torch.equal(before, model.mixer.embedding.weight)
    untrained = evaluate(bundle, job)["mse"]
    train(bundle, job, Epochs(epochs=3, lr=1e-2, frozen=("mixer.*",), share=0.3))
    assert evaluate(bundle, job)["mse"] < 0.5 * untrained
    assert torch.equal(bundle.model.mixer.embedding.weight, before)


def test_a_forecaster_is_refused() -> None:
    config = TSMixerConfig(context_length=24, prediction_length=4, **FIELDS)
    with pytest.raises(UserError, match="hides no patches"):
        pretrain(TSMixer(config), task(), Epochs())  # type: ignore[arg-type]
