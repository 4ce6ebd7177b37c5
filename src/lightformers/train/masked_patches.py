"""Masked pre-training of a TSMixer on the training windows of a task, without their futures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lightformers.bundle import Bundle
from lightformers.errors import UserError
from lightformers.models.forecasting.tsmixer_pretraining import TSMixerForPretraining
from lightformers.train.forecasting import Epochs, objective
from lightformers.train.loop import Settings, TrainResult, fit
from lightformers.train.windows import WindowFeed

if TYPE_CHECKING:
    from lightformers.tasks.forecasting import Forecasting


def pretrain(
    model: TSMixerForPretraining,
    task: Forecasting,
    settings: Epochs,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> TrainResult:
    """Train `model` in place for `settings.epochs`; then `model.forecaster(...)` has its backbone.

    Every training window counts, whatever `settings.share` says of those with a future; patience is not asked.
    """
    if not isinstance(model, TSMixerForPretraining):
        raise UserError(f"a {type(model).__name__} hides no patches: pre-train a TSMixerForPretraining")
    feed = WindowFeed(
        task.splits["train"], task.processor(known=False), settings.batch, settings.seed, settings.windows
    )
    budget = Settings(
        steps=settings.epochs * feed.batches, seconds=settings.seconds, lr=settings.lr, warmup=0.0, schedule="constant",
        weight_decay=settings.weight_decay, betas=(0.9, 0.999), clip=0.0, precision=settings.precision,
        dropout=settings.dropout, seed=settings.seed,
    )  # fmt: skip
    result = fit(model, feed, objective(model), budget, progress)
    model.eval()
    return result


def forecaster(model: TSMixerForPretraining, task: Forecasting, **fields: Any) -> Bundle:
    """A forecaster for the task on the pre-trained backbone, its head fresh. fields: of its configuration."""
    made = model.forecaster(task.horizon, **fields)
    return Bundle(made.eval(), task.processor(), "forecasting")
