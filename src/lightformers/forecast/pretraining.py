"""A Tiny Time Mixer pre-trained on the series at hand, or on a folder of series, that forecasts others without training.

Beside them it learns from drawn series of the same rates: without those a few recorded ones teach it little of seasons.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightformers.bundle import Bundle
from lightformers.errors import DataError, UserError
from lightformers.forecast.contenders import MODEL, Contender, small_ttm
from lightformers.forecast.forecaster import of_bundle
from lightformers.forecast.judging import Judge, Said
from lightformers.forecast.training import Done, judged
from lightformers.slim.progress import Progress
from lightformers.tasks import data as files
from lightformers.tasks import series
from lightformers.tasks.forecasting import Forecasting
from lightformers.train.drawn_series import with_drawn
from lightformers.train.resolutions import Source
from lightformers.train.ttm import Pretraining, pretrain, zero_shot

#: Seconds that a pre-training gets at least.
_LEAST = 3.0
_LABEL = "Tiny Time Mixer, pre-trained"
#: Steps that a window of a folder's series has where nobody said, at most and at least.
_LONGEST, _SHORTEST = 512, 16


def pretrained(
    task: Forecasting, judge: Judge, seconds: float, seed: int, told: Callable[[str], Callable[[dict[str, Any]], None]]
) -> Done:  # fmt: skip
    """Pre-trained on the train rows of every column by itself, then asked about windows as any saved model is."""
    started = time.monotonic()
    rows = task.series.values[: task.borders[0]]
    sources = [Source("the train rows", rows, task.series.frequency)]
    bundle = zero_shot(_made(sources, task.context, task.horizon, seconds, seed, told(_LABEL)), task)
    said = Said("ttm", _LABEL, "model", of_bundle(bundle, task.targets), bundle.parameters)
    judged(said, judge)
    said.seconds = time.monotonic() - started
    return Done(
        Contender("ttm", _LABEL, bundle, None), said,
        untrained="It was pre-trained on the train rows alone: a model for other series is not fitted to the newest ones of this.",
    )  # fmt: skip


def _made(
    sources: Sequence[Source], context: int, horizon: int, seconds: float, seed: int, told: Callable[[dict[str, Any]], None]
) -> Bundle:  # fmt: skip
    fields = {**small_ttm(context), "resolution_prefix": len({s.frequency for s in sources}) > 1}
    settings = Pretraining(
        context=context, horizon=horizon, fields=fields, seconds=max(seconds, _LEAST), seed=seed
    )
    return pretrain(with_drawn(sources, context + horizon), settings, told)


def from_folder(
    folder: str | Path, horizon: int, *, context: int | None = None, budget: float = 120.0, seed: int = 0,
    timestamp: str | None = None, out: str | Path | None = None, progress: Progress | None = None,
) -> tuple[Bundle, dict[str, Any]]:  # fmt: skip
    """A model of all series in the files of a folder, and what can be said of it: {"series", "rows", "context", "loss", ...}.

    context: None: four horizons, or as many as half of the series have. out: where the model goes, in a folder "model".
    Raises DataError where no file can be read or is long enough.
    """
    shown = progress or Progress(quiet=True)
    with shown:
        shown.phase("data")
        sources, notes = _sources(Path(folder), timestamp)
        lengths = sorted(len(s.values) for s in sources)
        middle = lengths[len(lengths) // 2] // 2 - horizon
        chosen = context or max(min(4 * horizon, _LONGEST, middle // 8 * 8), _SHORTEST)
        if lengths[-1] < chosen + horizon:
            raise DataError(
                f"the longest series in {folder} has {lengths[-1]} rows; a context of {chosen} and a horizon of {horizon} need "
                f"{chosen + horizon}: give a shorter --horizon or --context"
            )
        shown.phase("training", budget)
        bundle = _made(sources, chosen, horizon, 0.95 * budget, seed, lambda e: shown.training(**e))
        note = bundle.history[-1]
        facts = {
            "series": [s.name for s in sources], "rows": sum(lengths), "context": chosen, "horizon": horizon,
            "parameters": bundle.parameters, "updates": note["updates"], "loss": note["loss"], "seconds": note["seconds"],
            "warnings": notes, "model": None,
        }  # fmt: skip
        if out is not None:
            from lightformers import export

            export.save(bundle, Path(out) / MODEL)
            facts["model"] = str(Path(out) / MODEL)
    return bundle, facts


def _sources(folder: Path, timestamp: str | None) -> tuple[list[Source], list[str]]:
    """Every file of a kind that can be read, and why others were left out."""
    found, notes = [], []
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or not any(
            f".{kind}" in path.suffixes for kind in ("csv", "tsv", "parquet", "jsonl", "json")
        ):
            continue
        try:
            rows = files.read_file(path)
            one = series.of_rows(rows, timestamp if timestamp in rows.columns else None)
        except UserError as error:
            notes.append(f"left out: {error}")
            continue
        found.append(Source(str(path.relative_to(folder)), one.values, one.frequency))
    if not found:
        raise DataError(
            f"{folder} holds no csv, tsv, parquet or jsonl with a series"
            + "".join(f"; {n}" for n in notes[:2])
        )
    return found, notes
