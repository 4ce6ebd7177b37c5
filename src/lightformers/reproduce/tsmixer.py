"""TSMixer (arXiv 2306.09364): do MLPs over patches forecast as well as attention over patches, in less time and memory?

    lightformers reproduce tsmixer

Hardware: two cores, five minutes. On ETTh1 (336 hours in, 96 out, each channel for itself): TSMixer of two layers, width 32,
on patches of 16; a transformer over the same patches with as many parameters; one linear map; TSMixer without gates; with
channels mixed. All get as many updates. A second task has one tenth of the training rows: TSMixer pre-trained by hidden
patches, then a linear head, against TSMixer trained on that tenth alone, with as many updates. Time and memory of an update
are measured at the notebook's sizes (64 patches, width 48, three layers, batches of 32 windows of 7 channels), both models in
turn. Expected: errors within a few per cent of each other, an update in clearly less time and memory; channel mixing does
not help on ETTh1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from lightformers import measure, reproduce
from lightformers.bundle import Bundle
from lightformers.models.forecasting.tsmixer import TSMixer, TSMixerConfig
from lightformers.models.forecasting.tsmixer_pretraining import TSMixerForPretraining
from lightformers.reproduce import common, forecasters, recall
from lightformers.reproduce.finding import Finding, Verdict
from lightformers.tasks.forecasting import Forecasting
from lightformers.train.forecasting import Epochs, few
from lightformers.train.masked_patches import forecaster, pretrain

CLAIM = (
    "Gated MLPs over patches and features err at most 3 % more than a patch transformer of equal parameters after as many "
    "updates, each of which takes at most two thirds of the time; hiding patches first helps where labels are few."
)
_MIXER, _TOKENS, _LINEAR = "TSMixer", "patch transformer", "linear map"
_UNGATED, _MIXED = "TSMixer without gates", "TSMixer, channels mixed"
_HIDDEN, _ALONE = "hidden patches, then a linear head", "one tenth alone"
_CONTEXT, _HORIZON, _PATCH, _BATCH, _SHARE = 336, 96, 16, 32, 0.1
_LR = {_LINEAR: 5e-3}
_MSE, _FEW = "MSE", "MSE, a tenth of the rows"
#: What an update has to be faster by.
_FASTER = 1.5
#: Sizes at which time and memory are measured: context, patch, width, layers, heads.
_FULL, _TINY = (512, 8, 48, 3, 4), (64, 8, 8, 1, 2)


def mixer(context: int, patch: int, width: int, layers: int, **fields: Any) -> TSMixer:
    """A forecaster of the next `_HORIZON` steps without dropout, as its rivals have none."""
    return TSMixer(config(context, patch, width, layers, **fields))


def config(context: int, patch: int, width: int, layers: int, **fields: Any) -> TSMixerConfig:
    return TSMixerConfig(
        context, _HORIZON, patch_length=patch, hidden_size=width, num_hidden_layers=layers, dropout=0.0, head_dropout=0.0,
        **fields,
    )  # fmt: skip


def tokens(context: int, patch: int, width: int, layers: int, heads: int) -> Callable[[], nn.Module]:
    """A transformer over the same patches with as many parameters as the mixer."""

    def sized(hidden: int) -> nn.Module:
        return forecasters.OneShot(context, _HORIZON, patch, width, heads, hidden, layers)

    wanted = forecasters.size(lambda: mixer(context, patch, width, layers))
    hidden = forecasters.fitted(sized, wanted)
    return lambda: sized(hidden)


def makers(width: int, channels: int = 7) -> dict[str, Callable[[], nn.Module]]:
    """The arms' models."""
    sizes = (_CONTEXT, _PATCH, width, 2)
    return {
        _MIXER: partial(mixer, *sizes),
        _TOKENS: tokens(*sizes, 4),
        _LINEAR: partial(forecasters.PerVariate, _CONTEXT, _HORIZON),
        _UNGATED: partial(mixer, *sizes, gated=False),
        _MIXED: partial(mixer, *sizes, mode="mix_channel", num_input_channels=channels),
    }


def tenth(task: Forecasting) -> Forecasting:
    """The task with the training windows of its last rows alone."""
    made = dataclasses.replace(task)
    made.splits = {**task.splits, "train": few(task, _SHARE)}
    return made


