"""Tiny Time Mixers: pre-training over many series, forecasts of unseen ones, tuning of the decoder on a few rows."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from lightformers.bundle import Bundle
from lightformers.errors import UserError
from lightformers.models.forecasting.ttm import BACKBONE, TinyTimeMixer, TinyTimeMixerConfig
from lightformers.train.forecasting import Epochs, Trained, objective, train
from lightformers.train.loop import Settings, fit
from lightformers.train.resolutions import Source, SourceFeed, resolutions

if TYPE_CHECKING:
    from lightformers.tasks.forecasting import Forecasting


#: How decoder and head are tuned on few rows: the last 5 %, as the official toolkit takes them by default.
FEW = Epochs(epochs=50, patience=5, batch=64, lr=1e-3, share=0.05)


@dataclass(frozen=True)
class Pretraining:
    """How a backbone is pre-trained.

    context, horizon: steps of a window; fields: of `TinyTimeMixerConfig`, beside them. factors: rates of the down-sampled
    copies. steps, seconds: the budget, whichever ends first. The defaults of lr and dropout are the official script's; its
    batches are of 3,000 windows.
    """

    context: int = 512
    horizon: int = 96
    fields: Mapping[str, Any] = field(default_factory=dict)
    factors: Sequence[int] = (2, 4)
    steps: int | None = None
    seconds: float | None = 240.0
    batch: int = 256
    lr: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 0.0
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        if any(f < 1 for f in self.factors):
            raise UserError(f"factors of down-sampling are at least 1, not {list(self.factors)}")


def pretrain(
    sources: Sequence[Source], settings: Pretraining, progress: Callable[[dict[str, Any]], None] | None = None
) -> Bundle:
    """A forecaster of any series, without a processor: `zero_shot` fits it to a task.

    Raises DataError where no source has the rows of a window, UserError for settings that do not fit.
    """
    fields = {**settings.fields, "context_length": settings.context, "prediction_length": settings.horizon}
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model = TinyTimeMixer(TinyTimeMixerConfig(**fields))
    every = resolutions(sources, settings.factors, settings.context + settings.horizon)
    feed = SourceFeed(every, settings.context, settings.horizon, settings.batch, settings.seed)
    budget = Settings(
        seconds=settings.seconds, steps=settings.steps, lr=settings.lr, warmup=settings.warmup, schedule="cosine",
        weight_decay=settings.weight_decay, betas=(0.9, 0.999), clip=1.0, precision=settings.precision, dropout=True,
        seed=settings.seed,
    )  # fmt: skip
    result = fit(model, feed, objective(model), budget, progress)
    note = {
        "step": "pretrain", "series": [s.name for s in every], "windows": feed.windows, "updates": result.steps,
        "loss": result.loss, "seconds": result.seconds,
    }  # fmt: skip
    return Bundle(model.eval(), None, "forecasting", history=[note])


def zero_shot(bundle: Bundle, task: Forecasting) -> Bundle:
    """The pre-trained model, a copy, with the processor of this task: no weight is changed.

    Raises UserError where the model was made for another context, or a shorter horizon.
    """
    config: Any = bundle.model.config
    if task.context != config.context_length or task.horizon > config.head_length:
        raise UserError(
            f"this model reads {config.context_length} steps and forecasts at most {config.head_length}, the task has "
            f"{task.context} and {task.horizon}: make the task with context={config.context_length}"
        )
    model: Any = copy.deepcopy(bundle.model)
    model.config.prediction_length = task.horizon
    processor = task.processor(coded=bool(config.resolution_prefix))
    return dataclasses.replace(
        bundle, model=model, processor=processor, task="forecasting", history=list(bundle.history)
    )


def few_shot(
    bundle: Bundle,
    task: Forecasting,
    settings: Epochs | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[Bundle, Trained]:
    """Decoder and head tuned on the last `settings.share` of the train rows; the backbone stays as it is.

    settings: None: `FEW`.
    """
    settings = settings or FEW
    tuned = zero_shot(bundle, task)
    frozen = (*settings.frozen, *BACKBONE)
    return tuned, train(tuned, task, dataclasses.replace(settings, frozen=frozen), progress)
