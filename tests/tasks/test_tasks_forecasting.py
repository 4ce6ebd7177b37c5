from __future__ import annotations

import numpy as np
import pytest
import torch
from series_world import ForecastRunner, csv, hours, patch_mixer, patch_tst, repeat, waves

from lightformers import stats
from lightformers.bundle import Bundle
from lightformers.errors import DataError, ModelError
from lightformers.tasks import Forecasting, from_data
from lightformers.tasks.forecasting import ett


def _task(rows: int = 400, horizon: int = 6, context: int | None = 24, **options) -> Forecasting:
    return Forecasting.from_values(
        waves(rows), ["a", "b"], horizon, context, stamps=hours(rows), **options
    )  # fmt: skip


def _bundle(task: Forecasting) -> Bundle:
    return Bundle(torch.nn.Identity(), task.processor(), "forecasting")


@pytest.fixture
def etth1(tmp_path, monkeypatch):
    """A stand-in of ETTh1's length and file."""
    folder = tmp_path / "etth1"
    folder.mkdir()
    table = np.round(waves(17420, 7), 3)
    columns = {"date": [str(s).replace("T", " ") for s in hours(17420)]}
    csv(folder / "ETTh1.csv", columns | {n: table[:, i] for i, n in enumerate("ABCDEFG")})
    monkeypatch.setenv("LIGHTFORMERS_DATA", str(tmp_path))
    return table


def test_the_protocol_of_etth1(etth1) -> None:
    """Borders, one window per row, standardised by train rows with the population's deviation."""
    task = ett("ETTh1", 96, 336)
    assert {k: len(v) for k, v in task.splits.items()} == {
        "train": 8640 - 336 - 96 + 1,
        "search": 2785,
        "verify": 2785,
    }
    first, last = task.splits["verify"][0], task.splits["verify"][-1]
    np.testing.assert_array_equal(first["future_values"], etth1[11520 : 11520 + 96])
    np.testing.assert_array_equal(last["future_values"], etth1[14400 - 96 : 14400])
    np.testing.assert_array_equal(task.splits["search"][0]["past_values"], etth1[8640 - 336 : 8640])
    assert first["past_values"].base is not None and np.shares_memory(
        first["past_values"], task.series.values
    )
    mean, deviation = task.scale
    np.testing.assert_allclose(mean, etth1[:8640].mean(0))
    np.testing.assert_allclose(deviation, etth1[:8640].std(0))
    assert len(set(task.splits["verify"].groups.tolist())) == 2785 // 96 + 1
    assert task.splits["verify"][0]["past_time_features"].shape == (336, 4)
    with pytest.raises(DataError, match="unknown series"):
        ett("etth9", 96, 336)
    with pytest.raises(DataError, match=r"ETTm1.csv is not in"):
        ett("ettm1", 96, 336)


def test_errors_do_not_depend_on_the_batch() -> None:
    """MSE and MAE are those of all windows, worked out in one piece, whatever the batch."""
    task = _task(split=(240, 300, 400))
    bundle = _bundle(task)
    for kind in ("mse", "mae"):
        task.kind = kind
        found = [task.evaluate(ForecastRunner(bundle, repeat(6), size)) for size in (1, 7, 64)]
        assert len({s.value for s in found}) == 1 and len(found[0]) == 95
        scaled = bundle.processor.standardise(task.series.values).astype(np.float64)
        apart = np.stack([scaled[s : s + 6] - scaled[s - 1] for s in range(300, 395)])
        wanted = (apart**2).mean() if kind == "mse" else np.abs(apart).mean()
        assert found[0].value == pytest.approx(wanted, rel=1e-6)
        for other in found[1:]:
            np.testing.assert_array_equal(other.stats, found[0].stats)


def test_blocks_hold_a_season_and_a_horizon() -> None:
    task = _task(800, split=(400, 500, 800))
    groups = task.splits["verify"].groups
    assert np.bincount(groups)[:-1].tolist() == [24] * (len(np.unique(groups)) - 1)
    scores = task.evaluate(ForecastRunner(_bundle(task), repeat(6)))
    free = stats.Scores(scores.stats, scores.metric)
    blocked, each = stats.interval(scores), stats.interval(free)
    assert blocked.estimate == each.estimate
    longer = _task(800, horizon=40, context=48, split=(400, 500, 800)).splits["verify"].groups
    assert np.bincount(longer)[0] == 40


