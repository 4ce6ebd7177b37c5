"""GPHT (arXiv 2402.16516): does one pre-trained stack of coarse and fine stages forecast every horizon?

    lightformers reproduce gpht

Hardware: two cores, five minutes. Forecasters of 0.14 million parameters that read 168 hours in segments of 24. The
hierarchy of four stages is pre-trained on channels of ETTm1, exchange rates and made-up series, then its heads are
tuned to ETTh1, and forecasts 24 to 192 hours with the same weights. Against it, with as many parameters and updates: one stage
of four layers, pre-trained and tuned likewise; the hierarchy trained on ETTh1 alone; one-shot forecasters, one for every
horizon, which share the updates. Expected: the hierarchy no worse than one stage; near the one-shot forecasters at
24 hours, behind them at 192.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lightformers import reproduce, train
from lightformers.bundle import Bundle
from lightformers.models.forecasting.gpht import BACKBONE, GPHT, GPHTConfig
from lightformers.reproduce import common, forecasters, recall
from lightformers.reproduce.finding import Finding
from lightformers.tasks.forecasting import Forecasting
from lightformers.train.forecasting import objective
from lightformers.train.resolutions import Source, SourceFeed

CLAIM = (
    "One pre-trained model of coarse and fine stages, only its heads tuned, forecasts every horizon better than forecasters "
    "made for each, than one stage of as many parameters, and than the same stages without the mixture of series."
)
_CONTEXT, _TOKEN, _WIDTH, _HEADS, _HIDDEN = 168, 24, 64, 4, 128
_HORIZONS = (24, 48, 96, 192)
_STAGES, _FLAT, _ALONE, _DIRECT = (
    "four stages, pre-trained", "one stage, pre-trained", "four stages, ETTh1 alone", "one-shot, one for each horizon",
)  # fmt: skip
#: Share of the updates that pre-training takes, and the rates of pre-training and tuning.
_BEFORE, _LR, _TUNING = 0.8, 2e-3, 1e-3
#: Series of an update of pre-training; windows of all seven channels of one on ETTh1.
_SERIES, _WINDOWS = 64, 9


def made_up(count: int, length: int, seed: int) -> NDArray[np.float64]:
    """(length, count): each with a drifting level, one or two waves, and noise that remembers."""
    drawn, made = np.random.default_rng(seed), []
    time = np.arange(length)
    for _ in range(count):
        x = np.cumsum(drawn.standard_normal(length)) * drawn.uniform(0, 0.05)
        for _ in range(drawn.integers(1, 3)):
            period, phase = drawn.choice([8, 12, 24, 48, 96, 168]), drawn.uniform(0, 2 * np.pi)
            x = x + drawn.uniform(0.3, 1.5) * np.sin(2 * np.pi * time / period + phase)
        noise, keep = drawn.standard_normal(length), drawn.uniform(0, 0.8)
        for t in range(1, length):
            noise[t] += keep * noise[t - 1]
        made.append(x + 0.3 * noise)
    return np.stack(made, 1)


def mixture(count: int) -> list[Source]:
    """The training rows of ETTm1 and of the exchange rates, and `count` series made up."""
    found = [Source("made up", made_up(count, 2000, 0))]
    for name in ("ettm1_part", "exchange_rate"):
        task = forecasters.benchmark(name, _TOKEN, _CONTEXT, 8)
        found.append(Source(name, task.series.values[: task.borders[0]]))
    return found


def stages(pooling: Sequence[int], layers: int, hidden: int) -> GPHT:
    """A model whose `forward` forecasts the longest horizon."""
    return GPHT(
        GPHTConfig(
            _CONTEXT, max(_HORIZONS), token_length=_TOKEN, pooling=pooling, hidden_size=_WIDTH, num_hidden_layers=layers,
            num_attention_heads=_HEADS, intermediate_size=hidden, dropout=0.0,
        )
    )  # fmt: skip


def makers() -> dict[str, Callable[[], nn.Module]]:
    """Models of as many parameters; the one-shot ones under their horizon's number."""

    def four() -> nn.Module:
        return stages((8, 4, 2, 1), 1, _HIDDEN)

    def one_shot(horizon: int, hidden: int) -> nn.Module:
        return forecasters.OneShot(_CONTEXT, horizon, _TOKEN, _WIDTH, _HEADS, hidden, 2)

    wanted = forecasters.size(four)
    flat = forecasters.fitted(lambda n: stages((1,), 4, n), wanted)
    wide = {h: forecasters.fitted(lambda n, h=h: one_shot(h, n), wanted) for h in _HORIZONS}  # type: ignore[misc]
    return {
        _STAGES: four,
        _FLAT: lambda: stages((1,), 4, flat),
        _ALONE: four,
        **{f"{h}": lambda h=h: one_shot(h, wide[h]) for h in _HORIZONS},  # type: ignore[misc]
    }


def cell(horizon: int) -> str:
    """The column of a horizon."""
    return f"MSE, {horizon} hours"


def before(horizon: int) -> str:
    """The column of a horizon, of the pre-trained model before its heads are tuned."""
    return f"MSE before tuning, {horizon} hours"


def errors(
    bundle: Bundle, scored: Forecasting, horizons: Sequence[int], name: Callable[[int], str]
) -> dict[str, float]:
    """Of every horizon, forecast by the same weights on the windows of `scored`, whose horizon is the longest."""
    model: Any = bundle.model.eval()
    found = forecasters.errors(lambda past: model.forecast(past, max(horizons)), scored, horizons)
    return {name(h): error for h, error in zip(horizons, found)}


