"""Long Range Arena (arXiv 2011.04006): is one efficient attention the best everywhere, and which ones are fast?

    lightformers reproduce long-range-arena

Hardware: two cores, five minutes. One encoder of two layers and width 64 learns nested lists, classes of news from bytes and
handwritten digits from pixels, with eleven attentions in turn: equal steps, and feed-forwards as wide as gives all the
parameters of the one with softmax attention. Then each attention alone, forward, at 256 to 4,096 positions.
Expected: the order of the attentions on one task says less about another task than about another seed of its own; attentions
of linear cost overtake softmax between 512 and 2,048 positions.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from lightformers import measure, reproduce
from lightformers.measure.allocation import allocated
from lightformers.models.language.encoder import EncoderConfig, EncoderForSequenceClassification
from lightformers.models.matching import Matched, match, parameters
from lightformers.parts.mixers.table import MIXERS, make
from lightformers.reproduce import common
from lightformers.reproduce.finding import Finding
from lightformers.tasks import arena, sequences
from lightformers.tasks.sequences import Sequences, Split
from lightformers.train import Feed, Settings, fit

CLAIM = (
    "No attention is the best everywhere: their order on one task agrees less with their order on another than with another "
    "seed's on the same task; and linear attention, Linformer and Performer are at least twice as fast as softmax attention "
    "at 4,096 positions."
)
FASTER = 2.0
WIDTH, HEADS, LAYERS, HIDDEN, BATCH = 64, 4, 2, 128, 16
_LR = 4e-3
_BASE, _QUICK = "softmax", ("linear", "linformer", "performer")
#: Windows, ranks and buckets for texts of 48 to 64 tokens.
ARMS: dict[str, dict[str, Any]] = {
    _BASE: {},
    "local": {"block": 8},
    "sparse": {"block": 8, "columns": 2},
    "longformer": {"window": 8},
    "linformer": {"rank": 8},
    "reformer": {"buckets": 8, "chunk": 8, "rounds": 1},
    "sinkhorn": {"block": 8},
    "synthesizer": {"rank": 8},
    "bigbird": {"block": 8, "random": 1},
    "linear": {},
    "performer": {"features": 64},
}
_LENGTHED = ("linformer", "sinkhorn", "synthesizer", "bigbird")


@dataclass
class Course:
    """What a run trains: tasks, arms, the feed-forward of each model."""

    tasks: dict[str, Split]
    arms: list[str]
    sizes: dict[tuple[str, str], Matched]

    @property
    def cells(self) -> list[tuple[str, str]]:
        return list(itertools.product(self.tasks, self.arms))


def run(budget: float = common.FULL) -> Finding:
    """Every attention on every task once per seed, with as many steps as fit; then speed and memory by length."""
    clock = common.Clock(budget)
    seeds = reproduce.seeds(2)
    course = prepare(clock)
    lengths = (256, 512) if clock.short else (256, 512, 1024, 2048, 4096)
    speeds = {n: speed(course.arms, n, 3 if clock.short else 9) for n in lengths}
    memory = {arm: allocated(call) / 2**20 for arm, call in _calls(course.arms, lengths[-1]).items()}
    steps = _plan(clock, course, len(seeds))
    scores: dict[tuple[str, str], list[float]] = {cell: [] for cell in course.cells}
    used = []
    for seed, count in clock.rounds(seeds, steps):
        used.append(count)
        for task, arm in course.cells:
            scores[task, arm].append(_score(course, task, arm, count, seed))
    return _conclude(clock, seeds, course, scores, used, speeds, memory)


def prepare(clock: common.Clock) -> Course:
    """The data of the tasks, and widths that make all models equally large."""
    tasks = {
        "listops": arena.load(
            "listops", low=17, high=49, depth=3, train=clock.size(4000, 64), test=clock.size(1000, 32)
        )
    }
    if not clock.short:
        tasks["bytes"] = news(clock)
    tasks["image"] = arena.load("image", train=clock.size(1400, 64), test=clock.size(397, 32), side=8)
    arms = [_BASE, "local", *_QUICK] if clock.short else list(ARMS)
    sizes = {}
    for name, split in tasks.items():
        target = parameters(build(_BASE, split, HIDDEN))
        for arm in arms:
            sizes[name, arm] = match(partial(build, arm, split), target, step=4)
    return Course(tasks, arms, sizes)


def news(clock: common.Clock, length: int = 64) -> Split:
    """AG News as bytes: which of four sections is a text from?"""
    task = common.classification("ag_news", clock.size(4000, 64), clock.size(1000, 32))

    def part(examples: Sequence[Any]) -> Sequences:
        rows = [arena.encode(e["text"], length) for e in examples]
        return Sequences(rows, np.array([e["label"] for e in examples], np.int64))

    train, test = part(task.splits["train"]), part(task.splits["verify"])
    return Split(train, test, len(task.labels), 257, length, "sections of news, as bytes")


def options(arm: str, length: int) -> dict[str, Any]:
    """Of the mixer, for texts of at most so many tokens."""
    return {"heads": HEADS, **ARMS[arm], **({"length": length} if arm in _LENGTHED else {})}


def build(arm: str, split: Split, hidden: int) -> nn.Module:
    """A model with random weights."""
    layer = {
        "mixer": {"kind": arm, **options(arm, split.length)},
        "ffn": {"kind": "mlp", "hidden": hidden, "activation": "gelu", "bias": True},
    }
    config = EncoderConfig(
        split.vocab, WIDTH, [layer] * LAYERS, max_position_embeddings=split.length, classifier_hidden=WIDTH,
        num_labels=split.classes,
    )  # fmt: skip
    return EncoderForSequenceClassification(config)


def _score(course: Course, task: str, arm: str, steps: int, seed: int) -> float:
    """Accuracy after training from scratch."""
    split = course.tasks[task]
    model = _trained(course, task, arm, steps, seed)
    return sequences.score(model, split.test, 2 * BATCH).value


def _trained(course: Course, task: str, arm: str, steps: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    split = course.tasks[task]
    model = build(arm, split, course.sizes[task, arm].width)
    train = split.train
    feed = Feed(range(len(train)), lambda index, _: train.batch(index), train.lengths, BATCH * split.length, BATCH, seed=seed)  # fmt: skip
    settings = Settings(steps=max(steps, 1), lr=_LR, warmup=0.1, precision="fp32", seed=seed)
    fit(model, feed, sequences.class_loss, settings)
    return model.eval()


def _plan(clock: common.Clock, course: Course, seeds: int) -> int:
    """Steps that fit, from timed ones of every model."""
    few, each, fixed = (1 if clock.short else 3), 0.0, 0.0
    for task, arm in course.cells:
        _trained(course, task, arm, 1, 99)  # first calls are slow
        begun = time.monotonic()
        model = _trained(course, task, arm, few, 99)
        each += (time.monotonic() - begun) / few
        if not clock.short:
            begun = time.monotonic()
            sequences.score(model, course.tasks[task].test, 2 * BATCH)
            fixed += time.monotonic() - begun
    return max(int((0.9 * clock.left(0.1) / seeds - fixed) / each), 2)


def _calls(arms: Sequence[str], n: int) -> dict[str, Callable[[], object]]:
    """Each attention with its projections on one text of n tokens, forward."""
    x = torch.randn(1, n, WIDTH, generator=torch.Generator().manual_seed(0))
    return {arm: partial(_forward, make(MIXERS, arm, WIDTH, **options(arm, n)).eval(), x) for arm in arms}


@torch.no_grad()
def _forward(mixer: nn.Module, x: torch.Tensor) -> None:
    mixer(x)


def speed(arms: Sequence[str], n: int, rounds: int) -> dict[str, tuple[float, Any]]:
    """arm -> milliseconds at n positions, and how many times as fast as softmax attention, paired."""
    timed = measure.compare(_calls(arms, n), rounds)
    return {arm: (1e3 * t.median, measure.paired(timed[_BASE], t)) for arm, t in timed.items()}


def agreement(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation, ties at their mean rank; 0 where all of one are equal."""
    a, b = (_ranks(np.asarray(x, float)) for x in (one, other))
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / size) if size else 0.0


