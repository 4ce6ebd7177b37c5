"""The shared series that a forecaster is pre-trained on, ETTh1 left out, and drawn ones."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from lightformers import reproduce
from lightformers.tasks import series
from lightformers.train.drawn_series import drawn
from lightformers.train.resolutions import Source

#: ETTh1's test rows begin at this hour of both recordings of that transformer; ETTm1 has four rows an hour.
_TEST_HOUR = 11520
#: Data sets by name; every one is a part of the corpus.
SETS = (
    "exchange_rate", "ettm1_part", "national_illness", "weather_part", "beijing_pm25", "univariate_small",
    "traffic_los_angeles", "era5_t2m_uk",
)  # fmt: skip
#: Name of the part that nobody recorded.
DRAWN = "drawn"
#: Frequency -> channels that are drawn.
_DRAWN = {"h": 200, "15min": 60, "D": 60}
#: Grid points between two that are taken, of fields that hardly differ from point to point.
_APART = 4


@functools.cache
def sources(names: tuple[str, ...] = SETS) -> tuple[Source, ...]:
    """The series of these data sets, and drawn ones where `DRAWN` is among the names. Raises DataError where one is not there.

    Of ETTm1, which records the transformer of ETTh1 four times an hour, no row from ETTh1's test months on is taken.
    """
    recorded = [source for name in names if name != DRAWN for source in _of(name, reproduce.data(name))]
    return (*recorded, *(drawn(f, n) for f, n in _DRAWN.items() if DRAWN in names))


def _of(name: str, folder: Path) -> list[Source]:
    if name == "traffic_los_angeles":
        with np.load(folder / "los_loop.npz") as file:
            return [Source(name, file["speed"].astype(np.float64) / 100, "5min")]
    if name == "era5_t2m_uk":
        with np.load(folder / "t2m.npz") as file:
            field = file["t2m"][:, ::_APART, ::_APART].astype(np.float64) / 100
        return [Source(name, field.reshape(len(field), -1), "h")]
    made = []
    for path in sorted(folder.glob("*.csv.gz")):
        found = series.read(path)
        values = found.values[: 4 * _TEST_HOUR] if name == "ettm1_part" else found.values
        frequency = "D" if name == "exchange_rate" else found.frequency
        made.append(Source(path.name.removesuffix(".csv.gz"), values, frequency))
    return made
