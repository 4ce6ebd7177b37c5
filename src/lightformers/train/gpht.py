"""GPHT: pre-training over a mixture of series, forecasts of unseen ones at any horizon, tuning of the heads to one."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from lightformers.bundle import Bundle
from lightformers.errors import ModelError, UserError
from lightformers.models.forecasting.gpht import BACKBONE, GPHT, GPHTConfig
from lightformers.train.forecasting import Epochs, Trained, objective, train
from lightformers.train.loop import Settings, fit
from lightformers.train.resolutions import Source, SourceFeed

if TYPE_CHECKING:
    from lightformers.tasks.forecasting import Forecasting

#: How the official scripts tune the heads to a series.
HEADS = Epochs(epochs=10, patience=3, batch=32, lr=1e-4, schedule="halve", dropout=False)


@dataclass(frozen=True)
class Pretraining:
    """How a model is pre-trained: on windows of single channels and the segment after each.

    fields: of `GPHTConfig`. steps, seconds: the budget, whichever ends first. The official script has batches of 1,024
    windows, a rate of 1e-4 halved after each of 10 epochs, dropout 0.1; a mixture of any length has no epochs, so the
    rate falls as a cosine.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    seconds: float | None = 240.0
    batch: int = 256
    lr: float = 1e-3
    warmup: float = 0.05
    dropout: bool = True
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0


def pretrain(
    sources: Sequence[Source], settings: Pretraining, progress: Callable[[dict[str, Any]], None] | None = None
) -> Bundle:
    """A forecaster of any series, without a processor: `zero_shot` fits it to a task.

    Raises DataError where no source has the rows of a window, UserError for settings that do not fit.
    """
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model = GPHT(GPHTConfig(**settings.fields))
    config = model.config
    feed = SourceFeed(sources, config.context_length, config.token_length, settings.batch, settings.seed)
    budget = Settings(
        seconds=settings.seconds, steps=settings.steps, lr=settings.lr, warmup=settings.warmup, schedule="cosine",
        weight_decay=0.0, betas=(0.9, 0.999), precision=settings.precision, dropout=settings.dropout, seed=settings.seed,
    )  # fmt: skip
    result = fit(model, feed, objective(model), budget, progress)
    note = {
        "step": "pretrain", "series": [s.name for s in sources], "windows": feed.windows, "updates": result.steps,
        "loss": result.loss, "seconds": result.seconds,
    }  # fmt: skip
    return Bundle(model.eval(), None, "forecasting", history=[note])


def zero_shot(bundle: Bundle, task: Forecasting) -> Bundle:
    """The same weights, a copy, for the horizon and the columns of a task.

    Raises ModelError for another model, UserError for a task of another context.
    """
    if not isinstance(bundle.model, GPHT):
        raise ModelError(f"a {type(bundle.model).__name__} forecasts one horizon: give a GPHT")
    length = bundle.model.config.context_length
    if task.context != length:
        raise UserError(
            f"this model reads {length} steps, the task gives {task.context}: make the task with context={length}"
        )
    model = copy.deepcopy(bundle.model)
    model.config.prediction_length = task.horizon
    history = list(bundle.history)
    return dataclasses.replace(
        bundle, model=model, processor=task.processor(), task="forecasting", history=history
    )


def tune_heads(
    bundle: Bundle,
    task: Forecasting,
    settings: Epochs = HEADS,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[Bundle, Trained]:
    """A copy whose heads are trained on the task; all else stays as pre-training left it. Errors: see `zero_shot`."""
    tuned = zero_shot(bundle, task)
    frozen = (*settings.frozen, *BACKBONE)
    return tuned, train(tuned, task, dataclasses.replace(settings, frozen=frozen), progress)
