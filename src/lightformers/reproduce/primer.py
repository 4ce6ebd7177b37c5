"""Primer (arXiv 2109.08668): do squared ReLU and a short convolution on q, k, v make a transformer learn faster?

    lightformers reproduce primer

Hardware: two cores, five minutes. Decoders of four layers, width 96, learn the characters of Tiny Shakespeare in as many
steps: a transformer with ReLU, with GELU, with SwiGLU, with squared ReLU alone, with the convolution alone, with both
(Primer-EZ), and all of Primer. And decoders of one layer learn what followed a mark (induction), with and without the
convolution. Expected: the convolution gains most, both together about the sum, in fewer steps to the same loss, though by
less than the paper's factor; one layer finds what followed a mark with the convolution alone.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import torch

from lightformers import reproduce
from lightformers.models.language.decoder import Decoder, DecoderConfig
from lightformers.reproduce import common, recall, shakespeare
from lightformers.reproduce.finding import Finding
from lightformers.tasks.probes import PROBES

CLAIM = (
    "Primer-EZ reaches the loss of a transformer with ReLU in at most four fifths of its steps, at equal parameters within one percent, "
    "and one layer of attention learns induction with the convolution and not without."
)
#: Times fewer steps that Primer-EZ must need.
FASTER = 1.25
_WIDTH, _LAYERS, _LR = 96, 4, 3e-3
_RELU, _GELU, _SWIGLU, _SQUARED = "ReLU", "GELU", "SwiGLU", "squared ReLU"
_CONVOLVED, _EZ, _PRIMER = "convolution", "Primer-EZ", "Primer"
_SPEED = "times fewer steps to ReLU's loss"
_ONE, _ONE_CONVOLVED = "one layer", "one layer, convolution"
_FOUND = "induction"
_INDUCTION = dataclasses.replace(PROBES["induction"], options={"length": 32, "vocab": 10})


def rows(arm: str, width: int = _WIDTH) -> dict[str, Any]:
    """A layer of an arm; feed-forwards of SwiGLU are narrower, so that parameters are equal."""
    convolved = {"kind": "primer", "heads": 4, "shared": arm == _PRIMER}
    plain = {"kind": "attention", "heads": 4}
    activation = "squared_relu" if arm in (_SQUARED, _EZ, _PRIMER) else "gelu" if arm == _GELU else "relu"
    forward = {"kind": "mlp", "hidden": 4 * width, "activation": activation}
    if arm == _SWIGLU:
        forward = {"kind": "swiglu", "hidden": 8 * width // 3}
    row = {"mixer": convolved if arm in (_CONVOLVED, _EZ, _PRIMER) else plain, "ffn": forward}
    return row | ({"ffn_norm": "post-output"} if arm == _PRIMER else {})


def build(arm: str, vocab: int, seed: int) -> Decoder:
    """A decoder of an arm, with the paper's norm (LayerNorm)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = DecoderConfig(vocab, _WIDTH, [rows(arm)] * _LAYERS, norm="layer", norm_eps=1e-6)
        return Decoder(config).eval()


