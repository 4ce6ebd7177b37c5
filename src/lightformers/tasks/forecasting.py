"""Forecasting: windows of a series, the past in, the future to be met."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lightformers.errors import DataError
from lightformers.processors.series import FREQUENCIES, SeriesProcessor
from lightformers.stats import METRICS, Metric, Scores
from lightformers.tasks import common, series, windows
from lightformers.tasks.data import Rows
from lightformers.tasks.forecasting_checks import fit_to, largest, limits, places
from lightformers.tasks.series import Series, rows_of
from lightformers.tasks.windows import Windows

if TYPE_CHECKING:
    from lightformers.bundle import Batch, Bundle, Example

#: Windows that are evaluated of a user's own series: neighbours are nearly the same window.
MOST = {"search": 1000, "verify": 2000}
#: Windows that are encoded at once when a model is scored: bounds memory.
_CHUNK = 4096


@dataclass
class Forecasting:
    """Windows of one series in three parts of time; the metric is mse or mae of standardised target values.

    series: values, columns, stamps. horizon, context: rows of the future and of the past of a window. borders: rows at
        which train, search and verify end; the windows of search and verify begin `context` rows early, so that their first
        forecast starts at the border (Zhou et al., arXiv 2012.07436). targets: places of the columns that are forecast and
        scored. known: places of those whose future is given. stride: rows between two windows of search and verify; None:
        so that at most `MOST` are scored. open_context: the context was not asked for; `check` takes the model's.
    Values are standardised by mean and population deviation of the train rows. splits: `Windows`, views into `series`.
    A window counts by its squared (absolute) errors over observed target values, summed in float64, and by how many
    those are: the same for every batch size.
    """

    series: Series
    horizon: int
    context: int
    borders: tuple[int, int, int]
    targets: tuple[int, ...]
    known: tuple[int, ...] = ()
    kind: str = "mse"
    stride: int | None = None
    open_context: bool = False
    seed: int = 0
    warnings: list[str] = field(default_factory=list)
    labels: None = None
    splits: dict[str, Windows] = field(init=False, repr=False)
    name: ClassVar[str] = "forecasting"

    def __post_init__(self) -> None:
        limits(self)
        self._cut()

    def _cut(self) -> None:
        marks = self.series.marks()
        block = max(self.horizon, self.series.season)
        first, second, last = self.borders
        rows = {
            "train": (0, first),
            "search": (first - self.context, second),
            "verify": (second - self.context, last),
        }
        self.splits = {}
        for name, (low, high) in rows.items():
            count = high - low - self.context - self.horizon + 1
            stride = 1 if name == "train" else self.stride or max(-(-count // MOST[name]), 1)
            self.splits[name] = windows.cut(
                self.series.values,
                marks,
                (low, high),
                self.context,
                self.horizon,
                stride,
                block,
                self.targets,
            )
            if not len(self.splits[name]):
                raise DataError(
                    f"no window of the {name} part has both a past and a future: too many values are missing there"
                )

    @classmethod
    def from_file(
        cls, path: str | Path, horizon: int | None = None, context: int | None = None, target: str | Sequence[str] | None = None,
        timestamp: str | None = None, known: str | Sequence[str] = (), columns: Sequence[str] | None = None,
        split: Sequence[float] = (0.7, 0.1, 0.2), stride: int | None = None, metric: str = "mse", seed: int = 0,
    ) -> Forecasting:  # fmt: skip
        """Read a csv, tsv, jsonl, json or parquet file with one row a time step.

        target: columns to forecast and score; all numeric ones by default. known: columns whose future is known when a
        forecast is made (prices, holidays). columns: what to use at all. timestamp: found by itself where it is not named.
        split: shares of the rows, oldest first, or the three rows at which the parts end. Raises DataError, saying what
        to do: too few rows, a horizon that does not fit, texts, constant or empty columns, stamps doubled or unsorted.
        """
        found = series.read(path, timestamp, columns, _names(target, known))
        return cls.from_series(found, horizon, context, target, known, split, stride, metric, seed)

    @classmethod
    def from_examples(
        cls, examples: Any, horizon: int | None = None, context: int | None = None, target: str | Sequence[str] | None = None,
        timestamp: str | None = None, known: str | Sequence[str] = (), columns: Sequence[str] | None = None,
        split: Sequence[float] = (0.7, 0.1, 0.2), stride: int | None = None, metric: str = "mse", seed: int = 0,
    ) -> Forecasting:  # fmt: skip
        """Of rows {column: value}, one a time step, of columns {column: values}, or of a pandas frame."""
        rows = Rows(rows_of(examples), "the data")
        found = series.of_rows(rows, timestamp, columns, _names(target, known))
        return cls.from_series(found, horizon, context, target, known, split, stride, metric, seed)

    @classmethod
    def from_values(
        cls, values: Any, columns: Sequence[str] | None = None, horizon: int = 96, context: int | None = None,
        stamps: Any = None, split: Sequence[float] = (0.7, 0.1, 0.2), target: str | Sequence[str] | None = None,
        known: str | Sequence[str] = (), stride: int | None = None, metric: str = "mse", seed: int = 0,
    ) -> Forecasting:  # fmt: skip
        """Of an array (rows,) or (rows, channels), NaN where missing, and one stamp a row where there are some."""
        found = series.of(values, columns, stamps)
        return cls.from_series(found, horizon, context, target, known, split, stride, metric, seed)

    @classmethod
    def from_series(
        cls, found: Series, horizon: int | None, context: int | None = None, target: str | Sequence[str] | None = None,
        known: str | Sequence[str] = (), split: Sequence[float] = (0.7, 0.1, 0.2), stride: int | None = None,
        metric: str = "mse", seed: int = 0,
    ) -> Forecasting:  # fmt: skip
        """Of a series that is read already."""
        if horizon is None:
            raise DataError("say how many rows to forecast: --horizon 96")
        given = places(found, known, "known")
        wanted = places(found, target, "target") or tuple(
            i for i in range(len(found.columns)) if i not in given
        )
        ends = windows.borders(len(found.values), split)
        used = largest(found, horizon, ends) if context is None else context
        return cls(
            found, horizon, used, ends, wanted, given, metric, stride, context is None, seed, list(found.warnings)
        )  # fmt: skip

    @property
    def metric(self) -> Metric:
        return METRICS[self.kind]

    @property
    def columns(self) -> tuple[str, ...]:
        return self.series.columns

    @property
    def fingerprint(self) -> str:
        """sha256 over the series and the settings; windows follow from them."""
        settings = [
            self.series.fingerprint,
            self.horizon,
            self.context,
            self.borders,
            self.targets,
            self.known,
        ]
        text = json.dumps([self.name, *settings, self.kind, self.stride])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def scale(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and population deviation of every column over the train rows, missing values left out; both (channels,)."""
        rows = self.series.values[: self.borders[0]]
        count = np.maximum(np.isfinite(rows).sum(0), 1)
        mean = np.nansum(rows, 0) / count
        deviation = np.sqrt(np.nansum((rows - mean) ** 2, 0) / count)
        return mean, np.where(deviation > 1e-12 * np.abs(mean), deviation, 0.0)  # not what rounding leaves

    def processor(
        self, masked: bool | None = None, marks: bool = False, coded: bool = False, known: bool | None = None
    ) -> SeriesProcessor:
        """Windows -> tensors, standardised by the train rows.

        masked: the model takes past_observed_mask (None: if values are missing). marks: it reads the calendar. coded: it
        is told the frequency. known: it reads the future of the known columns (None: if there are any).
        Raises DataError where the model wants a calendar and the series has no stamps.
        """
        features = self.series.marks()
        if marks and features is None:
            raise DataError("this model reads the calendar: name the column of time stamps with --timestamp")
        mean, deviation = self.scale
        everything = len(self.targets) == len(self.columns)
        return SeriesProcessor(
            self.columns, tuple(map(float, mean)), tuple(map(float, deviation)), self.context, self.horizon,
            self.series.frequency if self.series.frequency in FREQUENCIES else "",
            None if everything else self.targets, self.known if known is None or known else (),
            self.missing if masked is None else masked,
            features.shape[1] if marks and features is not None else 0, coded,
        )  # fmt: skip

    @property
    def missing(self) -> bool:
        """Whether any value that a window shows is missing."""
        return not bool(np.isfinite(self.series.values[: self.borders[2]]).all())

    def reduce(self, outputs: Mapping[str, Any], batch: Batch) -> list[tuple[float, float, int]]:
        """Per window the sums of squared and of absolute errors over observed target values, and their count; zeros for
        windows without a future, which are only timed."""
        if "future_values" not in batch.targets:
            return [(0.0, 0.0, 0)] * len(next(iter(batch.inputs.values())))
        forecast, future, seen = self._compared(outputs, batch)
        apart = torch.where(seen, forecast.double() - future.double(), 0.0).flatten(1).cpu().numpy()
        counts = seen.flatten(1).sum(1).tolist()
        return list(zip((apart * apart).sum(1).tolist(), np.abs(apart).sum(1).tolist(), counts))

    def _compared(self, outputs: Mapping[str, Any], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Forecast, future and what of it was observed, at the targets: (batch, horizon, targets) each."""
        forecast = outputs["prediction"] if "prediction" in outputs else outputs["prediction_outputs"]
        chosen = list(self.targets)
        future = batch.targets["future_values"][..., chosen]
        seen = batch.targets["future_observed_mask"][..., chosen]
        if forecast.shape[-1] == len(self.columns):
            forecast = forecast[..., chosen]
        if forecast.shape != future.shape:
            raise DataError(
                f"the forecast is {tuple(forecast.shape)}, the future {tuple(future.shape)}: the model was made for another "
                "horizon or other columns"
            )
        return forecast, future.to(forecast.device), seen.to(forecast.device)

    def set_reference(self, runner: common.Runner, splits: Sequence[str] = ()) -> None:
        """Nothing to note: the future is the reference."""

    def evaluate(self, runner: common.Runner, split: str = "verify", limit: int | None = None) -> Scores:
        """(sum of errors, values) per window; windows of one block (`windows.blocks`) are resampled together."""
        chosen = common.take(self.splits, split, limit, self.seed)
        rows = self.splits[split]
        items: list[tuple[float, float, int]] = []
        for start in range(0, len(chosen), _CHUNK):
            items += runner([rows[int(i)] for i in chosen[start : start + _CHUNK]], self.reduce)
        table = np.array(items, np.float64)
        return Scores(table[:, [0 if self.kind == "mse" else 1, 2]], self.metric, rows.groups[chosen])

    def collate(self, bundle: Bundle, examples: Sequence[Example], seed: int = 0) -> Batch:
        return bundle.collate(examples)

    def loss(self, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Mean squared error over observed target values."""
        forecast, future, seen = self._compared(outputs, batch)
        apart = torch.where(seen, forecast.float() - future, 0.0)
        return apart.square().sum() / seen.sum().clamp(min=1)

    def training_examples(self, use_labels: bool) -> Sequence[Example]:
        rows = self.splits["train"]
        return rows if use_labels else rows.without_future(self.known)

    def calibration(self, n: int, seed: int = 0) -> list[Example]:
        return common.draw(self.training_examples(False), n, seed, "calibration windows")

    def workload(self, n: int, seed: int = 0, lengths: common.Lengths = None) -> list[Example]:
        """Windows of the search part in random order; they all have the same length."""
        if lengths:
            raise DataError("windows all have the same length: leave --lengths away")
        return common.draw(self.splits["search"].without_future(self.known), n, seed, "a workload")

    def check(self, bundle: Bundle) -> None:
        """Give the bundle a processor where it has none; refuse a model made for other windows or columns."""
        common.check_head(bundle, self.name)
        fit_to(self, bundle)


def _names(*options: str | Sequence[str] | None) -> list[str]:
    """The named columns, each once, in order."""
    lists = [[n] if isinstance(n, str) else list(n or ()) for n in options]
    return list(dict.fromkeys(name for names in lists for name in names))


def ett(name: str, horizon: int, context: int) -> Forecasting:
    """A benchmark series by name; see `tasks.series_benchmarks.load`."""
    from lightformers.tasks.series_benchmarks import load

    return load(name, horizon, context)
