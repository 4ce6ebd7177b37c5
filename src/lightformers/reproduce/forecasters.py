"""What experiments on forecasters share: plain rivals, training for a number of steps, the error on windows never seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lightformers import train
from lightformers.bundle import Bundle
from lightformers.models.forecasting.output import Forecast
from lightformers.parts.encoder_layer import EncoderLayer
from lightformers.parts.positions import sinusoids
from lightformers.parts.series import Window, patches
from lightformers.processors.series import SeriesProcessor
from lightformers.tasks.forecasting import Forecasting, ett
from lightformers.train.forecasting import evaluate, objective
from lightformers.train.windows import WindowFeed


class PerVariate(nn.Module):
    """One linear map from past to future for every channel, between its window's mean and deviation."""

    def __init__(self, context: int, horizon: int) -> None:
        super().__init__()
        self.map = nn.Linear(context, horizon)

    def forward(self, past_values: Tensor) -> Forecast:
        window = Window.of(past_values)
        return Forecast(window.grow(self.map(window.shrink(past_values).transpose(1, 2)).transpose(1, 2)))


class TimeTokens(nn.Module):
    """A transformer whose tokens are time steps: all channels of a step, sinusoidal positions, post-norm layers; a linear
    map over time makes future steps of past ones, another one channels of their width. Scaled as `PerVariate`."""

    def __init__(
        self, channels: int, context: int, horizon: int, width: int, heads: int, hidden: int, layers: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Linear(channels, width)
        self.layers = nn.Sequential(*(EncoderLayer(width, heads, hidden) for _ in range(layers)))
        self.norm, self.onward = nn.LayerNorm(width), nn.Linear(context, horizon)
        self.projector = nn.Linear(width, channels)

    def forward(self, past_values: Tensor) -> Forecast:
        window = Window.of(past_values)
        x = self.embedding(window.shrink(past_values))
        x = self.norm(self.layers(x + sinusoids(x.shape[1], x.shape[2], x.device)))
        return Forecast(window.grow(self.projector(self.onward(x.transpose(1, 2)).transpose(1, 2))))


class OneShot(nn.Module):
    """A forecaster of one horizon: each channel's segments through post-norm layers, and one linear map from all of them."""

    def __init__(
        self, context: int, horizon: int, token: int, width: int, heads: int, hidden: int, layers: int
    ) -> None:
        super().__init__()
        self.token = token
        self.embedding = nn.Linear(token, width, bias=False)
        self.layers = nn.Sequential(*(EncoderLayer(width, heads, hidden) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(context // token * width, horizon)

    def forward(self, past_values: Tensor) -> Forecast:
        window = Window.of(past_values)
        x = self.embedding(patches(window.shrink(past_values), self.token, self.token))
        x = x + sinusoids(x.shape[2], x.shape[3], x.device)
        y = self.head(self.norm(self.layers(x.flatten(0, 1))).flatten(1))
        return Forecast(window.grow(y.unflatten(0, x.shape[:2]).transpose(1, 2)))


class Again(nn.Module):
    """The last `season` steps, again and again."""

    def __init__(self, season: int, horizon: int) -> None:
        super().__init__()
        self.season, self.horizon = season, horizon

    def forward(self, past_values: Tensor) -> Forecast:
        last = past_values[:, -self.season :]
        return Forecast(last.repeat(1, -(-self.horizon // self.season), 1)[:, : self.horizon])


def size(make: Callable[[], nn.Module]) -> int:
    """How many parameters what it makes has."""
    with torch.device("meta"):
        return sum(p.numel() for p in make().parameters())


def fitted(write: Callable[[int], nn.Module], wanted: int) -> int:
    """The number for which `write`'s model comes nearest to so many parameters; they grow evenly with it."""
    first = size(lambda: write(1))
    each = size(lambda: write(2)) - first
    return max(round((wanted - first) / each) + 1, 1)


def benchmark(name: str, horizon: int, context: int, stride: int) -> Forecasting:
    """A series of the benchmark; every so many of its test windows counts."""
    return dataclasses.replace(ett(name, horizon, context), stride=stride)


def learn(
    make: Callable[[], nn.Module], task: Forecasting, batch: int, lr: float, seed: int, steps: int
) -> Bundle:
    """A new model, its weights decided by the seed, trained for so many updates of so many windows."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make()
    bundle = Bundle(model, task.processor(masked=False), "forecasting")
    go_on(bundle, task, batch, lr, seed, steps)
    return bundle


def go_on(
    bundle: Bundle, task: Forecasting, batch: int, lr: float, seed: int, steps: int, frozen: Sequence[str] = ()
) -> None:  # fmt: skip
    """Train the bundle's model on the task, in place."""
    held = bundle.processor
    assert isinstance(held, SeriesProcessor)
    settings = train.Settings(
        steps=steps, lr=lr, warmup=0.1, weight_decay=0.0, precision="fp32", frozen=tuple(frozen), seed=seed
    )
    train.fit(
        bundle.model,
        WindowFeed(task.splits["train"], held, batch, seed),
        objective(bundle.model, task.targets),
        settings,
    )


def error(bundle: Bundle, task: Forecasting) -> float:
    """Mean squared error on the verify split, of standardised values."""
    return float(evaluate(Bundle(bundle.model, task.processor(masked=False), "forecasting"), task)["mse"])


@torch.inference_mode()
def errors(say: Callable[[Tensor], Tensor], task: Forecasting, horizons: Sequence[int]) -> list[float]:
    """Mean squared error of the first steps of a forecast, for each of some horizons, on the task's verify split.

    say: (batch, context, channels) -> (batch, steps, channels), at least as many as the longest of the horizons.
    """
    feed = WindowFeed(task.splits["verify"], task.processor(masked=False), 256)
    count, total = len(feed.windows), torch.zeros(len(horizons), dtype=torch.float64)
    for start in range(0, count, feed.size):
        batch = feed.gather(np.arange(start, min(start + feed.size, count)))
        future = batch.targets["future_values"]
        said = say(batch.inputs["past_values"])
        for place, horizon in enumerate(horizons):
            apart = said[:, :horizon] - future[:, :horizon]
            total[place] += apart.double().square().mean((1, 2)).sum()
    return (total / count).tolist()
