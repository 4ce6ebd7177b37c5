"""Series of the long-horizon benchmark by name, cut as its papers cut them.

ETT: a month is 30 days; 12 months train, 4 months validation, 4 months test, later rows unused. Others: 70/10/20.
Every window of a part counts, with stride 1: ETTh1 has 2881 - horizon test windows.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lightformers.errors import DataError
from lightformers.papers.standing import checkout
from lightformers.tasks import series
from lightformers.tasks.forecasting import Forecasting

_HOURS = (8640, 11520, 14400)
_QUARTERS = (34560, 46080, 57600)
_SHARES = (0.7, 0.1, 0.2)
#: Name of the data set -> (file, split). Of ettm1_part less than the usual rows exist.
SETS: dict[str, tuple[str, Sequence[float]]] = {
    "etth1": ("ETTh1.csv", _HOURS),
    "etth2": ("ETTh2.csv", _HOURS),
    "ettm1": ("ETTm1.csv", _QUARTERS),
    "ettm2": ("ETTm2.csv", _QUARTERS),
    "ettm1_part": ("ETTm1_part.csv", (11734, 15645, 19556)),
    "exchange_rate": ("exchange_rate.csv", _SHARES),
    "national_illness": ("national_illness.csv", _SHARES),
    "weather_part": ("weather_part.csv", _SHARES),
}


def load(name: str, horizon: int, context: int, folder: str | Path | None = None) -> Forecasting:
    """The task of a benchmark series; name: a row of `SETS`.

    folder: holds the csv (or csv.gz); by default NAME in $LIGHTFORMERS_DATA, else in `../shared/data` beside the checkout.
    Raises DataError where the name is unknown or the file is not there.
    """
    name = name.lower()
    if name not in SETS:
        raise DataError(f"unknown series {name!r}; there are: {', '.join(SETS)}")
    file, split = SETS[name]
    given = os.environ.get("LIGHTFORMERS_DATA")
    home = Path(given) if given else (checkout() or Path.cwd()).parent / "shared" / "data"
    where = Path(folder) if folder else home / name
    path = next((p for p in (where / file, where / f"{file}.gz") if p.is_file()), None)
    if path is None:
        raise DataError(
            f"{file} is not in {where}: put it there, or let LIGHTFORMERS_DATA name the folder of {name}"
        )
    found = series.read(path)
    return Forecasting.from_series(found, horizon, context, split=split, stride=1)
