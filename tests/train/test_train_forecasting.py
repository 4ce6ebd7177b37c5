from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from lightformers import stats
from lightformers.bundle import Bundle
from lightformers.errors import DataError, UserError
from lightformers.models.forecasting.output import Forecast
from lightformers.runners.torch_runner import TorchRunner
from lightformers.steps import Deploy
from lightformers.tasks import Forecasting
from lightformers.train.forecasting import Epochs, evaluate, few, objective, train
from lightformers.train.windows import WindowFeed


def _hours(rows: int) -> np.ndarray:
    return np.datetime64("2016-07-01T00", "s") + np.arange(rows) * np.timedelta64(3600, "s")


def _waves(rows: int, channels: int = 2, noise: float = 0.1) -> np.ndarray:
    phase = np.arange(rows)[:, None] * 2 * np.pi / 24 + np.arange(channels)
    return np.sin(phase) + noise * np.random.default_rng(0).standard_normal((rows, channels))


def _task(rows: int = 600, channels: int = 2, **options) -> Forecasting:
    names = [f"c{i}" for i in range(channels)]
    return Forecasting.from_values(_waves(rows, channels), names, 6, 24, stamps=_hours(rows), **options)


class _Linear(torch.nn.Module):
    """One map from the window to the horizon, shared by channels."""

    def __init__(self, context: int = 24, horizon: int = 6, dropout: float = 0.0) -> None:
        super().__init__()
        self.map = torch.nn.Linear(context, horizon)
        self.drop = torch.nn.Dropout(dropout)

    def forward(self, past_values, past_observed_mask=None, **_) -> Forecast:
        return Forecast(prediction=self.drop(self.map(past_values.mT)).mT)


def _bundle(task: Forecasting, seed: int = 0, **options) -> Bundle:
    torch.manual_seed(seed)
    return Bundle(_Linear(**options), task.processor(), "forecasting")


@pytest.mark.parametrize("options", [{}, {"marks": True, "coded": True}, {"masked": True}])
def test_batches_are_those_of_the_processor(options) -> None:
    values = _waves(600, 3)
    if "masked" in options:
        values[40:60, 1] = np.nan
    task = Forecasting.from_values(values, list("abc"), 6, 24, stamps=_hours(600), known="c")
    processor = task.processor(**options)
    feed = WindowFeed(task.splits["train"], processor, size=8, seed=3)
    batch, bundle = feed.batch(5), Bundle(torch.nn.Identity(), processor, "forecasting")
    wanted = bundle.collate([task.splits["train"][int(i)] for i in feed.indices(5)])
    assert batch.inputs.keys() == wanted.inputs.keys()
    for name, value in wanted.inputs.items():
        assert torch.equal(batch.inputs[name], value), name
    for name in ("future_values", "future_observed_mask"):
        assert torch.equal(batch.targets[name], wanted.targets[name])


