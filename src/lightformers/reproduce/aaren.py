"""Aaren (arXiv 2405.13956): what does attention lose and save if its query is the same for every token?

    lightformers reproduce aaren

Hardware: two cores, five minutes. Models of two layers of equal parameters, with Aaren, causal attention, or a GRU in their
place, forecast ETTh1 and exchange rates (96 values from 96) and classify four small sets of series. Then what the paper
does not test: recall of pairs and characters of Tiny Shakespeare, against the transformer. And the cost of a stream, token
by token. Expected: close to the transformer on series; clearly worse where a token must ask for something; a token costs
the same at every place.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import nn

from lightformers import reproduce, train
from lightformers.bundle import Batch
from lightformers.reproduce import common, recall, series, shakespeare
from lightformers.reproduce.finding import Finding, Verdict
from lightformers.tasks.probes import PROBES

CLAIM = (
    "On series, layers of Aaren are at most 0.03 less accurate than causal attention and have at most five percent more squared "
    "error, at equal parameters and steps; in a stream their state does not grow, and a token after 2,048 costs at most a "
    "quarter more than one after 64."
)
#: What Aaren may lose: accuracy, and share of the squared error.
LESS, WORSE = 0.03, 0.05
FLAT = 1.25
_AAREN, _ATTENTION, _GRU = "Aaren", "transformer", "GRU"
_WIDTH, _HIDDEN, _SIZE = 32, 64, 32
_LENGTH, _HORIZON = 96, 96
_FORECASTS = ("etth1", "exchange_rate")
_PROBLEMS = ("GunPoint", "ItalyPowerDemand", "ArrowHead", "BasicMotions")
_RECALL = "recall of 8 pairs"
_CONTEXTS = (64, 512, 2048)


def layers(arm: str) -> recall.Layers:
    """Two layers. In models of series the positions are in the input, as the paper has them; attention then has no others."""
    mixer = (
        {"kind": "aaren", "heads": 4} if arm == _AAREN else {"kind": "attention", "heads": 4, "rotary": False}
    )
    return [{"mixer": mixer, "ffn": {"kind": "mlp", "hidden": _HIDDEN}}] * 2


def reader(arm: str, channels: int, length: int, outputs: int, seed: int) -> series.Reader:
    """A model of series; the GRU is as wide as has the parameters of the transformer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if arm != _GRU:
            return series.Reader(channels, length, outputs, _WIDTH, layers(arm)).eval()
        wanted = _count(series.Reader(channels, length, outputs, _WIDTH, layers(_ATTENTION)))
        made = [series.Reader(channels, length, outputs, _WIDTH, None, hidden=h) for h in range(24, 49)]
        return min(made, key=lambda m: abs(_count(m) - wanted)).eval()