def trials(task: Forecasting, width: int) -> dict[str, tuple[float, list[recall.Trial]]]:
    """Both tasks with their shares of the time."""

    def trial(arm: str, make: Callable[[], nn.Module], on: Forecasting, cell: str) -> recall.Trial:
        def learn(seed: int, steps: int) -> Bundle:
            return forecasters.learn(make, on, _BATCH, _LR.get(arm, 1e-3), seed, steps)

        return recall.Trial(arm, learn, lambda b: {cell: forecasters.error(b, task)})

    less = tenth(task)

    def hide(seed: int, steps: int) -> Bundle:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = TSMixerForPretraining(config(_CONTEXT, _PATCH, width, 2))
        batches = max(steps // 2, 1)
        pretrain(model, task, Epochs(epochs=1, batch=_BATCH, lr=1e-3, seed=seed, windows=batches * _BATCH))
        bundle = forecaster(model, task)
        forecasters.go_on(bundle, less, _BATCH, 1e-3, seed, max(steps - batches, 1), frozen=("mixer.*",))
        return bundle

    models = makers(width, len(task.columns))
    whole = [trial(arm, make, task, _MSE) for arm, make in models.items()]
    scarce = [
        recall.Trial(_HIDDEN, hide, lambda b: {_FEW: forecasters.error(b, task)}),
        trial(_ALONE, models[_MIXER], less, _FEW),
    ]
    return {"all rows": (0.75, whole), "a tenth of the rows": (0.25, scarce)}


def update(name: str, context: int, patch: int, width: int, layers: int, heads: int, times: int = 1) -> None:
    """So many updates of a new model on 32 windows of 7 channels: what a child process does to have its memory measured."""
    call = updating(name, context, patch, width, layers, heads)
    for _ in range(times):
        call()


def updating(name: str, context: int, patch: int, width: int, layers: int, heads: int) -> Callable[[], None]:
    """Forward, backward and Adam, once a call."""
    torch.manual_seed(0)
    model = (
        mixer(context, patch, width, layers)
        if name == _MIXER
        else tokens(context, patch, width, layers, heads)()
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    past, future = torch.randn(_BATCH, context, 7), torch.randn(_BATCH, _HORIZON, 7)

    def call() -> None:
        (model(past_values=past).prediction - future).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return call


def costs(short: bool) -> dict[str, Any]:
    """Seconds and bytes of an update of both, and how many times as fast the mixer is. Memory only where there is time."""
    sizes = _TINY if short else _FULL
    times = measure.compare({name: updating(name, *sizes) for name in (_MIXER, _TOKENS)}, 3 if short else 9)
    found: dict[str, Any] = {
        "seconds": {name: t.median for name, t in times.items()},
        "faster": vars(measure.paired(times[_TOKENS], times[_MIXER])),
        "bytes": {},
    }
    for name in () if short else (_MIXER, _TOKENS):
        without = measure.peak_memory(update, name, *sizes, 0)
        found["bytes"][name] = measure.peak_memory(update, name, *sizes, 2) - without
    return found


def run(budget: float = common.FULL) -> Finding:
    """Train every arm once per seed with equal updates, and measure an update."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    width, every = (8, 400) if clock.short else (32, 8)
    task = forecasters.benchmark("etth1", _HORIZON, _CONTEXT, every)
    cost = costs(clock.short)
    found = recall.contest(clock, seeds, trials(task, width))
    return _conclude(clock, seeds, found, cost, width, every)


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], found: recall.Contest, cost: dict[str, Any], width: int, every: int
) -> Finding:  # fmt: skip
    def less(arm: str, over: str, cell: str) -> list[float]:
        return [1 - a / b for a, b in zip(found.scores[arm][cell], found.scores[over][cell])]

    near, scarce = less(_MIXER, _TOKENS, _MSE), less(_HIDDEN, _ALONE, _FEW)
    faster = cost["faster"]
    speed: Verdict = "inconclusive"
    if faster["low"] > _FASTER or faster["high"] < _FASTER:
        speed = "holds here" if faster["low"] > _FASTER else "does not hold here"
    verdict = common.together(reproduce.judge(near, margin=-0.03), speed, reproduce.judge(scarce))
    table = [reproduce.row(arm, **cells) for arm, cells in found.scores.items()]
    for row in table:
        if (seconds := cost["seconds"].get(row["arm"])) is not None:
            row["ms of an update, 64 patches"] = round(1000 * seconds, 1)
        if (held := cost["bytes"].get(row["arm"])) is not None:
            row["MB of an update, 64 patches"] = round(held / 1e6, 1)
    others = {arm: common.said(less(_MIXER, arm, _MSE)) for arm in (_LINEAR, _UNGATED, _MIXED)}
    memory = cost["bytes"]
    held = f", with {memory[_TOKENS] / memory[_MIXER]:.2f} times less memory" if memory else ""
    return reproduce.conclude(
        slug="tsmixer",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"Share by which TSMixer's error is smaller than a patch transformer's: {common.said(near)}; than others': "
            f"{', '.join(f'{arm} {said}' for arm, said in others.items())}. An update is {faster['estimate']:.2f} "
            f"[{faster['low']:.2f}, {faster['high']:.2f}] times as fast{held}. On a tenth of the rows hidden patches first "
            f"change the error by {common.said(scarce)}."
        ),
        table=table,
        baseline=_TOKENS,
        settings={
            "model": f"two layers, width {width}, patches of {_PATCH}, {_CONTEXT} hours in and {_HORIZON} out",
            "parameters": {arm: forecasters.size(make) for arm, make in makers(width).items()},
            "updates": {task: list(counts) for task, counts in found.steps.items()},
            "windows of an update": _BATCH,
            "time and memory at": "context, patch, width, layers, heads = {}, {}, {}, {}, {}".format(
                *(_TINY if clock.short else _FULL)
            ),
            "test windows": f"one in {every}",
        },
        limits=(
            "One small data set, hundreds of updates without dropout, one in eight test windows, one learning rate for each "
            "arm. The margins on hundreds of channels (Electricity, Traffic) and the reconciliation heads' cannot be shown."
            + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )
