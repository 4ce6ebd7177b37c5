"""Tiny Time Mixers (arXiv 2401.03955): does a forecaster that was pre-trained on other series foresee unseen ones?

    lightformers reproduce ttm

Hardware: two cores, five minutes. A TTM (192 steps in, 48 out, width 32, three levels, patches of 24, resolution prefix) is
pre-trained on the shared series except ETTh1, on drawn series with days and weeks, and on copies of both sampled 2 and 4
times more rarely; then it forecasts ETTh1. ETTm1 records the same transformer: only its rows before ETTh1's test months are
read, and an arm does without it; others do without what was drawn, or without what was recorded. Zero-shot
against persistence and the day before; decoder and head tuned on the last 5 % of the train rows against the same model,
untrained, all of it trained on them. Arms without levels, without prefix, without copies get as many updates. Expected:
zero-shot beats both naive forecasts, and tuning beats training from scratch.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import torch

from lightformers import reproduce
from lightformers.bundle import Bundle
from lightformers.models.forecasting.ttm import TinyTimeMixer, TinyTimeMixerConfig
from lightformers.reproduce import common, forecasters, recall, series_corpus
from lightformers.reproduce.finding import Finding
from lightformers.tasks.forecasting import Forecasting
from lightformers.train.forecasting import Epochs, evaluate, train
from lightformers.train.ttm import Pretraining, few_shot, pretrain, zero_shot

CLAIM = (
    "A mixer of a few ten thousand weights, pre-trained on other series, forecasts an unseen one better than repeating its "
    "last day, and tuned on 5 % of it better than the same model trained on those rows alone."
)
_WHOLE, _SCRATCH = "TTM", "5 % from scratch"
_LAST, _DAY = "persistence", "the day before"
_CONTEXT, _HORIZON = 192, 48
_FIELDS: dict[str, Any] = {
    "patch_length": 24, "hidden_size": 32, "num_hidden_layers": 2, "levels": 3, "decoder_hidden_size": 24,
    "decoder_num_layers": 1, "resolution_prefix": True, "dropout": 0.1, "head_dropout": 0.1,
}  # fmt: skip
#: Arm -> (fields that differ, factors of the copies, data sets left out).
_ARMS: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[str, ...]]] = {
    _WHOLE: ({}, (2, 4), ()),
    "without ETTm1": ({}, (2, 4), ("ettm1_part",)),
    "without drawn series": ({}, (2, 4), (series_corpus.DRAWN,)),
    "drawn series alone": ({}, (2, 4), series_corpus.SETS),
    "without levels": ({"levels": 0, "num_hidden_layers": 6}, (2, 4), ()),
    "without prefix": ({"resolution_prefix": False}, (2, 4), ()),
    "without copies": ({}, (), ()),
}
_ZERO, _FEW = "zero-shot MSE", "5 % MSE"
_BATCH = 64
_TUNING = Epochs(epochs=20, patience=4, batch=32, lr=1e-3, share=0.05)


def config(**fields: Any) -> TinyTimeMixerConfig:
    return TinyTimeMixerConfig(_CONTEXT, _HORIZON, **{**_FIELDS, **fields})


def scratch(task: Forecasting, settings: Epochs, seed: int) -> Bundle:
    """The same model, untrained, and all of it trained on the few rows, with the same patience."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = TinyTimeMixer(config())
    bundle = zero_shot(Bundle(model.eval(), None, "forecasting"), task)
    train(bundle, task, dataclasses.replace(settings, seed=seed))
    return bundle