def test_missing_values_do_not_count() -> None:
    values = waves(400)
    values[350, 0] = np.nan
    values[320:327, 1] = np.nan
    task = Forecasting.from_values(values, ["a", "b"], 6, 24, split=(240, 300, 400))
    assert task.processor().masked and task.missing
    items = task.evaluate(ForecastRunner(_bundle(task), lambda past: torch.zeros(len(past), 6, 2))).stats
    assert items[:, 1].sum() == np.isfinite(np.stack([values[s : s + 6] for s in range(300, 395)])).sum()
    assert np.isfinite(items).all()
    with pytest.raises(DataError, match="takes no past_observed_mask"):
        task.check(Bundle(patch_mixer(), None, "forecasting"))
    bundle = Bundle(patch_tst(), None, "forecasting")
    task.check(bundle)
    assert "past_observed_mask" in bundle.collate(task.splits["train"][:2]).inputs


def test_targets_and_known_columns() -> None:
    """Only targets are scored; the future of known columns, and of nothing else, is an input."""
    task = Forecasting.from_values(waves(400, 3), ["a", "b", "c"], 6, 24, target="b", known="c")
    assert (task.targets, task.known) == ((1,), (2,))
    bundle = _bundle(task)
    batch = bundle.collate(task.splits["search"][:3])
    future = batch.inputs["future_values"]
    assert (future[..., :2] == 0).all() and torch.equal(
        future[..., 2], batch.targets["future_values"][..., 2]
    )
    hidden = bundle.collate(task.workload(3))
    assert (
        not hidden.targets["future_observed_mask"][..., :2].any()
        and (hidden.inputs["future_values"][..., 2] != 0).any()
    )
    items = task.reduce({"prediction": torch.zeros(3, 6, 3)}, batch)
    alone = task.reduce({"prediction": torch.zeros(3, 6, 1)}, batch)
    assert items == alone and items[0][2] == 6
    wanted = (batch.targets["future_values"][0, :, 1].double() ** 2).sum().item()
    assert items[0][0] == pytest.approx(wanted)
    assert task.loss({"prediction": torch.zeros(3, 6, 3)}, batch).item() == pytest.approx(
        sum(i[0] for i in items) / 18, rel=1e-6
    )
    with pytest.raises(DataError, match="another horizon or other columns"):
        task.reduce({"prediction": torch.zeros(3, 5, 3)}, batch)
    everything = Forecasting.from_values(waves(400, 3), ["a", "b", "c"], 6, 24, known=["c"])
    assert everything.targets == (0, 1)


def test_what_training_and_timing_get() -> None:
    task = _task()
    assert set(task.training_examples(False)[0]) == {
        "past_values",
        "past_time_features",
        "future_time_features",
        "start",
        "group",
    }
    assert (
        "future_values" in task.training_examples(True)[0] and "future_values" not in task.calibration(3)[0]
    )
    assert len(task.workload(500)) == 500 and len(task.training_examples(True)[-5:]) == 5
    with pytest.raises(DataError, match="same length"):
        task.workload(2, lengths=(1, 2))
    assert task.fingerprint == _task().fingerprint != _task(horizon=7).fingerprint
    values = waves(400)
    values[399] += 1
    assert (
        Forecasting.from_values(values, ["a", "b"], 6, 24, stamps=hours(400)).fingerprint != task.fingerprint
    )


def test_windows_of_a_long_series_are_thinned_out() -> None:
    task = _task(60_000)
    assert len(task.splits["verify"]) <= 2000 and len(task.splits["search"]) <= 1000
    assert np.diff(task.splits["verify"].starts).min() == 6
    assert len(_task(60_000, stride=1).splits["verify"]) == 12_000 - 6 + 1


def test_check_makes_a_processor_and_takes_the_context() -> None:
    task = _task(context=None)
    bundle = Bundle(patch_mixer(), None)
    task.check(bundle)
    assert task.context == 24 and bundle.task == "forecasting" and bundle.processor == task.processor()
    assert task.splits["verify"][0]["past_values"].shape == (24, 2)
    outputs = bundle.module()(**bundle.collate(task.splits["train"][:3]).inputs)
    assert outputs.prediction_outputs.shape == (3, 6, 2)
    _task().check(bundle)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (_task(horizon=7), "give --horizon 6"),
        (_task(context=20), "give --context 24"),
        (Forecasting.from_values(waves(400, 3), list("abc"), 6, 24), "--columns"),
        (
            Forecasting.from_values(waves(400), list("ac"), 6, 24, stamps=hours(400)),
            "made for the columns a, b",
        ),
        (
            Forecasting.from_values(np.where(waves(400) < -0.9, np.nan, waves(400)), list("ab"), 6, 24),
            "missing values",
        ),
    ],
)
def test_check_refuses_what_does_not_fit(task, message) -> None:
    bundle = Bundle(patch_mixer(), _task().processor(), "forecasting")
    with pytest.raises(DataError, match=message):
        task.check(bundle)


