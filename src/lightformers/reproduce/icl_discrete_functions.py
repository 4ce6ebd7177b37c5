"""Learning Boolean functions in context (arXiv 2310.03016): which ones, by attention and without it, with a teacher or not?

    lightformers reproduce icl-discrete-functions

Hardware: two cores. Time: five minutes. Small decoders read examples of a function that is new in every prompt and say each
label before it comes: conjunctions, conjunctions taught by a minimal sequence, parities of two variables, and labels of the
nearest earlier point. On the last, attention, linear attention with short convolutions and an LSTM of equal size see equal
prompts for equal steps. Expected by the paper: attention comes near the learner by elimination on conjunctions, knows no
more of parities than the input alone tells, finds the nearest point and the others do not; after a teaching sequence
conjunctions are known at once.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightformers import reproduce
from lightformers.bundle import Batch
from lightformers.reproduce import common, plots, small
from lightformers.reproduce.finding import Finding
from lightformers.tasks import boolean_functions as boolean
from lightformers.tasks.boolean_functions import Prompts
from lightformers.train import Settings, fit

CLAIM = (
    "A small transformer that has read most of a prompt of examples is within 0.05 of the right labels of the learner by "
    "elimination on conjunctions, gains less than 0.1 on parities of two variables over what the input alone tells, and labels by the nearest "
    "earlier point more often rightly than an LSTM of equal size, prompts and steps."
)
SIZE, POINTS, WIDTH, LAYERS = 6, 20, 64, 2
NEAR, CHANCE = 0.05, 0.1
_ROWS, _LR, _TESTED = 64, 3e-3, 400
_ATTENTION, _LINEAR, _RIVAL = "attention", "linear attention", "lstm"
#: Rows of `parts.mixers.table`; only the first and the last decide.
MIXERS: dict[str, Mapping[str, Any]] = {
    _ATTENTION: {"kind": "attention", "heads": 4, "rotary": False},
    _LINEAR: {"kind": "linear-attention", "heads": 4},
    _RIVAL: {"kind": small.LSTM},
}
_TAUGHT = "conjunction, taught"


@dataclass(frozen=True)
class Class:
    """A class of functions. learner: the row of `boolean.learners` that it is compared with. share: of the steps that a plain
    arm gets; arms of one class get equally many."""

    kind: str
    learner: str
    mixers: tuple[str, ...]
    teach: bool = False
    share: float = 1.0

    def steps(self, count: int) -> int:
        return max(int(self.share * count), 2)

    @property
    def first(self) -> int:
        """The first example whose label can be known at all."""
        return POINTS // 2 if self.kind == "nearest" else 0


CLASSES: dict[str, Class] = {
    "conjunction": Class("conjunction", "elimination", (_ATTENTION,), share=2.0),
    "sparse-parity": Class("sparse-parity", "gaussian", (_ATTENTION,), share=0.5),
    "nearest": Class("nearest", "neighbour", tuple(MIXERS)),
    _TAUGHT: Class("conjunction", "elimination", (_ATTENTION,), teach=True, share=0.5),
}


class Reader(nn.Module):
    """Prompts (batch, 2 points, size) -> (batch, points) scores of the label 1, each read at its x, before the label."""

    def __init__(self, mixer: str, seed: int, width: int = WIDTH) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.read = nn.Linear(SIZE, width)
        length = 2 * POINTS if mixer == _ATTENTION else None
        self.body = small.decoder(1, MIXERS[mixer], seed, LAYERS, width, length=length)

    def forward(self, rows: Tensor) -> Tensor:
        scores: Tensor = self.body(inputs_embeds=self.read(rows)).logits[:, 0::2, 0]
        return scores


def reader(mixer: str, seed: int) -> Reader:
    """Of the width with which it has as many parameters as attention, as nearly as multiples of 4 allow."""
    wanted = small.count(Reader(_ATTENTION, 0))
    width = WIDTH if mixer == _ATTENTION else small.fitted(wanted, lambda w: Reader(mixer, 0, w), 4, 256)
    return Reader(mixer, seed, width)


@dataclass(frozen=True)
class Fresh:
    """Prompts that never come again."""

    functions: Class
    seed: int
    rows: int = _ROWS

    def batch(self, position: int) -> Batch:
        made = drawn(self.functions, (1, self.seed, position), self.rows)
        return Batch({"rows": torch.from_numpy(boolean.interleaved(made))}, {"y": torch.from_numpy(made.y), "first": self.functions.first})  # fmt: skip


def drawn(functions: Class, seed: tuple[int, ...], count: int) -> Prompts:
    return boolean.prompts(functions.kind, seed, count, POINTS, SIZE, functions.teach, functions.first)


def objective(module: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy in nats, mean over the labels from the first that can be known."""
    first = batch.targets["first"]
    scores, wanted = module(**batch.inputs)[:, first:].float(), batch.targets["y"][:, first:] > 0
    return nn.functional.binary_cross_entropy_with_logits(scores, wanted.to(scores.dtype))


