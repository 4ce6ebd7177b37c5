"""TEMPO (arXiv 2310.04948): does a prompted text decoder forecast an unseen series better, and which of its ideas helps?

    lightformers reproduce tempo

Hardware: two cores, five minutes. A decoder (4 layers, width 128) learns WikiText-2 for a fifth of the time and is frozen.
Around it TEMPO learns to forecast from ETTm1, exchange rates and made-up series (192 steps -> 48), each drawn equally often,
and forecasts ETTh1, which it has not seen. Against it, with as many trained parameters and steps: without decomposition,
without prompts, around a frozen decoder of random weights, without any decoder layers; DLinear with as many seconds, and
yesterday's values.
Expected: all beat yesterday; decomposition helps most; text pre-training helps little or not at all, as independent studies
found for larger models.
"""

from __future__ import annotations

import csv
import gzip
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightformers import reproduce
from lightformers.bundle import Batch
from lightformers.models.forecasting.output import Forecast
from lightformers.reproduce import common
from lightformers.reproduce import tempo_arms as arms
from lightformers.reproduce.finding import Finding
from lightformers.reproduce.tempo_arms import HORIZON, LENGTH, Text
from lightformers.train import Settings, fit, stl

CLAIM = (
    "On a series that it has not learned from, a frozen text decoder that reads trend, season and residual behind prompts "
    "forecasts with a lower squared error than DLinear, and than itself without decomposition, without prompts, or around "
    "random weights instead of text pre-training, at equal trained parameters and steps (DLinear: equal seconds)."
)
_BATCH, _LR, _TEXT = 32, 2e-3, 0.2
_DAY = "yesterday's values"
#: Training rows of a source, and its period for STL.
SOURCES = {"ettm1_part": (11734, stl.DEFAULT), "exchange_rate": (5311, stl.DEFAULT)}


def run(budget: float = common.FULL) -> Finding:
    """One decoder learns text; then every arm learns series, once per seed."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    text = Text.of(clock.size(1_300_000, 100_000))
    read, nats = text.learn(clock.budget * _TEXT)
    sources, target = _sources(clock), _target(_every(clock))
    chosen = [a for a in arms.ARMS if not (clock.few and a == arms.NONE)]

    def learnt(arm: str, seed: int, steps: int) -> nn.Module:
        return _train(arm, arms.make(arm, read, text, seed), sources, steps, seed)

    steps, seconds = _plan(clock, chosen, learnt, target, len(seeds))
    more = {arms.LINEAR: seconds[arms.FULL] / seconds[arms.LINEAR]}  # as long, not as often
    scores: dict[str, dict[str, list[float]]] = {}
    used = []
    for seed, count in clock.rounds(seeds, steps):
        used.append(count)
        for arm in chosen:
            for cell, value in _measure(learnt(arm, seed, round(count * more.get(arm, 1))), target).items():
                scores.setdefault(arm, {}).setdefault(cell, []).append(value)
    scores[_DAY] = {cell: [value] * len(seeds) for cell, value in _measure(Yesterday(), target).items()}
    trained = {arm: arms.trained(arms.make(arm, read, text, 0)) for arm in chosen}
    return _conclude(clock, seeds, scores, trained, used, seconds, nats, text)


def _every(clock: common.Clock) -> int:
    return 256 if clock.short else 24


class Yesterday(nn.Module):
    """The last 24 steps, again and again."""

    def forward(self, past_values: Tensor) -> Forecast:
        return Forecast(prediction=past_values[:, -24:].repeat(1, HORIZON // 24, 1))


@dataclass(frozen=True)
class Source:
    """Standardised training rows (rows, channels), and what STL says of them."""

    rows: NDArray[np.float32]
    components: stl.Components


@dataclass(frozen=True)
class Mixed:
    """Batches of windows of single channels, the sources in turn."""

    sources: Sequence[Source]
    seed: int

    def batch(self, position: int) -> Batch:
        drawn = np.random.default_rng((self.seed, position))
        past, future, wanted = [], [], []
        for number in range(_BATCH):
            source = self.sources[(position * _BATCH + number) % len(self.sources)]
            channel = int(drawn.integers(source.rows.shape[1]))
            at = int(drawn.integers(len(source.rows) - LENGTH - HORIZON + 1))
            values = source.rows[at : at + LENGTH + HORIZON, channel]
            past.append(values[:LENGTH])
            future.append(values[LENGTH:])
            wanted.append(source.components.values[at : at + LENGTH, channel])
        inputs, targets, parts = (torch.from_numpy(np.stack(x))[:, :, None] for x in (past, future, wanted))
        return Batch({"past_values": inputs}, {"future_values": targets, "components": parts})


def _read(name: str) -> NDArray[np.float64]:
    with gzip.open(next(reproduce.data(name).glob("*.csv.gz")), "rt", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    first = int(head[0] == "date")
    return np.array([row[first:] for row in rows], np.float64)


def _standard(values: NDArray[np.float64], rows: int) -> NDArray[np.float32]:
    known = values[:rows]
    return ((values - known.mean(0)) / np.maximum(known.std(0), 1e-6)).astype(np.float32)


def _sources(clock: common.Clock) -> list[Source]:
    """Training rows of the real sources, the last ones on a small budget, and made-up series."""
    found = []
    for name, (rows, period) in SOURCES.items():
        kept = _standard(_read(name), rows)[:rows][-clock.size(rows, 600) :]
        found.append(Source(kept, stl.Components.of(kept, period)))
    made = _standard(_made_up(clock.size(4000, 600)), clock.size(4000, 600))
    return [*found, Source(made, stl.Components.of(made, 24))]


def _made_up(rows: int, channels: int = 8) -> NDArray[np.float64]:
    """Trends that bend, seasons of 24 and 168 steps with harmonics, and noise."""
    drawn, place = np.random.default_rng(0), np.arange(rows)[:, None]
    out = np.cumsum(0.02 * drawn.standard_normal((rows, channels)), 0) + 0.1 * drawn.standard_normal(
        (rows, channels)
    )
    for period in (24, 12, 168):
        out += drawn.uniform(0.2, 1, channels) * np.sin(
            2 * np.pi * (place / period + drawn.uniform(0, 1, channels))
        )
    return out


def _target(every: int) -> tuple[Tensor, Tensor]:
    """ETTh1's test windows, every so many, of each channel for itself: (windows, LENGTH, 1) and (windows, HORIZON, 1)."""
    values = _standard(_read("etth1"), 8640)[11520 - LENGTH : 14400]
    cut = np.lib.stride_tricks.sliding_window_view(values, LENGTH + HORIZON, 0)[::every]
    both = torch.from_numpy(cut.reshape(-1, LENGTH + HORIZON).copy())[..., None]
    return both[:, :LENGTH], both[:, LENGTH:]


