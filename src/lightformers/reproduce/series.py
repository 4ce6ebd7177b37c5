"""Small models that read a time series and say one thing at its end: what experiments on forecasting and classification of
series share. Their layers are those of the decoders."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightformers import reproduce
from lightformers.bundle import Batch
from lightformers.models.language.layers import build

Array = NDArray[np.float32]
#: Share of rows to train on, and until which to leave out for choices that are not made here.
SPLITS = {"etth1": (8640 / 14400, 11520 / 14400, 14400), "exchange_rate": (0.7, 0.8, None)}


class Reader(nn.Module):
    """series (batch, n, channels) -> {"said": (batch, outputs)}: a linear map with learned positions, layers, and a linear
    map of the last state.

    layers: of a decoder's configuration; None: a GRU of `recurrent` layers in their place.
    """

    def __init__(
        self,
        channels: int,
        length: int,
        outputs: int,
        width: int,
        layers: Sequence[Mapping[str, Any]] | None,
        recurrent: int = 2,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        self.enter = nn.Linear(channels, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.layers = None if layers is None else build(layers, width, "rms", 1e-6, 0.0)
        inner = width if hidden is None else hidden
        self.recurrence = None if layers is not None else nn.GRU(width, inner, recurrent, batch_first=True)
        last = inner if layers is None else width
        self.norm, self.leave = nn.RMSNorm(last, eps=1e-6), nn.Linear(last, outputs)

    def forward(self, series: Tensor) -> dict[str, Tensor]:
        x = self.enter(series) + self.positions
        if self.recurrence is not None:
            x = self.recurrence(x)[0]
        for layer in self.layers or ():
            x = layer(x)
        return {"said": self.leave(self.norm(x[:, -1]))}


@dataclass(frozen=True)
class Drawn:
    """Batches of `size` examples, drawn anew for every position. pairs: (inputs, answers), first dimensions equal."""

    inputs: Tensor
    answers: Tensor
    size: int
    seed: int

    def batch(self, position: int) -> Batch:
        rows = torch.from_numpy(
            np.random.default_rng((self.seed, position)).integers(len(self.inputs), size=self.size)
        )
        return Batch({"series": self.inputs[rows]}, {"answers": self.answers[rows]})


def forecast(name: str, length: int, horizon: int, every: int) -> dict[str, tuple[Tensor, Tensor]]:
    """ "train" and "test" windows of each channel for itself: (windows, length, 1) and what follows (windows, horizon).

    Values are standardised with the means and deviations of the training rows. every: rows between two windows, of the
    training part; test windows stand four times as far apart.
    """
    folder = reproduce.data(name)
    with gzip.open(next(folder.glob("*.csv.gz")), "rt", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    first = 1 if name == "etth1" else 0  # a column of dates
    values = np.array([row[first:] for row in rows], np.float32)
    low, high, last = SPLITS[name]
    values = values[:last]
    split, test = round(low * len(values)), round(high * len(values))
    values = (values - values[:split].mean(0)) / values[:split].std(0)
    parts = {"train": (values[:split], every), "test": (values[test - length :], 4 * every)}
    return {part: _windows(x, length, horizon, step) for part, (x, step) in parts.items()}


def _windows(values: Array, length: int, horizon: int, every: int) -> tuple[Tensor, Tensor]:
    cut = np.lib.stride_tricks.sliding_window_view(values, length + horizon, 0)[::every]
    both = torch.from_numpy(cut.reshape(-1, length + horizon).copy())
    return both[:, :length, None], both[:, length:]


def normal(series: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each series less its mean, over its deviation, both kept to undo it: a level that drifts is then no matter."""
    mean, deviation = series.mean(1, keepdim=True), series.std(1, keepdim=True) + 1e-3
    return (series - mean) / deviation, mean[..., 0], deviation[..., 0]


def problem(name: str) -> dict[str, tuple[Tensor, Tensor]]:
    """A UCR or UEA problem: "train" and "test" series (cases, n, channels), standardised, and classes (cases,)."""
    with np.load(reproduce.data("ucr_uea") / f"{name}.npz") as file:
        held = {key: file[key] for key in ("x_train", "y_train", "x_test", "y_test")}
    mean = held["x_train"].mean((0, 2), keepdims=True)
    deviation = held["x_train"].std((0, 2), keepdims=True) + 1e-6
    return {
        part: (
            torch.from_numpy(((held[f"x_{part}"] - mean) / deviation).transpose(0, 2, 1).copy()),
            torch.from_numpy(held[f"y_{part}"].astype(np.int64)),
        )
        for part in ("train", "test")
    }