def pretrained(
    make: Callable[[], nn.Module], series: Sequence[Source], task: Forecasting, seed: int, steps: int
) -> tuple[Bundle, Bundle]:  # fmt: skip
    """A model after pre-training, and a copy of it whose heads were tuned to the task."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make()
    first = Bundle(model, task.processor(masked=False), "forecasting")
    early = max(int(_BEFORE * steps), 1)
    settings = train.Settings(steps=early, lr=_LR, warmup=0.1, weight_decay=0.0, precision="fp32", seed=seed)
    train.fit(model, SourceFeed(series, _CONTEXT, _TOKEN, _SERIES, seed), objective(model), settings)
    tuned = first.copy()
    forecasters.go_on(tuned, task, _WINDOWS, _TUNING, seed, max(steps - early, 1), BACKBONE)
    return first, tuned


def trials(tasks: Mapping[int, Forecasting], series: Sequence[Source]) -> list[recall.Trial]:
    """The arms. All autoregressive ones learn from windows of the shortest horizon, one segment; all are scored on the
    windows of the longest."""
    models, taught, horizons = makers(), tasks[_TOKEN], list(tasks)
    scored = tasks[max(horizons)]

    def through(arm: str) -> recall.Trial:
        def measure(two: tuple[Bundle, Bundle]) -> dict[str, float]:
            return errors(two[1], scored, horizons, cell) | errors(two[0], scored, horizons, before)

        return recall.Trial(
            arm, lambda seed, steps: pretrained(models[arm], series, taught, seed, steps), measure
        )

    def direct(seed: int, steps: int) -> dict[int, Bundle]:
        each = max(steps // len(tasks), 1)
        return {
            h: forecasters.learn(models[f"{h}"], task, _WINDOWS, _LR, seed, each) for h, task in tasks.items()
        }

    def apart(bundles: dict[int, Bundle]) -> dict[str, float]:
        found = {}
        for h, bundle in bundles.items():
            model: Any = bundle.model.eval()
            found[cell(h)] = forecasters.errors(lambda x, m=model: m(x).prediction, scored, [h])[0]  # type: ignore[misc]
        return found

    return [
        through(_STAGES),
        through(_FLAT),
        recall.Trial(
            _ALONE,
            lambda seed, steps: forecasters.learn(models[_ALONE], taught, _WINDOWS, _LR, seed, steps),
            lambda bundle: errors(bundle, scored, horizons, cell),
        ),
        recall.Trial(_DIRECT, direct, apart),
    ]


def run(budget: float = common.FULL) -> Finding:
    """Train every arm once per seed with as many updates, and measure every horizon."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    every = 400 if clock.short else 8
    horizons = _HORIZONS[: 2 if clock.short else None]
    tasks = {h: forecasters.benchmark("etth1", h, _CONTEXT, every) for h in horizons}
    series = mixture(clock.size(64, 2))
    arms = {"etth1": (1.0, trials(tasks, series))}
    found = recall.contest(clock, seeds, arms, probe=3 if clock.short else 30)
    return _conclude(clock, seeds, found, horizons, tasks, every)


def less(found: recall.Contest, over: str, horizons: Sequence[int]) -> list[float]:
    """By what share the error of the pre-trained stages is smaller, the mean over horizons, seed by seed."""
    each = [
        [1 - a / b for a, b in zip(found.scores[_STAGES][cell(h)], found.scores[over][cell(h)])]
        for h in horizons
    ]
    return [sum(values) / len(each) for values in zip(*each)]


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], found: recall.Contest, horizons: Sequence[int],
    tasks: Mapping[int, Forecasting], every: int,
) -> Finding:  # fmt: skip
    against = {arm: less(found, arm, horizons) for arm in (_FLAT, _ALONE, _DIRECT)}
    ends = {h: less(found, _DIRECT, [h]) for h in (horizons[0], horizons[-1])}
    longest = max(horizons)
    again = forecasters.errors(
        lambda x: forecasters.Again(24, longest)(x).prediction, tasks[longest], horizons
    )
    naive = dict(zip(horizons, again))
    verdict = common.together(*map(reproduce.judge, against.values()))
    reached = sum(found.scores[_STAGES][cell(horizons[0])]) / len(seeds)
    known = reached < naive[horizons[0]]
    return reproduce.conclude(
        slug="gpht",
        claim=CLAIM,
        verdict=verdict if known else "inconclusive",
        summary=(
            "Share by which the error of the pre-trained stages is smaller, over all horizons: than of one stage "
            f"{common.said(against[_FLAT])}, than without pre-training {common.said(against[_ALONE])}, than of one-shot "
            f"forecasters {common.said(against[_DIRECT])} ("
            + ", ".join(f"{h} hours {common.said(values)}" for h, values in ends.items())
            + ")."
            + ("" if known else f" Nothing follows: error {reached:.3f}, the last day again {naive[horizons[0]]:.3f}.")
        ),
        table=[reproduce.row(arm, **cells) for arm, cells in found.scores.items()],
        baseline=_FLAT,
        settings={
            "parameters": {arm: forecasters.size(make) for arm, make in makers().items()},
            "updates": found.steps["etth1"],
            "milliseconds an update": {arm: round(1000 * cost["etth1"], 1) for arm, cost in found.seconds.items()},
            "pre-training": f"{_BEFORE:.0%} of the updates, {_SERIES} series each, rate {_LR}",
            "tuning": f"heads alone, {_WINDOWS} windows of 7 channels each, rate {_TUNING}",
            "error of the last day again": {cell(h): round(value, 4) for h, value in naive.items()},
            "test windows": f"one in {every}",
        },
        limits=(
            "Models of 0.14 million parameters; a mixture of two small sets (one of them the same transformer station as "
            "ETTh1, within its training months) and made-up series; hundreds of updates. The scale of the paper's "
            "mixture and model cannot be shown." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )  # fmt: skip
