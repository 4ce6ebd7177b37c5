"""A forecast from beginning to end: read, judge baselines, train, choose, train on all rows, forecast, write."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightformers.bundle import Bundle
from lightformers.errors import Interrupted, UserError
from lightformers.files import write_json
from lightformers.forecast import (
    baselines,
    conformal,
    contenders,
    data,
    page,
    reporting,
    saved,
    verdict,
    written,
)
from lightformers.forecast.contenders import MODEL, Contender
from lightformers.forecast.forecaster import beyond, bounded, everything, last, of_bundle
from lightformers.forecast.judging import Judge, Said, choose
from lightformers.forecast.pretraining import pretrained
from lightformers.forecast.settings import Settings
from lightformers.forecast.training import refit, trained
from lightformers.slim.progress import Progress
from lightformers.tasks.forecasting import Forecasting

PHASES = ("data", "baselines", "training", "refit", "forecast")
#: Shares of the time that is left: for the baselines that are fitted; then for training, the rest being for the refit.
FITTED, TRAINED = 0.15, 0.5


@dataclass(frozen=True)
class Result:
    """What came out. report: also report.json. bundle: the trained model, None where a baseline was asked for.

    stamps: (horizon,) datetime64 or numbers of rows. forecast, lower, upper: (horizon, targets), in the units of the data.
    columns: names of the targets. folder: where `files` lie, None where nothing was to be written.
    """

    report: dict[str, Any]
    bundle: Bundle | None
    stamps: NDArray[Any]
    columns: tuple[str, ...]
    forecast: NDArray[np.float64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    folder: Path | None = None
    files: tuple[str, ...] = ()

    def frame(self) -> Any:
        """A pandas frame with the columns of forecast.csv, the stamps as its index."""
        import pandas as pd

        cells = {
            f"{name}{end}": table[:, i]
            for i, name in enumerate(self.columns)
            for end, table in (("", self.forecast), ("_lower", self.lower), ("_upper", self.upper))
        }
        return pd.DataFrame(
            cells, index=pd.Index(self.stamps, name=self.report["data"]["timestamp"] or "step")
        )


@dataclass
class Session:
    """What all parts of a run share. horizon: steps that are asked for; the task's may be more, as the model's are."""

    settings: Settings
    task: Forecasting
    horizon: int
    source: str
    timestamp: str | None
    progress: Progress
    started: float
    folder: Bundle | None = None
    known: NDArray[np.float64] | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return self.settings.budget - (time.monotonic() - self.started)

    def told(self, label: str) -> Callable[[dict[str, Any]], None]:
        """How a training goes."""
        best = [float("inf")]
        self.progress.trying(label)

        def say(event: dict[str, Any]) -> None:
            if "mse" not in event:
                self.progress.training(**event)
            elif event["mse"] < best[0]:
                best[0] = event["mse"]
                self.progress.best(
                    f"{label}, epoch {event['epoch']:.0f}: error {best[0]:.4f} on the search rows"
                )

        return say


def forecast(
    series: Any = None, horizon: int | None = None, *, future: Any = None, out: str | Path | None = None,
    progress: Progress | None = None, command: str = "", **settings: Any,
) -> Result:  # fmt: skip
    """Forecast the next `horizon` steps of a series, with intervals, by the best of models and baselines or by a named one.

    series: a file with a row a time step, a pandas frame, rows or columns by name, an array (rows,) or (rows, channels);
    None: an embedded one. future: the known columns at the next steps, in any of these forms. out: folder for forecast.csv,
    forecast.png, report.html, report.json and the model; None: nothing is written. settings: see `Settings`.
    Raises UserError for what the caller can mend, before anything is trained.
    """
    request = Settings(horizon=horizon, **settings)
    shown = progress or Progress(quiet=True)
    if isinstance(series, (str, Path)) and Path(series).is_dir():
        raise UserError(
            f"{series} is a folder, and one series is forecast: with --pretrain a folder makes a model"
        )
    if request.pretrain and request.model is not None:
        raise UserError("--pretrain makes a Tiny Time Mixer: leave --model out")
    try:
        with shown:
            shown.phase("data")
            session = _begin(request, series, future, shown)
            return _run(session, Path(out) if out is not None else None, command)
    except KeyboardInterrupt as stop:
        raise Interrupted("stopped: nothing was written") from stop


def _begin(request: Settings, given: Any, future: Any, progress: Progress) -> Session:
    """Reads everything and refuses what cannot work."""
    started = time.monotonic()
    found, source, stamp = data.read(given, request.timestamp, request.target, request.known)
    bundle = None
    horizon, context = request.horizon, request.context
    if horizon is None and given is None:
        horizon = data.DEMO_HORIZON
    steps = horizon
    place = None if request.model in (None, *baselines.NAMES) else saved.folder_of(str(request.model))
    if place is not None:
        bundle = saved.opened(place)
        steps = saved.reaching(bundle, horizon)
        context = int(getattr(bundle.model.config, "context_length", 0))
        horizon = horizon or steps
        if horizon > steps:
            raise UserError(
                f"the model in {request.model} forecasts {steps} steps: give --horizon {steps} or less"
            )
        if request.context not in (None, context):
            raise UserError(f"the model in {request.model} looks {context} steps back: leave --context out")
    elif request.adapt:
        raise UserError("--adapt trains a saved model further: name its folder with --model")
    if horizon is None or steps is None:
        raise UserError("say how many steps to forecast: --horizon 96")
    if horizon >= len(found.values):
        raise UserError(
            f"a horizon of {horizon} steps is more than the {len(found.values)} rows of {source}: forecast fewer, or give more data"
        )
    if context is None:
        first = int(0.7 * len(found.values))
        context = contenders.preset_context(request.model or "") or data.context(found, steps, first)
        if request.context is None and context + steps > first:
            context = data.context(found, steps, first)
    task = Forecasting.from_series(
        found, steps, context, request.target or None, request.known, seed=request.seed
    )
    when = data.ahead(found, horizon)
    known = data.known(future, request.known, when, request.timestamp) if request.known else None
    if future is not None and not request.known:
        raise UserError("--future holds columns that --known names: name them")
    session = Session(request, task, horizon, source, stamp, progress, started, bundle, known)
    if found.stamps is not None and when.dtype.kind != "M":
        session.warnings.append("the time stamps keep no regular step: the forecast counts rows on")
    return session


def _run(session: Session, out: Path | None, command: str) -> Result:
    settings, task, progress = session.settings, session.task, session.progress
    asked = [] if settings.pretrain else _contenders(session)
    bounded(task)
    judge = Judge(task, session.horizon)
    progress.phase("baselines")
    simple = baselines.judged(judge, FITTED * session.left, progress.trying)
    progress.phase("training")
    if settings.pretrain:
        done = [pretrained(task, judge, (1 - FITTED) * session.left, settings.seed, session.told)]
    else:
        done = trained(asked, task, judge, TRAINED * session.left, settings.seed, session.told)
    rows = [*(d.said for d in done), *simple]
    chosen = _chosen(done[0].said.name if settings.pretrain else settings.model, rows)
    mine = next((d for d in done if d.said is chosen), None)
    widths = tuple(
        conformal.widths(np.concatenate([chosen.errors[p] for p in parts]), settings.interval)
        for parts in (("search",), ("search", "verify"))
    )
    forecaster, held = chosen.forecaster, chosen.forecaster(last(task))[0, : session.horizon]
    progress.phase("refit")
    again, bundle = refit(mine, task, settings.refit, session.left, settings.seed, session.told)
    if bundle is not None:
        forecaster = of_bundle(bundle, task.targets)
    elif mine is None:
        forecaster = baselines.forecaster(chosen.name, everything(task))
    if bundle is None and done:
        bundle = (mine or done[0]).contender.bundle
    progress.phase("forecast")
    marked = bool(mine and mine.contender.bundle.processor.marks)
    said = forecaster(beyond(task, session.known, marked))[0, : session.horizon]
    report = reporting.report(session, judge, rows, chosen, widths, again, said, held, command)
    report["rows"] = verdict.ordered(report["rows"])
    report |= {"advice": verdict.advice(report), "model": None}
    result = Result(
        report, bundle, data.ahead(task.series, session.horizon), tuple(task.columns[i] for i in task.targets),
        said, *widths[1].bounds(said),
    )  # fmt: skip
    return result if out is None else _write(result, out)


def _contenders(session: Session) -> list[Contender]:
    settings, task = session.settings, session.task
    if session.folder is not None:
        return [saved.fitted(session.folder, task, settings.adapt, str(settings.model))]
    if settings.model is None:
        return contenders.default(task, settings.seed)
    if settings.model in baselines.NAMES:
        return []
    made = contenders.contender(settings.model, task, settings.seed)
    if task.known and not contenders.reads_known(made):
        session.warnings.append(
            f"{made.label} does not read the future of the known columns, only their past: {', '.join(n for n, f in contenders.FAMILIES.items() if f.known)} do"
        )
    return [made]


def _chosen(named: str | None, rows: list[Said]) -> Said:
    """The one that was named, else the best. Raises UserError where the named one failed."""
    if named is None:
        return choose(rows)
    found = next(r for r in rows if r.name == named)
    if found.error:
        raise UserError(f"{found.label} cannot forecast this series: {found.error}")
    return found


def _write(result: Result, out: Path) -> Result:
    """All files; the model's folder first, the page that speaks of it last."""
    made = ["forecast.csv", "forecast.png", "report.html", "report.json"]
    if result.bundle is not None:
        from lightformers import export

        export.save(result.bundle, out / MODEL)
        result.report["model"] = str(out / MODEL)
        made.append(MODEL)
    written.write_csv(result.report, out)
    written.write_png(result.report, out)
    write_json(out / "report.json", result.report)
    page.write(result.report, out)
    return replace(result, folder=out, files=tuple(made))
