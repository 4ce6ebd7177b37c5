"""iTransformer (arXiv 2310.06625): are whole variates better tokens than time steps, with the same layers?

    lightformers reproduce itransformer

Hardware: two cores, five minutes. Forecasters of two post-norm layers, width 128, whose tokens are variates; as many
parameters with time steps as tokens; a linear map for each variate. All see every variate scaled by its own window, and
get as many updates. On ETTh1 and exchange rates (96 hours or days ahead), on the speeds at 207 places of Los Angeles'
freeways (two hours ahead), and on 32 copies of a noise, each later than the one before, where attention is also taken away. A
further arm is trained on half of the freeway sensors and forecasts the other half. Expected: variates win over time steps
everywhere and over linear maps on the freeways at most; nothing without attention foresees the copies; sensors
never trained on cost little.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lightformers import reproduce
from lightformers.bundle import Bundle
from lightformers.models.forecasting.itransformer import ITransformer, ITransformerConfig
from lightformers.reproduce import common, forecasters, recall
from lightformers.reproduce.finding import Finding
from lightformers.tasks.forecasting import Forecasting

CLAIM = (
    "The layers of a transformer, unchanged, forecast better with variates as tokens than with time steps, and better than "
    "linear maps where variates are many; they use a variate that leads another, and forecast variates they never learned from."
)
_LAYERS, _HEADS = 2, 4
_VARIATES, _TIME, _LINEAR = "variates as tokens", "time steps as tokens", "linear map of each variate"
_ALONE, _HALF = "variates as tokens, no attention", "variates as tokens, trained on half of them"
_LR = {_VARIATES: 1e-3, _HALF: 1e-3, _ALONE: 1e-3, _TIME: 1e-3, _LINEAR: 5e-3}
_FREEWAYS, _COPIES = "freeways", "lagged copies"
_REAL = ("etth1", "exchange_rate", _FREEWAYS)
_UNSEEN = "MSE, freeways, sensors left out"
#: (context, horizon, windows of an update, share of the time)
_SHAPES = {
    "etth1": (96, 96, 16, 0.25), "exchange_rate": (96, 96, 16, 0.25), _FREEWAYS: (96, 24, 8, 0.35), _COPIES: (24, 8, 16, 0.15),
}  # fmt: skip
_SENSORS, _LATER, _NOISE = 207, 8, 0.1


def copies(rows: int, variates: int, seed: int) -> NDArray[np.float64]:
    """(rows, variates): a noise, and it again `_LATER` steps after the variate before, with a little noise of its own."""
    drawn = np.random.default_rng(seed)
    length = rows + (variates - 1) * _LATER
    lead = drawn.standard_normal(length)
    late = [lead[length - rows - i * _LATER : length - i * _LATER] for i in range(variates)]
    return np.stack(late, 1) + _NOISE * drawn.standard_normal((rows, variates))


def problem(name: str, every: int) -> Forecasting:
    """The series by its name in the table; every so many test windows count."""
    context, horizon, _, _ = _SHAPES[name]
    if name == _COPIES:
        return Forecasting.from_values(copies(4000, 32, 0), None, horizon, context, stride=every)
    if name != _FREEWAYS:
        return forecasters.benchmark(name, horizon, context, every)
    with np.load(reproduce.data("traffic_los_angeles") / "los_loop.npz") as file:
        speed = file["speed"].astype(np.float64) / 100
    return Forecasting.from_values(speed, None, horizon, context, stride=every)


def halves(task: Forecasting) -> tuple[Forecasting, Forecasting]:
    """The task on half of the variates, drawn once; and on all, where the others alone are scored."""
    drawn = np.random.default_rng(0).permutation(len(task.columns))
    kept, out = sorted(drawn[: len(drawn) // 2]), sorted(drawn[len(drawn) // 2 :])
    names = [task.columns[i] for i in kept]
    half = Forecasting.from_values(
        task.series.values[:, kept], names, task.horizon, task.context, split=task.borders, stride=task.stride
    )
    whole = Forecasting.from_values(
        task.series.values, list(task.columns), task.horizon, task.context, split=task.borders,
        target=[task.columns[i] for i in out], stride=task.stride,
    )  # fmt: skip
    return half, whole


def makers(channels: int, context: int, horizon: int, width: int) -> dict[str, Callable[[], nn.Module]]:
    """The arms' models. Those with attention have as many parameters that do something; queries and keys do nothing in
    the arm without."""

    def inverted(attention: str, hidden: int) -> ITransformer:
        config = ITransformerConfig(
            context, horizon, hidden_size=width, intermediate_size=hidden, num_hidden_layers=_LAYERS,
            num_attention_heads=_HEADS, dropout=0.0, attention=attention,  # type: ignore[arg-type]
        )  # fmt: skip
        return ITransformer(config)

    def time(hidden: int) -> nn.Module:
        return forecasters.TimeTokens(channels, context, horizon, width, _HEADS, hidden, _LAYERS)

    wanted = forecasters.size(lambda: inverted("softmax", width))
    idle = _LAYERS * 2 * (width * width + width)
    wide = forecasters.fitted(lambda n: inverted("identity", n), wanted + idle)
    steps = forecasters.fitted(time, wanted)
    return {
        _VARIATES: lambda: inverted("softmax", width),
        _TIME: lambda: time(steps),
        _LINEAR: lambda: forecasters.PerVariate(context, horizon),
        _ALONE: lambda: inverted("identity", wide),
    }


def trials(name: str, width: int, every: int) -> list[recall.Trial]:
    """The arms that a series is forecast by."""
    task, (context, horizon, batch, _) = problem(name, every), _SHAPES[name]
    models = makers(len(task.columns), context, horizon, width)
    tests = {f"MSE, {name}": task}
    half = None
    if name == _FREEWAYS:
        half, tests[_UNSEEN] = halves(task)

    def trial(arm: str, make: Callable[[], nn.Module], taught: Forecasting) -> recall.Trial:
        def learn(seed: int, steps: int) -> Bundle:
            return forecasters.learn(make, taught, batch, _LR[arm], seed, steps)

        return recall.Trial(
            arm, learn, lambda b: {cell: forecasters.error(b, on) for cell, on in tests.items()}
        )

    made = [trial(arm, make, task) for arm, make in models.items() if arm != _ALONE or name == _COPIES]
    return made if half is None else [*made, trial(_HALF, models[_VARIATES], half)]


def run(budget: float = common.FULL) -> Finding:
    """Train every arm on every series once per seed, with equal updates within a series."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    width, every = (16, 400) if clock.short else (128, 8)
    tasks = {name: (shape[3], trials(name, width, every)) for name, shape in _SHAPES.items()}
    found = recall.contest(clock, seeds, tasks, probe=3 if clock.few else 10)
    return _conclude(clock, seeds, found, width, every)


