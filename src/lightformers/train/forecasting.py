"""Training a forecaster by epochs: validation after each, the best weights kept, patience. On the one training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lightformers.bundle import Batch, Bundle
from lightformers.errors import DataError, UserError
from lightformers.tasks.windows import Windows
from lightformers.train import stl
from lightformers.train.loop import Objective, Settings, fit
from lightformers.train.schedules import Schedule
from lightformers.train.windows import WindowFeed

if TYPE_CHECKING:
    from lightformers.tasks.forecasting import Forecasting

_SCORED = 256  # windows of a batch when nothing is learned
_SCHEDULES = ("constant", "halve", "cosine", "onecycle")


@dataclass(frozen=True)
class Epochs:
    """How long and how to train.

    epochs: at most so many. patience: stop after so many without a better validation error. batch: windows of an update.
    schedule: "halve" multiplies lr by 0.5 after each epoch (iTransformer's scripts); "cosine" and "onecycle" end with the
    epochs that the time allows. weight_decay: decoupled, on matrices; 0 is plain Adam. seconds: wall clock of training and
    validation together. frozen: patterns of parameter names. windows: at most so many training windows an epoch, others
    in each. share: of the train rows only this last part is used (few-shot), in (0, 1].
    """

    epochs: int = 10
    patience: int = 3
    batch: int = 32
    lr: float = 1e-4
    schedule: Literal["constant", "halve", "cosine", "onecycle"] = "constant"
    weight_decay: float = 0.0
    precision: Literal["fp32", "bf16"] = "fp32"
    seconds: float | None = None
    seed: int = 0
    dropout: bool = True
    frozen: Sequence[str] = ()
    windows: int | None = None
    share: float = 1.0

    def __post_init__(self) -> None:
        if min(self.epochs, self.patience, self.batch) < 1 or not self.lr > 0:
            raise UserError("epochs, patience and batch are at least 1, lr is positive")
        if self.schedule not in _SCHEDULES:
            raise UserError(f"schedule {self.schedule!r} is not one of {', '.join(_SCHEDULES)}")
        if not 0 < self.share <= 1 or (self.seconds is not None and self.seconds <= 0):
            raise UserError("share is in (0, 1], seconds are positive")


@dataclass(frozen=True)
class Trained:
    """history: per epoch {"epoch", "loss", "mse", "mae", "lr", "seconds"}, errors of the search split. best_epoch: counted
    from 1; its weights are in the model. epochs: that were run. seconds: wall clock of all of it."""

    history: list[dict[str, float]]
    best_epoch: int
    epochs: int
    seconds: float


@dataclass
class _Best:
    """The weights of the best epoch so far."""

    error: float = math.inf
    epoch: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def see(self, model: nn.Module, error: float, epoch: int) -> None:
        if error < self.error or not self.weights:
            self.error, self.epoch = error, epoch
            self.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}


def train(
    bundle: Bundle,
    task: Forecasting,
    settings: Epochs,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> Trained:
    """Train the bundle's model in place; the weights of its best epoch on the search split are left in it.

    progress: called as by `train.loop.fit`, with "epoch" besides, and once after every epoch with that epoch's row of the
    history. The first epoch is always whole, or as much of it as `seconds` allow; `seconds` is kept to within an update
    and a validation. Raises DataError or ModelError where model and task do not fit, Diverged for a loss that is not finite.
    """
    task.check(bundle)
    started = time.monotonic()
    feed = WindowFeed(
        few(task, settings.share), bundle.processor, settings.batch, settings.seed, settings.windows
    )  # fmt: skip
    aim = objective(bundle.model, task.targets, stl.of_task(bundle, task))
    best, history = _Best(), []
    state, planned, device = None, settings.epochs, _device(bundle.model)
    for epoch in range(settings.epochs):
        left = None if settings.seconds is None else settings.seconds - (time.monotonic() - started)
        if epoch and (epoch >= planned or (left is not None and left <= 0)):
            break
        rate = settings.lr * (0.5**epoch if settings.schedule == "halve" else 1.0)
        schedule: Schedule = "constant" if settings.schedule == "halve" else settings.schedule
        result = fit(
            bundle.model, feed, aim,
            Settings(
                steps=planned * feed.batches, until=(epoch + 1) / planned, lr=rate, warmup=0.0, schedule=schedule,
                weight_decay=settings.weight_decay, betas=(0.9, 0.999), clip=0.0, precision=settings.precision,
                frozen=settings.frozen, dropout=settings.dropout, seed=settings.seed,
            ),
            _told(progress, epoch), state, device, halt=_deadline(left),
        )  # fmt: skip
        state = result.state
        error = evaluate(bundle, task, "search")
        row = {"epoch": epoch + 1, "loss": _mean(result.losses), "mse": error["mse"], "mae": error["mae"],
               "lr": rate, "seconds": time.monotonic() - started}  # fmt: skip
        history.append(row)
        best.see(bundle.model, error[task.kind], epoch + 1)
        if progress:
            progress(row)
        if epoch + 1 - best.epoch >= settings.patience or (left is not None and result.stopped):
            break
        if settings.seconds is not None:  # schedules end with the epochs that there is time for
            spent = row["seconds"]
            planned = min(
                settings.epochs, epoch + 1 + max(int((settings.seconds - spent) / (spent / (epoch + 1))), 1)
            )
    bundle.model.load_state_dict(best.weights)
    return Trained(history, best.epoch, len(history), time.monotonic() - started)


def _told(
    progress: Callable[[dict[str, Any]], None] | None, epoch: int
) -> Callable[[dict[str, Any]], None] | None:
    return (lambda event: progress({**event, "epoch": epoch + 1})) if progress else None


def _deadline(left: float | None) -> Callable[[], bool] | None:
    if left is None:
        return None
    end = time.monotonic() + left
    return lambda: time.monotonic() >= end


def _mean(losses: list[float]) -> float:
    return sum(losses) / len(losses) if losses else math.nan


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def few(task: Forecasting, share: float = 1.0) -> Windows:
    """The training windows of the last `share` of the train rows. Raises DataError where none fits into them."""
    made = task.splits["train"]
    if share >= 1:
        return made
    first = task.borders[0] - int(share * task.borders[0])
    chosen = made[int(np.searchsorted(made.starts, first)) :]
    if not len(chosen):
        raise DataError(
            f"{share:.0%} of the train rows are {task.borders[0] - first}, too few for one window of "
            f"{task.context + task.horizon}: take a larger share"
        )
    return chosen


def forecast(outputs: Any) -> Tensor:
    """The (batch, horizon, channels) forecast among a model's outputs, ours or of transformers."""
    for name in ("prediction", "prediction_outputs"):
        if isinstance(found := getattr(outputs, name, None), Tensor):
            return found
    raise UserError(f"the model gave no forecast: a {type(outputs).__name__} has no field 'prediction'")


def objective(
    model: nn.Module, targets: Sequence[int] | None = None, components: Callable[[Batch], Tensor] | None = None
) -> Objective:  # fmt: skip
    """What a forecaster is trained on: its own `training_loss` where it has one, else squared error over observed values.

    targets: places of the channels that count; None: all. components: see `stl.of_task`; handed to the `training_loss`.
    """
    own = getattr(model, "training_loss", None) is not None

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        future, seen = batch.targets["future_values"], batch.targets["future_observed_mask"]
        if targets is not None and len(targets) < future.shape[-1]:
            counted = torch.zeros(future.shape[-1], dtype=torch.bool, device=seen.device)
            counted[list(targets)] = True
            seen = seen & counted
        if own:
            inner: Any = getattr(module, "module", module)  # processes of several machines wrap the model
            more = {} if components is None else {"components": components(batch)}
            made_loss: Tensor = inner.training_loss(batch.inputs, future, seen, **more)
            return made_loss
        made = forecast(module(**batch.inputs)).float()
        if made.shape[-1] != future.shape[-1] and targets is not None and made.shape[-1] == len(targets):
            future, seen = future[..., list(targets)], seen[..., list(targets)]
        apart = torch.where(seen, made - future, 0.0)
        return apart.square().sum() / seen.sum().clamp(min=1)

    return loss


@torch.inference_mode()
def evaluate(bundle: Bundle, task: Forecasting, split: str = "verify") -> dict[str, float]:
    """Every window of a split in PyTorch: {"mse", "mae", "windows"}, as `task.evaluate` counts them, but without
    Python work per window. Raises DataError where model and task do not fit."""
    if bundle.processor is None:
        task.check(bundle)
    windows, model = task.splits[split], bundle.model
    feed, device = WindowFeed(windows, bundle.processor, _SCORED), _device(model)
    training = [m for m in model.modules() if m.training]
    model.eval()
    items: list[tuple[float, float, int]] = []
    try:
        for start in range(0, len(windows), _SCORED):
            batch = feed.gather(np.arange(start, min(start + _SCORED, len(windows)))).to(device)
            items += task.reduce({"prediction": forecast(model(**batch.inputs))}, batch)
    finally:
        for m in training:
            m.training = True
    square, absolute, count = np.array(items, np.float64).sum(0).tolist()
    return {"mse": square / count, "mae": absolute / count, "windows": float(len(windows))}