def _train(arm: str, model: nn.Module, sources: Sequence[Source], steps: int, seed: int) -> nn.Module:
    def objective(module: Any, batch: Batch) -> Tensor:
        future = batch.targets["future_values"]
        if arm == arms.LINEAR:
            error: Tensor = (module(**batch.inputs).prediction - future).square().mean()
            return error
        wanted = None if arm == arms.WHOLE else batch.targets["components"]
        loss: Tensor = module.training_loss(batch.inputs, future, None, wanted)
        return loss

    settings = Settings(
        steps=max(steps, 1), lr=_LR, warmup=0.05, schedule="cosine", weight_decay=0.0, precision=common.precision(),
        dropout=True, seed=seed,
    )  # fmt: skip
    fit(model, Mixed(sources, seed), objective, settings)
    return model.eval()


@torch.no_grad()
def _measure(model: nn.Module, target: tuple[Tensor, Tensor]) -> dict[str, float]:
    past, future = target
    said = torch.cat([model(past_values=rows).prediction for rows in past.split(256)])
    error = said - future
    return {"MSE": float(error.square().mean()), "MAE": float(error.abs().mean())}


def _plan(
    clock: common.Clock, chosen: Sequence[str], learnt: Callable[[str, int, int], nn.Module], target: tuple[Tensor, Tensor], seeds: int
) -> tuple[int, dict[str, float]]:  # fmt: skip
    """Steps of every training that fit, and the seconds of a step."""
    seconds, scoring = {}, 0.0
    few = 1 if clock.short else 4
    for arm in chosen:
        if not clock.short:
            learnt(arm, 99, 1)  # first calls are slow
        begun = time.monotonic()
        model = learnt(arm, 99, few)
        seconds[arm] = max((time.monotonic() - begun) / few, 1e-4)
        begun = time.monotonic()
        _measure(model, target)
        scoring += time.monotonic() - begun
    step = sum(seconds.values()) - seconds[arms.LINEAR] + seconds[arms.FULL]
    return max(int((clock.left() / seeds - scoring) / step), 2), seconds


def _conclude(
    clock: common.Clock, seeds: Sequence[int], scores: dict[str, dict[str, list[float]]], trained: dict[str, int],
    used: list[int], seconds: dict[str, float], nats: float, text: Text,
) -> Finding:  # fmt: skip
    def better(than: str) -> list[float]:
        return common.gain(scores[than]["MSE"], scores[arms.FULL]["MSE"])

    rivals = (arms.LINEAR, arms.WHOLE, arms.BARE, arms.RANDOM)
    verdict = common.together(*(reproduce.judge(better(arm)) for arm in rivals))
    caution = ""
    if min(better(_DAY)) <= 0 or nats > text.common:
        verdict, caution = (
            "inconclusive",
            " Nothing follows: too little has been learned, of series or of text.",
        )
    told = "; ".join(f"{arm} {common.said(better(arm))}" for arm in (*rivals, _DAY))
    table = [
        reproduce.row(arm, **cells, **({"trained parameters": trained[arm]} if arm in trained else {}))
        for arm, cells in scores.items()
    ]
    return reproduce.conclude(
        slug="tempo",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"Squared error on ETTh1, not learned from, above TEMPO's {common.said(scores[arms.FULL]['MSE'], False)}: {told}. The "
            f"decoder had learned text to {nats:.2f} nats per token, where frequencies alone give {text.common:.2f}.{caution}"
        ),
        table=table,
        baseline=arms.LINEAR,
        settings={
            "decoder": f"{arms.DEPTH} layers, width {arms.WIDTH}, WikiText-2 in {len(text.share)} byte pairs, frozen but for norms and positions",
            "series": f"{arms.LENGTH} steps to {arms.HORIZON}, patches of {arms.PATCH}, each channel for itself; "
            f"{', '.join(SOURCES)} and made-up ones, drawn equally; scored on every {_every(clock)}th test window of ETTh1",
            "low-rank updates": arms.RANK,
            "prompt": arms.SENTENCE,
            "steps": dict(zip(map(str, seeds), used)),
            "windows a step": _BATCH,
            "learning rate": _LR,
            "milliseconds a step": {arm: round(1000 * s, 1) for arm, s in seconds.items()},
            "seconds of text": round(clock.budget * _TEXT, 1),
        },
        limits=(
            "A decoder of under a million parameters that has read a megabyte of text, once for all seeds: what a large one would "
            "bring cannot be shown. ETTm1 is of the same station as ETTh1, earlier and four times as fast, so the target is "
            "unseen but not of another world. Patches do not overlap here." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )  # fmt: skip