def less(found: recall.Contest, arm: str, over: str, cell: str) -> list[float]:
    """By what share the arm's error is smaller than the other's, seed by seed."""
    return [1 - a / b for a, b in zip(found.scores[arm][cell], found.scores[over][cell])]


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], found: recall.Contest, width: int, every: int
) -> Finding:
    time = {name: less(found, _VARIATES, _TIME, f"MSE, {name}") for name in _REAL}
    linear = {name: less(found, _VARIATES, _LINEAR, f"MSE, {name}") for name in _REAL}
    lead = less(found, _VARIATES, _ALONE, f"MSE, {_COPIES}")
    unseen = less(found, _HALF, _VARIATES, _UNSEEN)
    mean = [sum(values) / len(_REAL) for values in zip(*time.values())]
    verdict = common.together(
        reproduce.judge(mean),
        reproduce.judge(linear[_FREEWAYS]),
        reproduce.judge(lead),
        reproduce.judge(unseen, margin=-0.1),
    )

    def shares(values: dict[str, list[float]]) -> str:
        return ", ".join(f"{name} {common.said(v)}" for name, v in values.items())

    return reproduce.conclude(
        slug="itransformer",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"Share by which the error is smaller with variates as tokens: than with time steps {shares(time)}; than linear maps "
            f"{shares(linear)}; with attention than without, on lagged copies, {common.said(lead)}. On sensors left out of "
            f"training: {common.said(unseen)} against training on all."
        ),
        table=[reproduce.row(arm, **cells) for arm, cells in found.scores.items()],
        baseline=_TIME,
        settings=_settings(found, width, every),
        limits=(
            "Hundreds of updates, one learning rate for each arm, no calendar, one in eight test windows; a week of "
            "freeways, 207 sensors. The paper's margins on 321 and 862 variates at full training cannot be shown."
            + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )


def _settings(found: recall.Contest, width: int, every: int) -> dict[str, Any]:
    channels = {"etth1": 7, "exchange_rate": 8, _FREEWAYS: _SENSORS, _COPIES: 32}
    sizes = {
        name: {arm: forecasters.size(make) for arm, make in makers(channels[name], c, h, width).items()}
        for name, (c, h, _, _) in _SHAPES.items()
    }
    return {
        "model": f"{_LAYERS} layers, width {width}, {_HEADS} heads",
        "parameters": sizes,
        "context, horizon, windows of an update": {n: list(shape[:3]) for n, shape in _SHAPES.items()},
        "variates": channels,
        "updates": {name: list(counts) for name, counts in found.steps.items()},
        "milliseconds an update": {
            arm: {name: round(1000 * s, 1) for name, s in cost.items()} for arm, cost in found.seconds.items()
        },
        "learning rates": dict(_LR),
        "test windows": f"one in {every}",
    }