def run(budget: float = common.FULL) -> Finding:
    """Train every arm once per seed in as many steps."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    play = shakespeare.Shakespeare.of(clock, 20_000)
    curves: dict[str, list[list[float]]] = {}

    def trial(arm: str) -> recall.Trial:
        def note(learnt: shakespeare.Learnt) -> dict[str, float]:
            curves.setdefault(arm, []).append(learnt.losses)
            return {}

        return play.trial(arm, partial(build, arm, play.vocab), _LR, note)

    names = (
        [_RELU, _SQUARED, _CONVOLVED, _EZ]
        if clock.few
        else [_RELU, _GELU, _SWIGLU, _SQUARED, _CONVOLVED, _EZ, _PRIMER]
    )
    count = clock.size(256, 16)
    single = {_ONE: {"kind": "attention", "heads": 2}, _ONE_CONVOLVED: {"kind": "primer", "heads": 2}}
    probes = [
        recall.on_probe(
            arm, partial(recall.decoder, [{"mixer": mixer, "ffn": {"kind": "mlp", "hidden": 64}}], _INDUCTION.vocab, 32),
            _INDUCTION, {_FOUND: {}}, 1e-2, count,
        )
        for arm, mixer in single.items()
    ]  # fmt: skip
    tasks = {"characters": (0.85, [trial(arm) for arm in names]), _FOUND: (0.15, probes)}
    found = recall.contest(clock, seeds, tasks)
    for arm in names:  # the first curve of each arm is of the rehearsal that sets the number of steps
        pairs = zip(curves[_RELU][-len(seeds) :], curves[arm][-len(seeds) :])
        found.scores[arm][_SPEED] = [sooner(relu, other) for relu, other in pairs]
    return _conclude(clock, seeds, found, curves, play.vocab)


def smooth(losses: list[float]) -> np.ndarray:
    """Means over a trailing twentieth of the steps."""
    span = max(len(losses) // 20, 1)
    total = np.cumsum([0.0, *losses])
    at = np.arange(1, len(losses) + 1)
    low = np.maximum(at - span, 0)
    return (total[at] - total[low]) / (at - low)


def sooner(old: list[float], new: list[float]) -> float:
    """Steps that `old` takes to its end, over the steps in which `new` is first as low; below 1 where it never is: the
    steps in which `old` was as low as `new` ever gets, over all."""
    a, b = smooth(old), smooth(new)
    wanted = a.min()
    if b.min() <= wanted:
        return float((np.argmax(a <= wanted) + 1) / (np.argmax(b <= wanted) + 1))
    return float((np.argmax(a <= b.min()) + 1) / (np.argmax(b <= b.min()) + 1))


def _conclude(
    clock: common.Clock,
    seeds: tuple[int, ...],
    found: recall.Contest,
    curves: dict[str, list[list[float]]],
    vocab: int,
) -> Finding:
    scores = found.scores
    fewer = scores[_EZ][_SPEED]
    bits = {
        arm: common.gain(scores[_RELU][shakespeare.BITS], scores[arm][shakespeare.BITS]) for arm in curves
    }
    induction = found.gain(_ONE_CONVOLVED, _ONE, _FOUND)
    verdict = common.together(reproduce.judge([x - FASTER for x in fewer]), reproduce.judge(induction, 0.2))
    sizes = {arm: sum(p.numel() for p in build(arm, vocab, 0).parameters()) for arm in curves}
    seconds = {arm: found.seconds[arm]["characters"] for arm in curves}
    table = [
        reproduce.row(arm, **cells, **({"parameters": sizes[arm], "milliseconds a step": round(1000 * seconds[arm], 1)} if arm in sizes else {}))
        for arm, cells in scores.items()
    ]  # fmt: skip
    return reproduce.conclude(
        slug="primer",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"Primer-EZ needs {common.said(fewer, False)} times fewer steps than ReLU to its loss, at "
            f"{seconds[_EZ] / seconds[_RELU]:.2f} times the time per step. Bits per character below ReLU's: "
            f"squared ReLU {common.said(bits[_SQUARED])}, convolution {common.said(bits[_CONVOLVED])}, both "
            f"{common.said(bits[_EZ])}. Accuracy of induction in one layer through the convolution {common.said(induction)}."
        ),
        table=table,
        baseline=_RELU,
        settings={
            "model": f"{_LAYERS} layers, width {_WIDTH}, 4 heads, rotary positions, LayerNorm; induction: one layer, width 32",
            "steps": {task: list(counts) for task, counts in found.steps.items()},
            "learning rate": {"characters": _LR, _FOUND: 1e-2},
            "probe": dict(_INDUCTION.options),
        },
        limits=(
            "Half a million parameters and some hundreds of steps, one learning rate for all. That the gain grows with compute, 500 million "
            "parameters and one-shot results cannot be shown. Losses are those of training steps, averaged over a twentieth of them."
            + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )  # fmt: skip
