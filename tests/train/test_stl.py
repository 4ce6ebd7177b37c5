"""Components of training rows as targets, and a world in which they help."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from lightformers.bundle import Bundle
from lightformers.errors import MissingExtra, UserError
from lightformers.models.forecasting.tempo import Tempo, TempoConfig
from lightformers.parts.decomposition import Decomposition, decomposition_error, moving_average
from lightformers.tasks.forecasting import Forecasting
from lightformers.train import stl
from lightformers.train.forecasting import Epochs, objective, train
from lightformers.train.windows import WindowFeed

LAYER = {"mixer": {"kind": "attention", "heads": 2}, "ffn": {"kind": "mlp", "hidden": 8}}
RNG = np.random.default_rng(0)
PLACES = np.arange(300)
PLANTED = np.stack([0.02 * PLACES, np.sin(2 * np.pi * PLACES / 12), 0.1 * RNG.standard_normal(300)], 1)
ROWS = np.stack([PLANTED.sum(1), 3 * PLANTED.sum(1) + 1], 1)


def test_components_add_up_and_are_those_that_were_planted() -> None:
    found = stl.Components.of(ROWS, 12).values
    assert found.shape == (300, 2, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found.sum(2), ROWS, atol=1e-4)
    for part in range(2):
        assert np.corrcoef(found[:, 0, part], PLANTED[:, part])[0, 1] > 0.97
    np.testing.assert_allclose(3 * found[:, 0, 1], found[:, 1, 1], atol=1e-2)


def test_missing_rows_are_bridged_and_windows_stay_within_the_training_rows() -> None:
    holes = ROWS.copy()
    holes[40:43, 0] = np.nan
    known = stl.Components.of(holes, 12)
    assert np.isfinite(known.values).all()
    cut = known.windows([0, 280], 20)
    assert cut.shape == (2, 20, 2, 3)
    np.testing.assert_array_equal(cut[1], known.values[280:300])
    for start in (281, -1):
        with pytest.raises(UserError, match="300 training rows alone"):
            known.windows([start], 20)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    for rows, period, words in (
        (ROWS[:20], 12, "two cycles of 12"),
        (ROWS, 1, "two cycles of 1"),
        (ROWS[:, 0], 12, r"\(rows, channels\)"),
        (np.full((60, 2), np.nan), 12, "channel 0 has no values"),
    ):
        with pytest.raises(UserError, match=words):
            stl.Components.of(rows, period)
    monkeypatch.setitem(sys.modules, "statsmodels.tsa.seasonal", None)
    with pytest.raises(MissingExtra, match="forecasting"):
        stl.Components.of(ROWS, 12)


def small(**fields: object) -> Tempo:
    torch.manual_seed(0)
    sizes = {
        "context_length": 24,
        "prediction_length": 4,
        "patch_length": 8,
        "stride": 4,
        "kernel": 5,
        "lora_rank": 0,
    }
    decoder = {"vocab_size": 9, "hidden_size": 8, "layers": [LAYER]}
    return Tempo(TempoConfig(**{**sizes, "language_model": decoder, "prompt": None, **fields})).eval()


def test_training_adds_the_weighted_error_of_the_components() -> None:
    """The term that TEMPO's own scripts leave out by a slip is there, of training rows alone, standardised."""
    task = Forecasting.from_values(ROWS, ["a", "b"], 4, 24)
    bundle = Bundle(small(decomposition_weight=0.7), None, "forecasting")
    task.check(bundle)
    batch = WindowFeed(task.splits["train"], bundle.processor, 3).batch(0)
    parts = stl.of_task(bundle, task)
    assert parts is not None
    plain = objective(bundle.model)(bundle.model, batch)
    past, future = batch.inputs["past_values"], batch.targets["future_values"]
    prediction, found, _ = bundle.model.parts(past)
    torch.testing.assert_close(plain, (prediction - future).square().mean())
    rows = bundle.processor.standardise(ROWS[: task.borders[0]])
    known = stl.Components.of(rows, 48)  # no stamps, so no season is known
    wanted = known.windows(batch.targets["start"].tolist(), 24)
    torch.testing.assert_close(wanted.sum(3), past, atol=1e-4, rtol=1e-4)
    wanted = wanted.permute(0, 2, 3, 1).flatten(0, 1)
    normal = (wanted - wanted.mean(2, keepdim=True)) / (
        wanted.var(2, unbiased=False, keepdim=True) + 1e-5
    ).sqrt()
    error = sum((found[:, i] - normal[:, i]).square().mean() for i in range(3))
    with_parts = objective(bundle.model, None, parts)(bundle.model, batch)
    torch.testing.assert_close(with_parts, plain + 0.7 * error)


def test_components_are_for_those_who_ask_and_where_two_cycles_are() -> None:
    task = Forecasting.from_values(ROWS, ["a", "b"], 4, 24)
    for model, made in (
        (small(decomposition_weight=0.0), task),
        (torch.nn.Linear(1, 1), task),
        (small(), Forecasting.from_values(ROWS[:130], ["a", "b"], 4, 24)),
    ):
        bundle = Bundle(model, made.processor(), "forecasting")
        assert stl.of_task(bundle, made) is None


def test_a_training_runs_with_them() -> None:
    task = Forecasting.from_values(ROWS, ["a", "b"], 4, 24)
    model = small(decomposition_weight=0.5)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    before = model.decomposition.season[0].weight.clone()
    done = train(Bundle(model, None, "forecasting"), task, Epochs(1, lr=1e-3, windows=64))
    assert done.epochs == 1 and not torch.equal(model.decomposition.season[0].weight, before)
    assert frozen and all(torch.equal(dict(model.named_parameters())[n], p) for n, p in frozen.items())


def test_moving_averages() -> None:
    x = torch.tensor([[1.0, 2.0, 6.0]])[..., None]
    torch.testing.assert_close(moving_average(x, 3)[0, :, 0], torch.tensor([4 / 3, 3.0, 14 / 3]))
    assert torch.equal(moving_average(x, 1), x)
    for kernel in (0, 2):
        with pytest.raises(UserError, match="odd"):
            moving_average(x, kernel)


def test_targets_teach_the_season_that_was_planted() -> None:
    """Windows whose season is wider than the kernel of the average: only targets say what belongs to it."""
    torch.manual_seed(0)
    known = stl.Components.of(ROWS[:, :1], 12)
    starts = torch.randint(250, (40, 64)).tolist()
    values = torch.tensor(ROWS[:, 0], dtype=torch.float32)
    wanted_season = torch.tensor(PLANTED[:, 1], dtype=torch.float32)
    model = Decomposition(48, 3)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)

    def normal(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)

    def error() -> float:
        x = torch.stack([values[i : i + 48] for i in range(0, 250, 5)])
        season = torch.stack([wanted_season[i : i + 48] for i in range(0, 250, 5)])
        with torch.no_grad():
            return float((normal(model(normal(x))[:, 1]) - normal(season)).square().mean())

    before = error()
    for chosen in starts:
        x = normal(torch.stack([values[i : i + 48] for i in chosen]))
        targets = known.windows(chosen, 48).permute(0, 2, 3, 1).flatten(0, 1)
        optimizer.zero_grad()
        decomposition_error(model(x), targets).backward()
        optimizer.step()
    assert error() < 0.2 * before
