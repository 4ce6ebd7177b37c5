"""The linear forecaster: the moving average literally, the paper's size, missing values, known channels, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForTimeSeriesPrediction

import lightformers as lf
from lightformers.bundle import Bundle
from lightformers.errors import UserError
from lightformers.export import huggingface
from lightformers.models import create_model
from lightformers.models.forecasting.linear import LinearForecaster, LinearForecasterConfig, moving_average
from lightformers.processors.series import SeriesProcessor


def made(**more: object) -> LinearForecaster:
    torch.manual_seed(0)
    model = LinearForecaster(LinearForecasterConfig(context_length=12, prediction_length=5, kernel=5, **more))  # type: ignore[arg-type]
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.3)
    return model.eval()


def test_the_moving_average_is_the_mean_of_neighbours_with_repeated_ends() -> None:
    x = torch.randn(2, 9, 3)
    for kernel in (1, 3, 7, 11):
        half = (kernel - 1) // 2
        rows = [
            torch.stack([x[:, min(max(t + o, 0), 8)] for o in range(-half, half + 1)]).mean(0)
            for t in range(9)
        ]
        torch.testing.assert_close(moving_average(x, kernel), torch.stack(rows, 1))


@pytest.mark.parametrize("individual", [False, True])
def test_it_is_two_matrices_on_trend_and_rest(individual: bool) -> None:
    model = made(normalize=False, individual=individual, num_input_channels=3)
    x = torch.randn(4, 12, 3)
    trend = moving_average(x, 5)
    found = model(past_values=x).prediction
    for c in range(3):
        a, b = (m.weight[c if individual else 0] for m in (model.trend, model.season))
        bias = (model.trend.bias + model.season.bias)[c if individual else 0]
        torch.testing.assert_close(
            found[..., c], trend[..., c] @ a.T + (x - trend)[..., c] @ b.T + bias, atol=1e-5, rtol=1e-5
        )


def test_it_has_the_papers_size() -> None:
    with torch.device("meta"):
        model = LinearForecaster(LinearForecasterConfig())
    assert sum(p.numel() for p in model.parameters()) == 2 * (336 + 1) * 96
    preset = create_model("linear-etth1-96")
    assert (preset.config.context_length, preset.config.prediction_length) == (336, 96)


def test_scale_and_place_of_a_window_carry_over() -> None:
    model = made()
    x = torch.randn(2, 12, 4)
    torch.testing.assert_close(
        model(past_values=3 * x + 7).prediction, 3 * model(past_values=x).prediction + 7, atol=1e-4, rtol=1e-3
    )


@pytest.mark.parametrize("normalize", [False, True])
def test_what_was_not_seen_changes_nothing(normalize: bool) -> None:
    model = made(normalize=normalize, num_input_channels=2, known_channels=[1])
    x, mask = torch.randn(3, 12, 2), torch.rand(3, 12, 2) > 0.3
    future = torch.randn(3, 5, 2)
    holed = x.masked_fill(~mask, float("nan"))
    torch.testing.assert_close(
        model(x, mask, future).prediction, model(holed, mask, future).prediction, atol=0, rtol=0
    )
    full = torch.ones_like(mask)
    torch.testing.assert_close(model(x, full, future).prediction, model(x, None, future).prediction)


def test_a_known_channel_that_explains_everything_is_used() -> None:
    """y = 2 k exactly: with the weight at 2, whatever the maps say of nothing left, the forecast is right."""
    model = LinearForecaster(
        LinearForecasterConfig(12, 5, num_input_channels=3, known_channels=[1], normalize=False)
    )
    model.known.weight.data[:] = torch.tensor([[2.0], [-1.0]])  # type: ignore[union-attr]
    k = torch.randn(4, 17)
    x = torch.stack([2 * k, k, -k], -1)
    found = model(x[:, :12], future_values=x[:, 12:]).prediction
    torch.testing.assert_close(found[..., [0, 2]], x[:, 12:, [0, 2]])
    with pytest.raises(UserError, match="future_values"):
        model(x[:, :12])


def test_known_weights_start_where_steps_say() -> None:
    drawn = torch.Generator().manual_seed(0)
    known = torch.randn(200, 2, generator=drawn, dtype=torch.float64)
    own = torch.linspace(0, 5, 200, dtype=torch.float64) + 2 * known[:, 0] - 0.5 * known[:, 1]
    rows = torch.stack([known[:, 0], own, known[:, 1]], 1)
    rows[50:60, 1] = torch.nan
    model = LinearForecaster(LinearForecasterConfig(12, 5, num_input_channels=3, known_channels=[0, 2]))
    model.start_known(rows)
    torch.testing.assert_close(model.known.weight.data, torch.tensor([[2.0, -0.5]]), atol=1e-2, rtol=0)  # type: ignore[union-attr]


def test_every_parameter_learns_and_a_planted_season_is_found() -> None:
    torch.manual_seed(1)
    model = LinearForecaster(LinearForecasterConfig(24, 6, num_input_channels=2, known_channels=[1]))
    steps = torch.arange(3000.0)
    series = torch.stack([torch.sin(steps * 2 * torch.pi / 12) + 0.01 * steps, torch.randn(3000)], -1)
    series[:, 0] += 0.5 * series[:, 1]
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(150):
        at = torch.randint(0, 2400, (64,))
        past, future = (torch.stack([series[s + a : s + b] for s in at]) for a, b in ((0, 24), (24, 30)))
        loss = (model(past, future_values=future).prediction[..., 0] - future[..., 0]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
        optimizer.step()
    past, future = series[None, 2600:2624], series[None, 2624:2630]
    error = (model(past, future_values=future).prediction - future)[..., 0].abs().max()
    assert error < 0.15


def test_it_is_saved_and_opened_again(tmp_path: Path) -> None:
    processor = SeriesProcessor(("a", "b"), (1.0, -2.0), (2.0, 5.0), 12, 5, masked=True)
    bundle = Bundle(made(individual=True, num_input_channels=2), processor, "forecasting")
    assert huggingface.save(bundle, tmp_path) == []
    again = lf.load(tmp_path)
    assert again.task == "forecasting" and again.processor == processor
    values = np.random.default_rng(0).standard_normal((12, 2))
    values[3, 1] = np.nan
    one, two = (b.model(**b.collate([{"past_values": values}]).inputs).prediction for b in (bundle, again))
    torch.testing.assert_close(one, two)
    assert isinstance(AutoModelForTimeSeriesPrediction.from_pretrained(tmp_path), LinearForecaster)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kernel": 4}, "odd"),
        ({"context_length": 0}, "at least 1"),
        ({"individual": True}, "number of channels"),
        ({"known_channels": [3], "num_input_channels": 2}, "not among"),
        ({"known_channels": [0, 1], "num_input_channels": 2}, "nothing is left"),
    ],
)
def test_settings_that_make_no_model(fields: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        LinearForecasterConfig(**fields)  # type: ignore[arg-type]


def test_windows_that_do_not_fit() -> None:
    model = made(num_input_channels=3)
    with pytest.raises(UserError, match="exactly 12 steps"):
        model(past_values=torch.zeros(1, 11, 3))
    with pytest.raises(UserError, match="3 channels"):
        model(past_values=torch.zeros(1, 12, 2))
    with pytest.raises(UserError, match="NaN"):
        model(past_values=torch.full((1, 12, 3), float("nan")))