@torch.no_grad()
def right(module: nn.Module, made: Prompts) -> list[float]:
    """Share of right labels by the number of examples before."""
    said = module(torch.from_numpy(boolean.interleaved(made))) > 0
    return ((said.numpy() == (made.y > 0)).mean(0)).tolist()


def late(shares: list[float]) -> float:
    """Mean over the last quarter of the prompt."""
    return float(np.mean(shares[-(POINTS // 4) :]))


def at_once(shares: np.ndarray, taught: np.ndarray) -> float:
    """Mean over the three labels that follow each prompt's teaching sequence. shares: (count, points) right or not."""
    place = np.arange(shares.shape[1])
    return float(shares[(place >= taught[:, None]) & (place < taught[:, None] + 3)].mean())


@torch.no_grad()
def after_lesson(module: nn.Module, made: Prompts, taught: np.ndarray) -> float:
    """`at_once` of a model; `taught` may be that of other prompts, to compare at the same places."""
    said = module(torch.from_numpy(boolean.interleaved(made))) > 0
    return at_once(said.numpy() == (made.y > 0), taught)


def run(budget: float = common.FULL) -> Finding:
    """Every arm once per seed; evaluated on functions that no training saw."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    names = [n for n in CLASSES if not clock.few or n != _TAUGHT]
    runs = [(n, m) for n in names for m in CLASSES[n].mixers if not clock.few or m != _LINEAR]
    tested = clock.size(_TESTED, 40)
    steps = _plan(clock, runs, len(seeds))
    shares: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    lessons: dict[str, list[float]] = defaultdict(list)
    used = []
    for seed, count in clock.rounds(seeds, steps):
        used.append(count)
        models = {}
        for name, mixer in runs:
            model = models[name, mixer] = reader(mixer, seed)
            _train(model, CLASSES[name], CLASSES[name].steps(count), seed)
            shares[name, mixer].append(right(model, drawn(CLASSES[name], (2, seed), tested)))
        for name in names:
            made = drawn(CLASSES[name], (2, seed), tested)
            blind = "input alone" if name == "sparse-parity" else "null"
            for learner in (blind, CLASSES[name].learner):
                shares[name, learner].append((boolean.learners[learner](made) == made.y).mean(0).tolist())
        if _TAUGHT in names:
            taught, plain = (drawn(CLASSES[n], (2, seed), tested) for n in (_TAUGHT, "conjunction"))
            for name, made in ((_TAUGHT, taught), ("conjunction", plain)):
                lessons[name].append(after_lesson(models[name, _ATTENTION], made, taught.taught))
    return _conclude(clock, seeds, runs, shares, lessons, used, tested)


def _train(model: Reader, functions: Class, steps: int, seed: int) -> None:
    settings = Settings(steps=steps, lr=_LR, warmup=0.1, betas=(0.9, 0.99), precision="fp32", seed=seed)
    fit(model, Fresh(functions, seed), objective, settings)


def _plan(clock: common.Clock, runs: list[tuple[str, str]], seeds: int) -> int:
    """Steps that fit, of an arm with a share of 1."""
    if clock.budget < common.TINY:
        return 2
    step = 0.0
    for mixer in {m for _, m in runs}:
        model = reader(mixer, 0)
        _train(model, CLASSES["conjunction"], 2, 0)  # first calls are slow
        begun = time.monotonic()
        _train(model, CLASSES["conjunction"], 5, 0)
        step += (time.monotonic() - begun) / 5 * sum(CLASSES[n].share for n, m in runs if m == mixer)
    return max(int(clock.left(0.12) / seeds / step), 2)


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], runs: list[tuple[str, str]],
    shares: dict[tuple[str, str], list[list[float]]], lessons: dict[str, list[float]], used: list[int], tested: int,
) -> Finding:  # fmt: skip
    def ends(name: str, arm: str) -> list[float]:
        return [late(s) for s in shares[name, arm]]

    conjunction = common.gain(ends("conjunction", _ATTENTION), ends("conjunction", "elimination"))
    parity = common.gain(ends("sparse-parity", "input alone"), ends("sparse-parity", _ATTENTION))
    nearest = common.gain(ends("nearest", _ATTENTION), ends("nearest", _RIVAL))
    verdict = common.together(
        reproduce.judge(conjunction, -NEAR), reproduce.judge(parity, -CHANCE), reproduce.judge(nearest)
    )
    caution = ""
    commonest = [max(s, 1 - s) for s in ends("conjunction", "null")]
    if np.mean(common.gain(ends("conjunction", _ATTENTION), commonest)) < 0.1:
        verdict = "inconclusive"
        caution = " Nothing follows: attention has hardly learned conjunctions beyond their commonest label."
    arms = list(shares)
    table = [
        reproduce.row(
            f"{name}: {arm}",
            **{"right, last quarter": ends(name, arm)},
            **{
                "right, second quarter": [
                    float(np.mean(s[POINTS // 4 : POINTS // 2])) for s in shares[name, arm]
                ]
            },
        )
        for name, arm in sorted(arms, key=lambda a: list(CLASSES).index(a[0]))
    ]
    lesson = ""
    if lessons:
        table.append(reproduce.row("the three labels after a lesson", right=lessons[_TAUGHT]))
        table.append(reproduce.row("the same places, random examples", right=lessons["conjunction"]))
        lesson = (
            f"; right at once after a teaching sequence {np.mean(lessons[_TAUGHT]):.3f}, at the same places after random "
            f"examples {np.mean(lessons['conjunction']):.3f}"
        )
    drawings = {}
    for name in dict.fromkeys(n for n, _ in runs):
        first, lines = CLASSES[name].first, {}
        for arm in (a for n, a in arms if n == name):
            lines[arm] = [list(v) for v in zip(*(s[first:] for s in shares[name, arm]))]
        drawings[f"Right labels: {name}"] = plots.curves(
            "examples before", "right labels", list(range(first, POINTS)), lines, within=(0, 1)
        )
    sizes = {m: f"{small.count(reader(m, 0)):,}" for m in dict.fromkeys(m for _, m in runs)}
    return reproduce.conclude(
        slug="icl-discrete-functions",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"right labels in the last quarter: conjunctions by attention less elimination {common.said(conjunction)} (the "
            f"commonest label alone {np.mean(commonest):.3f}), parities by attention less input alone "
            f"{common.said([-p for p in parity])}, nearest point by attention less {_RIVAL} {common.said(nearest)}"
            f"{lesson}.{caution}"
        ),
        table=table,
        baseline=f"nearest: {_RIVAL}",
        settings={
            "model": f"{LAYERS} layers, attention of width {WIDTH} with learned positions, others of the width with which "
            "they have as many parameters",
            "parameters": sizes,
            "prompts": f"{POINTS} examples of {SIZE} variables",
            "nearest": f"{CLASSES['nearest'].first} points with random labels, the loss counts from there",
            "steps of an arm": dict(zip(map(str, seeds), used)),
            "steps of a class, as shares": {name: c.share for name, c in CLASSES.items()},
            "prompts of a batch": _ROWS,
            "learning rate": _LR,
            "test functions": tested,
        },
        limits=(
            f"{SIZE} variables, prompts of {POINTS} examples and hundreds of steps, where the paper has 28 variables, about 70 "
            "examples and 15,000 steps: what more training would still learn is not seen, nor are the other classes, "
            "pretrained bodies and large language models." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
        plots=drawings,
    )  # fmt: skip