def run(budget: float = common.FULL) -> Finding:
    """Every arm once per seed on every task, with equal steps within a task."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    forecasts, problems = _FORECASTS[: 1 if clock.short else 2], _PROBLEMS[: 1 if clock.short else 4]
    tasks = {name: (0.13, _forecasting(name, clock)) for name in forecasts}
    tasks |= {name: (0.09, _classification(name)) for name in problems}
    tasks[_RECALL] = (0.18, _recall(clock))
    play = shakespeare.Shakespeare.of(clock, 20_000)
    tasks["characters"] = (0.18, [
        play.trial(arm, partial(_speaker, arm, play.vocab), 3e-3) for arm in (_AAREN, _ATTENTION)
    ])  # fmt: skip
    found = recall.contest(clock, seeds, tasks)
    streams = {
        arm: {n: recall.decoding(_speaker(arm, 65, 0), n, 8, 5) for n in _CONTEXTS}
        for arm in (_AAREN, _ATTENTION)
    }
    return _conclude(clock, seeds, found, streams, forecasts, problems)


def _speaker(arm: str, vocab: int, seed: int) -> Any:
    """A decoder with learned positions: a query that is fixed knows no others."""
    from lightformers.models.language.decoder import Decoder, DecoderConfig

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = DecoderConfig(vocab, _WIDTH, layers(arm), positions="learned", max_position_embeddings=4096)
        return Decoder(config).eval()


def _fitted(arm: str, make: Any, feed: Any, objective: Any, measure: Any, lr: float = 3e-3) -> recall.Trial:
    def learn(seed: int, steps: int) -> nn.Module:
        model: nn.Module = make(seed)
        settings = train.Settings(steps=steps, lr=lr, warmup=0.1, precision="fp32", seed=seed)
        train.fit(model, feed(seed), objective, settings)
        return model

    return recall.Trial(arm, learn, measure)


def _forecasting(name: str, clock: common.Clock) -> list[recall.Trial]:
    """96 values of a channel from the 96 before, each window at mean 0 and deviation 1, scored at the scale of training."""
    parts = series.forecast(name, _LENGTH, _HORIZON, every=clock.size(4, 4) if not clock.short else 64)

    def objective(model: nn.Module, batch: Batch) -> torch.Tensor:
        given, mean, deviation = series.normal(batch.inputs["series"])
        said = model(series=given)["said"] * deviation + mean
        return nn.functional.mse_loss(said, batch.targets["answers"])

    @torch.no_grad()
    def measure(model: nn.Module) -> dict[str, float]:
        inputs, answers = parts["test"]
        errors = []
        for start in range(0, len(inputs), 256):
            given, mean, deviation = series.normal(inputs[start : start + 256])
            errors.append(model(series=given)["said"] * deviation + mean - answers[start : start + 256])
        error = torch.cat(errors)
        return {
            f"{name}, squared error": float(error.square().mean()),
            f"{name}, absolute error": float(error.abs().mean()),
        }

    return [
        _fitted(
            arm, partial(reader, arm, 1, _LENGTH, _HORIZON),
            partial(series.Drawn, *parts["train"], _SIZE), objective, measure,
        )
        for arm in (_AAREN, _ATTENTION, _GRU)
    ]  # fmt: skip


def _classification(name: str) -> list[recall.Trial]:
    parts = series.problem(name)
    _, length, channels = parts["train"][0].shape
    classes = int(parts["train"][1].max()) + 1

    def objective(model: nn.Module, batch: Batch) -> torch.Tensor:
        return nn.functional.cross_entropy(model(**batch.inputs)["said"], batch.targets["answers"])

    @torch.no_grad()
    def measure(model: nn.Module) -> dict[str, float]:
        said = torch.cat([model(series=x)["said"] for x in parts["test"][0].split(256)])
        return {f"{name}, accuracy": float((said.argmax(-1) == parts["test"][1]).double().mean())}

    return [
        _fitted(
            arm, partial(reader, arm, channels, length, classes),
            partial(series.Drawn, *parts["train"], _SIZE), objective, measure,
        )
        for arm in (_AAREN, _ATTENTION, _GRU)
    ]  # fmt: skip


def _recall(clock: common.Clock) -> list[recall.Trial]:
    probe = PROBES["mqar"]
    return [
        recall.on_probe(
            arm, partial(_speaker, arm, probe.vocab), probe, {_RECALL: {}}, 5e-3, clock.size(256, 16)
        )
        for arm in (_AAREN, _ATTENTION)
    ]  # fmt: skip


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], found: recall.Contest, streams: dict[str, dict[int, dict[str, float]]],
    forecasts: tuple[str, ...], problems: tuple[str, ...],
) -> Finding:  # fmt: skip
    scores = found.scores

    def accuracies(arm: str) -> list[float]:
        return [sum(v) / len(v) for v in zip(*(scores[arm][f"{p}, accuracy"] for p in problems))]

    accurate = common.gain(accuracies(_AAREN), accuracies(_ATTENTION))
    errors = {
        arm: [
            math.exp(sum(map(math.log, v)) / len(v))
            for v in zip(*(scores[arm][f"{f}, squared error"] for f in forecasts))
        ]
        for arm in scores
    }
    share = [a / b - 1 for a, b in zip(errors[_AAREN], errors[_ATTENTION])]
    long, short = streams[_AAREN][_CONTEXTS[-1]], streams[_AAREN][_CONTEXTS[0]]
    slower = long["milliseconds per token"] / short["milliseconds per token"]
    flat: Verdict = (
        "holds here"
        if slower <= FLAT and long["bytes of state"] == short["bytes of state"]
        else "does not hold here"
    )
    verdict = common.together(
        reproduce.judge(accurate, -LESS), reproduce.judge([-x for x in share], -WORSE), flat
    )
    grown = (
        streams[_ATTENTION][_CONTEXTS[-1]]["bytes of state"]
        / streams[_ATTENTION][_CONTEXTS[0]]["bytes of state"]
    )
    table = [
        reproduce.row(arm, **cells) | {
            key: value
            for n, seen in streams.get(arm, {}).items()
            for key, value in ((f"ms per token after {n}", round(seen["milliseconds per token"], 3)), (f"bytes of state after {n}", seen["bytes of state"]))
        }
        for arm, cells in scores.items()
    ]  # fmt: skip
    return reproduce.conclude(
        slug="aaren",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"Accuracy over {len(problems)} sets of series against the transformer {common.said(accurate)}, squared error of "
            f"forecasts {common.said(share)} as a share. A token after {_CONTEXTS[-1]} costs {slower:.2f} times one after "
            f"{_CONTEXTS[0]}, and the state stays, where the transformer's grows {grown:.0f} times. Not in the claim: recall of "
            f"pairs {common.said(found.gain(_AAREN, _ATTENTION, _RECALL))}, bits per character "
            f"{common.said(found.gain(_AAREN, _ATTENTION, shakespeare.BITS))} against the transformer."
        ),
        table=table,
        baseline=_ATTENTION,
        settings={
            "model": f"two layers, width {_WIDTH}, 4 heads, feed-forward {_HIDDEN}, learned positions; GRU of as many parameters",
            "parameters, forecasting": {arm: _count(reader(arm, 1, _LENGTH, _HORIZON, 0)) for arm in (_AAREN, _ATTENTION, _GRU)},
            "forecast": f"{_HORIZON} values from {_LENGTH}, each channel for itself",
            "steps": {task: list(counts) for task, counts in found.steps.items()},
            "batch": _SIZE,
        },
        limits=(
            "Two sets of forecasts and four of classification, tiny models, hundreds of steps; of the paper's 38 data sets reinforcement "
            "learning and event forecasting are not here." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )  # fmt: skip