def trials(
    task: Forecasting, sets: tuple[str, ...], settings: Epochs, arms: tuple[str, ...] = tuple(_ARMS)
) -> list[recall.Trial]:
    """The pre-trained arms that are run, and the one from scratch, for which the updates of the others do not count."""

    def learn(arm: str, seed: int, steps: int) -> tuple[int, Bundle]:
        fields, factors, out = _ARMS[arm]
        sources = series_corpus.sources(tuple(s for s in sets if s not in out))
        budget = Pretraining(
            _CONTEXT,
            _HORIZON,
            {**_FIELDS, **fields},
            factors,
            steps=steps,
            seconds=None,
            batch=_BATCH,
            seed=seed,
        )
        return seed, pretrain(sources, budget)

    def scores(arm: str, made: tuple[int, Bundle]) -> dict[str, float]:
        seed, bundle = made
        found = {_ZERO: evaluate(zero_shot(bundle, task), task)["mse"]}
        if arm == _WHOLE:
            tuned, _ = few_shot(bundle, task, dataclasses.replace(settings, seed=seed))
            found[_FEW] = evaluate(tuned, task)["mse"]
        return found

    made = [recall.Trial(arm, partial(learn, arm), partial(scores, arm)) for arm in arms]
    alone = recall.Trial(
        _SCRATCH,
        lambda seed, steps: seed,
        lambda seed: {_FEW: evaluate(scratch(task, settings, seed), task)["mse"]},
    )
    return [*made, alone]


def naive(task: Forecasting) -> dict[str, float]:
    """Errors of what needs no training."""
    seasons = {_LAST: 1, _DAY: 24}
    return {
        arm: forecasters.error(Bundle(forecasters.Again(season, _HORIZON), None, "forecasting"), task)
        for arm, season in seasons.items()
    }


def run(budget: float = common.FULL) -> Finding:
    """Pre-train every arm once per seed, forecast ETTh1, tune on 5 % of it."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    every = 400 if clock.short else 8
    sets = (*(series_corpus.SETS[:2] if clock.short else series_corpus.SETS), series_corpus.DRAWN)
    settings = dataclasses.replace(_TUNING, epochs=1) if clock.short else _TUNING
    task = forecasters.benchmark("etth1", _HORIZON, _CONTEXT, every)
    arms = tuple(_ARMS)[: 2 if clock.few else None]
    found = recall.contest(clock, seeds, {"ETTh1": (1.0, trials(task, sets, settings, arms))})
    return _conclude(clock, seeds, found, naive(task), sets, every)


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], found: recall.Contest, still: dict[str, float], sets: tuple[str, ...],
    every: int,
) -> Finding:  # fmt: skip
    zero, tuned = found.scores[_WHOLE][_ZERO], found.scores[_WHOLE][_FEW]
    beats = {arm: [1 - z / error for z in zero] for arm, error in still.items()}
    gained = [1 - a / b for a, b in zip(tuned, found.scores[_SCRATCH][_FEW])]
    above = [1 - z / s for z, s in zip(zero, found.scores[_SCRATCH][_FEW])]
    apart = {
        arm: [1 - z / other for z, other in zip(zero, found.scores[arm][_ZERO])]
        for arm in _ARMS
        if arm != _WHOLE and arm in found.scores
    }
    verdict = common.together(*(reproduce.judge(v) for v in (*beats.values(), gained)))
    table = [reproduce.row(arm, **cells) for arm, cells in found.scores.items()]
    table += [{"arm": arm, _ZERO: error} for arm, error in still.items()]
    model = TinyTimeMixer(config())
    return reproduce.conclude(
        slug="ttm",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"Share by which zero-shot errs less than persistence {common.said(beats[_LAST])}, than the day before "
            f"{common.said(beats[_DAY])}, than 5 % from scratch {common.said(above)}; tuned on 5 % less than from scratch "
            f"{common.said(gained)}. Zero-shot against itself "
            + ", ".join(f"{arm} {common.said(v)}" for arm, v in apart.items())
            + "."
        ),
        table=table,
        baseline=_DAY,
        settings={
            "model": {"context": _CONTEXT, "horizon": _HORIZON, **_FIELDS},
            "parameters": model.num_parameters(),
            "parameters that are tuned": sum(
                p.numel() for name, p in model.named_parameters() if not name.startswith("backbone.")
            ),
            "pre-trained on": list(sets),
            "updates of pre-training": found.steps["ETTh1"],
            "windows of an update": _BATCH,
            "tuning": f"the last 5 % of the train rows, at most {_TUNING.epochs} epochs, patience {_TUNING.patience}",
            "test windows": f"one in {every}",
        },
        limits=(
            "A corpus of some million values, a part of them drawn, against the paper's billion, pre-trained for seconds; ETTm1 records "
            "the transformer of ETTh1 in months in which it is trained on, hence the arm without. The breadth of the "
            "transfer and models of a billion weights cannot be shown." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )
