"""Windows of series as tensors: standardised by what was known at training, missing values named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightformers.errors import DataError
from lightformers.processors import Processor

#: Rates of sampling that models may be told, by pandas alias; 0 stands for any other.
FREQUENCIES = ("", "min", "5min", "10min", "15min", "30min", "h", "D", "B", "W", "MS", "QS", "YS", "s")
_MARKS = ("past_time_features", "future_time_features")


@dataclass(frozen=True)
class SeriesProcessor(Processor):
    """Of {"past_values": (length, channels), "future_values": (horizon, channels), ...} in the units of the data.

    columns: names of the channels, in order. mean, deviation: of the training rows, one per channel; a channel of
        deviation 0 is only moved. context_length, prediction_length: of the model. frequency: an alias of `FREQUENCIES`.
    targets: places of the channels that are forecast and scored; None: all. known: places of the channels whose future
        is an input. masked: past_observed_mask is among the inputs. marks: calendar features are; coded: frequency is.

    Encoded values are standardised; a missing one (NaN) is 0 and false in the mask. Shapes after `pad_encoded`: see
    `lightformers.models.forecasting`; targets are future_values and future_observed_mask, (batch, horizon, channels).
    """

    columns: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    context_length: int
    prediction_length: int
    frequency: str = ""
    targets: tuple[int, ...] | None = None
    known: tuple[int, ...] = ()
    masked: bool = False
    marks: int = 0
    coded: bool = False
    inputs: ClassVar[frozenset[str]] = frozenset({"past_values", "future_values", *_MARKS})

    def standardise(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """(..., channels) of the data -> standardised, float32; NaN stays."""
        scaled = (np.asarray(values, np.float64) - self.mean) / self._scale
        return scaled.astype(np.float32)

    def restore(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """(..., channels) standardised -> in the units of the data."""
        return np.asarray(values, np.float64) * self._scale + self.mean

    @property
    def _scale(self) -> NDArray[np.float64]:
        deviation = np.asarray(self.deviation, np.float64)
        return np.where(deviation > 0, deviation, 1.0)

    def encode_examples(self, examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [self._encode(example) for example in examples]

    def _encode(self, example: Mapping[str, Any]) -> dict[str, Any]:
        past = self.standardise(self._checked(example, "past_values", self.context_length))
        seen = np.isfinite(past)
        if not self.masked and not seen.all():
            raise DataError(
                "a window holds missing values, and this model was made for series without: fill them, or train it "
                "on a series that has some"
            )
        out: dict[str, Any] = {"past_values": np.where(seen, past, np.float32(0))}
        if self.masked:
            out["past_observed_mask"] = seen
        for name in _MARKS if self.marks else ():
            if name not in example:
                raise DataError(
                    f"this model reads the calendar: give the series a timestamp column ({name} is missing)"
                )
            out[name] = np.asarray(example[name], np.float32)
        if self.coded:
            found = FREQUENCIES.index(self.frequency) if self.frequency in FREQUENCIES else 0
            out["frequency"] = np.int64(found)
        if "future_values" in example:
            future = self.standardise(self._checked(example, "future_values", self.prediction_length))
            there = np.isfinite(future)
            out["future_values"] = np.where(there, future, np.float32(0))
            out["future_observed_mask"] = there
        elif self.known:
            raise DataError(
                f"the future of {', '.join(self.columns[i] for i in self.known)} is an input of this model: give it"
            )
        return out

    def _checked(self, example: Mapping[str, Any], name: str, length: int) -> NDArray[Any]:
        values = np.asarray(example[name])
        if values.shape != (length, len(self.columns)):
            raise DataError(
                f"{name} is {tuple(values.shape)}; this model was made for {length} steps of {len(self.columns)} columns "
                f"({', '.join(self.columns)})"
            )
        return values

    def pad_encoded(self, encoded: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        stacked = {
            name: torch.from_numpy(np.stack([e[name] for e in encoded]))
            for name in (
                "past_values", "past_observed_mask", *_MARKS, "frequency", "future_values", "future_observed_mask",
            )
            if name in encoded[0]
        }  # fmt: skip
        targets: dict[str, Any] = {
            k: stacked.pop(k) for k in ("future_values", "future_observed_mask") if k in stacked
        }
        if self.known:
            hidden = torch.ones(len(self.columns), dtype=torch.bool)
            hidden[list(self.known)] = False
            stacked["future_values"] = targets["future_values"].masked_fill(hidden, 0.0)
        return stacked, targets

    def samples(self, count: int) -> list[dict[str, Any]]:
        drawn = np.random.default_rng(0)
        shapes = {"past_values": self.context_length, "future_values": self.prediction_length}
        return [
            {
                **{k: self.restore(drawn.standard_normal((n, len(self.columns)))) for k, n in shapes.items()},
                **{
                    k: drawn.uniform(-0.5, 0.5, (n, self.marks)).astype(np.float32)
                    for k, n in zip(_MARKS, shapes.values())
                },
            }
            for _ in range(count)
        ]