def test_every_window_comes_once_an_epoch() -> None:
    feed = WindowFeed(_task().splits["train"], _task().processor(), size=32)
    assert feed.batches == -(-391 // 32)
    for epoch in range(2):
        seen = np.concatenate([feed.indices(epoch * feed.batches + i) for i in range(feed.batches)])
        assert sorted(seen.tolist()) == list(range(391))
    first, second = feed.indices(0), feed.indices(feed.batches)
    assert first.tolist() != second.tolist()
    few_windows = WindowFeed(_task().splits["train"], _task().processor(), size=32, most=50)
    assert few_windows.batches == 2 and len(few_windows.indices(1)) == 18
    with pytest.raises(DataError, match="at least one window"):
        WindowFeed(_task().splits["train"], _task().processor(), most=0)


def test_gathering_is_much_faster_than_collating() -> None:
    task = _task(4000)
    bundle, windows = _bundle(task), task.splits["train"]
    feed = WindowFeed(windows, bundle.processor, size=256)
    feed.batch(0)

    def clock(make) -> float:
        start = time.perf_counter()
        make()
        return time.perf_counter() - start

    slow = min(clock(lambda: bundle.collate(windows[:256])) for _ in range(3))
    quick = min(clock(lambda: feed.gather(np.arange(256))) for _ in range(3))
    assert quick < slow / 5


def test_training_learns_and_keeps_the_best() -> None:
    task = _task()
    bundle = _bundle(task)
    before = evaluate(bundle, task)
    told: list = []
    result = train(bundle, task, Epochs(epochs=8, lr=1e-2), told.append)
    after = evaluate(bundle, task)
    assert after["mse"] < 0.1 * before["mse"] and after["windows"] == 120 - 6 + 1
    assert result.epochs == len(result.history) and {row["epoch"] for row in told} == set(
        range(1, result.epochs + 1)
    )
    best = min(result.history, key=lambda row: row["mse"])
    assert best["epoch"] == result.best_epoch
    assert evaluate(bundle, task, "search")["mse"] == pytest.approx(best["mse"], rel=1e-6)


def test_evaluate_agrees_with_the_runner() -> None:
    """Fast path and runner, batches of 1, 7 and 64: one number."""
    task = _task()
    bundle = _bundle(task)
    quick = evaluate(bundle, task)
    for size in (1, 7, 64):
        runner = TorchRunner(bundle, Deploy(batch_size=size))
        task.kind = "mse"
        assert task.evaluate(runner).value == pytest.approx(quick["mse"], rel=1e-6)
        task.kind = "mae"
        assert task.evaluate(runner).value == pytest.approx(quick["mae"], rel=1e-6)
    assert isinstance(stats.interval(task.evaluate(runner)).low, float)


def test_equal_seeds_give_equal_weights() -> None:
    task = _task()
    weights = []
    for seed in (1, 1, 2):
        bundle = _bundle(task, dropout=0.3)
        train(bundle, task, Epochs(epochs=2, lr=1e-3, seed=seed))
        weights.append(bundle.model.map.weight.detach().clone())
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_plain_adam_with_halved_rates() -> None:
    """Against torch's own Adam on the same batches."""
    task = _task()
    bundle, twin = _bundle(task), _bundle(task)
    train(bundle, task, Epochs(epochs=3, lr=1e-2, schedule="halve", patience=9))
    feed = WindowFeed(task.splits["train"], twin.processor, size=32)
    optimizer = torch.optim.Adam(twin.model.parameters(), betas=(0.9, 0.999))
    aim = objective(twin.model)
    found = []
    for epoch in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * 0.5**epoch
        for i in range(feed.batches):
            optimizer.zero_grad()
            aim(twin.model, feed.batch(epoch * feed.batches + i)).backward()
            optimizer.step()
        found.append((evaluate(twin, task, "search")["mse"], twin.model.map.weight.detach().clone()))
    torch.testing.assert_close(
        bundle.model.map.weight.detach(), min(found, key=lambda f: f[0])[1], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "constant"])
def test_schedules_and_time(schedule) -> None:
    task = _task(2000)
    bundle = _bundle(task)
    result = train(bundle, task, Epochs(epochs=500, patience=500, lr=1e-3, schedule=schedule, seconds=0.4))
    assert 1 <= result.epochs < 500 and result.seconds < 2
    assert evaluate(bundle, task)["mse"] < evaluate(_bundle(task), task)["mse"]


def test_patience() -> None:
    task = _task()
    bundle = _bundle(task)
    result = train(bundle, task, Epochs(epochs=20, patience=2, lr=1e-9))
    assert result.epochs <= result.best_epoch + 2
    worse = train(bundle, task, Epochs(epochs=20, patience=2, lr=1.0))
    assert worse.epochs < 20 and worse.epochs - worse.best_epoch <= 2


def test_few_shot_takes_the_last_rows() -> None:
    task = _task(1000)
    windows = few(task, 0.1)
    assert windows.starts[0] == 700 - 70 and len(windows) == 70 - 30 + 1
    with pytest.raises(DataError, match="too few for one window"):
        few(task, 0.02)


def test_own_losses_and_targets() -> None:
    task = _task(channels=3, target="c1")
    bundle = _bundle(task)
    batch = WindowFeed(task.splits["train"], bundle.processor).batch(0)
    batch.targets["future_observed_mask"][0, 0, 1] = False
    made = bundle.model(**batch.inputs).prediction
    apart = (made - batch.targets["future_values"])[..., 1].square()
    wanted = (apart.sum() - apart[0, 0]) / (apart.numel() - 1)
    assert objective(bundle.model, task.targets)(bundle.model, batch).item() == pytest.approx(
        wanted.item(), rel=1e-5
    )

    class Own(_Linear):
        def training_loss(self, inputs, future_values, future_observed_mask):
            assert future_observed_mask.sum() == 32 * 6 - 1 and future_values.shape == (32, 6, 3)
            return self.map.weight.sum()

    own = Own()
    assert objective(own, task.targets)(own, batch) is not None


def test_missing_values_need_a_mask() -> None:
    values = _waves(600)
    values[100:120, 0] = np.nan
    task = Forecasting.from_values(values, ["c0", "c1"], 6, 24)
    with pytest.raises(DataError, match="missing values"):
        WindowFeed(task.splits["train"], task.processor(masked=False))
    bundle = _bundle(task)
    train(bundle, task, Epochs(epochs=1))
    assert np.isfinite(evaluate(bundle, task)["mse"])


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"lr": 0.0}, {"schedule": "steps"}, {"share": 0.0}, {"seconds": -1.0}, {"batch": 0}],
)
def test_bad_settings(wrong) -> None:
    with pytest.raises(UserError):
        replace(Epochs(), **wrong)