def _ranks(x: np.ndarray) -> np.ndarray:
    """1 for the smallest."""
    less, equal = (x[None] < x[:, None]).sum(1), (x[None] == x[:, None]).sum(1)
    return less + (equal + 1) / 2


def steadiness(scores: dict[tuple[str, str], list[float]]) -> dict[str, tuple[float, float]]:
    """task -> mean rank correlation of its seeds with one another, and with other seeds of other tasks."""
    tasks, arms = (list(dict.fromkeys(part)) for part in zip(*scores))
    count = len(next(iter(scores.values())))

    def order(task: str, seed: int) -> list[float]:
        return [scores[task, arm][seed] for arm in arms]

    pairs = list(itertools.permutations(range(count), 2))
    out = {}
    for task in tasks:
        own = [agreement(order(task, i), order(task, j)) for i, j in pairs]
        others = [agreement(order(task, i), order(t, j)) for t in tasks if t != task for i, j in pairs]
        out[task] = (float(np.mean(own)), float(np.mean(others)))
    return out


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], course: Course, scores: dict[tuple[str, str], list[float]],
    used: list[int], speeds: dict[int, dict[str, tuple[float, Any]]], memory: dict[str, float],
) -> Finding:  # fmt: skip
    longest = max(speeds)
    steady = steadiness(scores)
    order = reproduce.judge([own - other for own, other in steady.values()])
    slowest = min((speeds[longest][arm][1] for arm in _QUICK), key=lambda f: f.low)
    quick: Any = "inconclusive"
    if longest == 4096 and slowest.low > FASTER:
        quick = "holds here"
    elif longest == 4096 and slowest.high < FASTER:
        quick = "does not hold here"
    verdict = common.together(order, quick)
    mean = {cell: float(np.mean(values)) for cell, values in scores.items()}
    best = {t: course.arms[int(np.argmax([mean[t, arm] for arm in course.arms]))] for t in course.tasks}
    ignorant = [t for t, arm in best.items() if mean[t, arm] - course.tasks[t].chance < 0.05]
    caution = ""
    if ignorant:
        verdict, caution = "inconclusive", f" Nothing follows: {', '.join(ignorant)} was hardly learnt."
    first = {
        arm: next(
            (n for n in sorted(speeds) if all(speeds[m][arm][1].low > 1 for m in speeds if m >= n)), None
        )
        for arm in course.arms
    }
    places = {arm: float(np.mean([_ranks(np.array([-mean[t, a] for a in course.arms]))[i] for t in course.tasks]))
              for i, arm in enumerate(course.arms)}  # fmt: skip
    table = [
        reproduce.row(
            arm,
            **{task: scores[task, arm] for task in course.tasks},
            mean_rank=round(places[arm], 2),
            **{f"ms at {n}": round(speeds[n][arm][0], 3) for n in speeds},
            **{f"speed-up at {longest}": round(speeds[longest][arm][1].estimate, 2)},
            **{f"MiB at {longest}": round(memory[arm], 2)},
            faster_from=first[arm] or "-",
            parameters=round(float(np.mean([course.sizes[t, arm].ratio for t in course.tasks])), 3),
        )
        for arm in course.arms
    ]
    agreed = "; ".join(f"{t} {own:.2f} (other tasks {other:.2f})" for t, (own, other) in steady.items())
    return reproduce.conclude(
        slug="long-range-arena",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            "best: " + ", ".join(f"{arm} on {task} ({mean[task, arm]:.3f})" for task, arm in best.items())
            + f"; rank correlation of two seeds on one task: {agreed}; at {longest} positions "
            + ", ".join(f"{arm} is {speeds[longest][arm][1].estimate:.1f} times as fast" for arm in _QUICK)
            + f" as softmax attention; best mean rank: {min(places, key=lambda arm: places[arm])}." + caution
        ),
        table=table,
        baseline=_BASE,
        settings={
            "model": f"encoder, {LAYERS} layers, width {WIDTH}, {HEADS} heads, feed-forward {HIDDEN} with softmax attention",
            "attentions": {arm: str(ARMS[arm]) for arm in course.arms},
            "feed-forwards": {f"{arm}, {task}": course.sizes[task, arm].width for task, arm in course.cells},
            "steps": dict(zip(map(str, seeds), used)),
            "learning rate": _LR,
            "data": {t: f"{s.about}; {len(s.train)} to train on, chance {s.chance:.3f}" for t, s in course.tasks.items()},
            "parameters": "in the table: beside those of the model with softmax attention",
        },
        limits=(
            "Texts of 48 to 64 tokens instead of 1,000 to 16,000, three tasks of six, some hundred steps at one learning rate, "
            "no tuning by attention: neither the paper's figures nor Path-X. Windows and ranks were made smaller with the "
            "texts. Speeds are of these implementations in torch, forward, one text." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
        plots={"speed": {"positions": list(speeds), **{arm: [speeds[n][arm][0] for n in speeds] for arm in course.arms}}},
    )  # fmt: skip