def test_check_refuses_other_models() -> None:
    task = _task()
    with pytest.raises(ModelError, match="choose --task embedding"):
        task.check(Bundle(patch_mixer(), None, "embedding"))
    with pytest.raises(ModelError, match="SeriesProcessor"):
        task.check(Bundle(patch_mixer(), object(), "forecasting"))
    only = Bundle(patch_mixer(), _task(target="a").processor(), "forecasting")
    with pytest.raises(DataError, match="forecasts a, not b"):
        task.check(only)
    told = Bundle(patch_mixer(), _task(known="b").processor(), "forecasting")
    with pytest.raises(DataError, match="reads the future of b"):
        _task(target="a").check(told)
    calendar = Bundle(patch_mixer(), _task().processor(marks=True), "forecasting")
    with pytest.raises(DataError, match="--timestamp"):
        Forecasting.from_values(waves(400), ["a", "b"], 6, 24).check(calendar)
    other = Forecasting.from_values(waves(400) * 3, ["a", "b"], 6, 24, stamps=hours(400))
    other.check(Bundle(patch_mixer(), _task().processor(), "forecasting"))
    assert any("standardises by the rows" in w for w in other.warnings)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (waves(400), {"horizon": 0}, "at least 1 row"),
        (waves(400), {"horizon": 400}, "the horizon is 400 rows, the whole series 400"),
        (waves(30), {"horizon": 6, "context": 24}, "too short: its train part has 21 of 30 rows"),
        (waves(60), {"horizon": 12, "context": 10}, "its search part has 6"),
        (waves(1), {}, "has 1 row: a series to learn from has hundreds"),
        (np.ones((400, 2)), {}, r"a is constant \(1\)"),
        (np.full((400, 2), 0.1), {}, "constant"),
        (np.stack([np.arange(400.0), np.full(400, np.nan)], 1), {}, "b holds no value in any row"),
        (waves(400), {"split": (0.5, 0.1, 0.1)}, "sum to 1"),
        (waves(400), {"split": (200, 100, 400)}, "must rise"),
        (waves(400), {"split": (200, 300, 500)}, "ends at row 500"),
        (waves(400), {"split": (0.5, 0.5)}, "three shares"),
        (waves(400), {"metric": "rmse"}, "unknown metric"),
        (waves(400), {"stride": 0}, "stride is at least 1"),
        (waves(400), {"target": "x"}, "no numeric column 'x' for --target; numeric columns: a, b"),
        (waves(400), {"known": ["a", "b"]}, "nothing is left to forecast"),
        (waves(400), {"target": "a", "known": "a"}, "at once"),
        (np.zeros((4, 2, 2)), {}, r"\(rows, channels\)"),
        (waves(400, 3), {}, "3 channels need as many different names"),
        ([["x", "y"]] * 400, {}, "no number"),
    ],
)
def test_bad_series(values, options, message) -> None:
    with pytest.raises(DataError, match=message):
        Forecasting.from_values(values, ["a", "b"], **{"horizon": 6, **options})


def test_a_column_that_starts_late() -> None:
    values = waves(400)
    values[:390, 1] = np.nan
    with pytest.raises(DataError, match="b holds no value in the 280 rows to train on"):
        Forecasting.from_values(values, ["a", "b"], 6, 24)
    values = waves(400)
    values[280:320] = np.nan
    with pytest.raises(DataError, match="no window of the search part"):
        Forecasting.from_values(values, ["a", "b"], 6, 24)


def test_the_one_door(tmp_path) -> None:
    table = waves(400)
    path = csv(tmp_path / "a.csv", {"date": hours(400), "a": table[:, 0], "b": table[:, 1]})
    task = from_data("forecasting", path, bundle=Bundle(patch_mixer(), None), horizon=6)
    assert task.context == 24 and task.series.frequency == "h"
    rows = [{"date": str(s), "a": a, "b": b} for s, (a, b) in zip(hours(400), table)]
    assert from_data("forecasting", rows, horizon=6, context=24).fingerprint == task.fingerprint
    columns = {"date": hours(400), "a": table[:, 0], "b": table[:, 1]}
    assert from_data("forecasting", columns, horizon=6, context=24).fingerprint == task.fingerprint
    import pandas as pd

    frame = pd.DataFrame(table, columns=["a", "b"], index=pd.Index(hours(400), name="date"))
    assert from_data("forecasting", frame, horizon=6, context=24).fingerprint == task.fingerprint
    with pytest.raises(DataError, match="takes no text"):
        from_data("forecasting", path, horizon=6, text="a")
