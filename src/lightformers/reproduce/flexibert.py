"""FlexiBERT (arXiv 2205.11656): does BOSHNAS find good encoders of unlike layers sooner than chance?

    lightformers reproduce flexibert

Hardware: two cores, five minutes. 56 encoders of two and three layers (a quarter of them with equal layers) are each trained
from nothing on TREC for a few seconds; then searches of 20 queries replay their scores ten times: BOSHNAS, a Gaussian
process with expected improvement, chance, and chance among equal layers alone. Expected: BOSHNAS meets one of the best 5 %
in fewer queries than chance; what unlike layers add at equal size is small or nothing.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lightformers import reproduce
from lightformers.bundle import Bundle
from lightformers.compress.elastic.architecture_graph import Architecture
from lightformers.compress.elastic.boshnas import Boshnas, Library
from lightformers.compress.elastic.boshnas_surrogates import Fitting
from lightformers.compress.elastic.flexibert import FlexiSpace, homogeneous, library_of
from lightformers.models.language.flexibert import FlexiBERT, FlexiBERTConfig
from lightformers.reproduce import common
from lightformers.reproduce.finding import Finding
from lightformers.runners import build
from lightformers.steps import Deploy
from lightformers.train import Feed, Settings, fit

CLAIM = (
    "BOSHNAS meets one of the best 5 % of a library of encoders in fewer queries than random search, and encoders whose "
    "layers differ are better than those of equal layers and size."
)
SPACE = FlexiSpace(
    (2, 3), (32, 64), (2,), {"sa": ("sdp",), "l": ("dct",), "c": (5,)}, (1,), (64, 128), stack=1
)
_START, _LENGTH, _LR = 5, 24, 2e-3
_BOSHNAS, _GP, _CHANCE, _EQUAL = "BOSHNAS", "Gaussian process, EI", "random", "random, equal layers only"
#: All points in one batch and higher rates: per point as in the paper, one search alone would take minutes.
_FITTING = Fitting(epochs=30, batch=64, rate=2e-2, natural_rate=1.0)
#: Encoders count as equally large within this share of their parameters.
_NEAR = 0.1


def run(budget: float = common.FULL) -> Finding:
    """Train every encoder once, then replay the searches on their scores."""
    clock = common.Clock(budget)
    task = common.classification("trec", clock.size(3800, 128), clock.size(1500, 64))
    words = vocabulary([e["text"] for e in task.splits["train"]])
    encoders = _library(clock.size(56, 8))
    again = encoders[: clock.size(6, 2)]  # trained twice: how much of a score is chance
    steps = _plan(clock, encoders, words, task, len(encoders) + len(again))
    scores = [_score(a, words, task, steps, seed=0) for a in encoders]
    noise = [a - _score(e, words, task, steps, seed=1) for a, e in zip(scores, again)]
    library = library_of(encoders, pairs=0.3)
    plain = Library(library.items, library.points)  # no weights are handed on in a replay
    seeds = reproduce.seeds(2 if clock.short else 10)
    queries = min(20, len(encoders))
    curves: dict[str, list[list[float]]] = {arm: [] for arm in (_BOSHNAS, _GP, _CHANCE, _EQUAL)}
    for seed in seeds:
        for arm, order in _orders(plain, scores, queries, seed).items():
            best = np.maximum.accumulate([scores[i] for i in order]).tolist()
            curves[arm].append(best + [best[-1]] * (queries - len(best)))
    return _conclude(clock, seeds, task, words, encoders, scores, noise, library, curves, steps)


@dataclass(frozen=True)
class Words:
    """A tokenizer of whole words in small letters: 0 is padding, 1 every unknown word."""

    known: tuple[str, ...]
    pad_token_id: int = 0
    padding_side: str = "right"

    def __call__(
        self, texts: Sequence[str], pairs: Any = None, max_length: int | None = None, **options: Any
    ) -> dict[str, list[list[int]]]:
        number = {word: i for i, word in enumerate(self.known, 2)}
        return {
            "input_ids": [[number.get(w, 1) for w in t.lower().split()][:max_length] or [1] for t in texts]
        }


def vocabulary(texts: Sequence[str]) -> Words:
    """Words that occur twice or more."""
    counts = Counter(word for text in texts for word in text.lower().split())
    return Words(tuple(sorted(word for word, n in counts.items() if n > 1)))


def _library(count: int) -> list[Architecture]:
    """Drawn once: a quarter of equal layers, the rest of unlike ones, shuffled."""
    rng, every = np.random.default_rng(0), list(SPACE)
    equal = [a for a in every if homogeneous(a)]
    unlike = [a for a in every if not homogeneous(a)]
    some = min(count // 4, len(equal))
    chosen = [equal[i] for i in rng.choice(len(equal), some, replace=False)]
    chosen += [unlike[i] for i in rng.choice(len(unlike), count - some, replace=False)]
    return [chosen[i] for i in rng.permutation(count)]


def _config(architecture: Architecture, words: Words) -> FlexiBERTConfig:
    return FlexiBERTConfig(
        architecture, words=len(words.known) + 2, length=_LENGTH, dropout=0.0, pooler=False
    )


def _score(architecture: Architecture, words: Words, task: Any, steps: int, seed: int) -> float:
    """Accuracy after so many steps of training from random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = FlexiBERT(_config(architecture, words))
    model = common.Classifier(encoder, encoder.width, len(task.labels), seed)
    bundle = Bundle(model.eval(), words, "text-classification", max_length=_LENGTH)
    feed = Feed.of(bundle, task.training_examples(True), max_tokens=2048, max_examples=32, seed=seed)
    settings = Settings(
        steps=steps, lr=_LR, warmup=0.1, precision="fp32", seed=seed
    )  # at these widths the quickest
    fit(model, feed, lambda module, batch: task.loss(module(**batch.inputs), batch), settings)
    runner = build(bundle, Deploy("torch", "fp32", "sorted", batch_size=128))
    try:
        return float(task.evaluate(runner).value)
    finally:
        runner.close()


def _plan(clock: common.Clock, encoders: list[Architecture], words: Words, task: Any, trainings: int) -> int:
    """Steps of a training, so that all take about 60 % of what is left."""
    probe = encoders[:6] if not clock.short else encoders[:1]
    for architecture in probe[:1]:
        _score(architecture, words, task, 1, 0)  # first calls are slow
    seconds = []
    for steps in (1, 1 + clock.size(20, 2)):
        begun = time.monotonic()
        for architecture in probe:
            _score(architecture, words, task, steps, 0)
        seconds.append((time.monotonic() - begun) / len(probe))
    fixed, each = seconds[0], max(seconds[1] - seconds[0], 1e-4) / clock.size(20, 2)
    return max(int((0.6 * clock.left() / trainings - fixed) / each), 2)


def _orders(
    library: Library[Architecture], scores: list[float], queries: int, seed: int
) -> dict[str, list[int]]:
    """Arm -> indices in the order in which it asks for them; all begin with the same random ones, but the last."""
    table = dict(zip(library.items, scores))
    start = min(_START, queries)
    search = Boshnas(start=start, patience=queries, steps=20, fitting=_FITTING, seed=seed)
    found = search.search(library, lambda a, _: table[a], queries)
    rng = np.random.default_rng(seed)
    chance = rng.permutation(len(scores)).tolist()
    equal = [i for i in chance if homogeneous(library.items[i])]
    return {
        _BOSHNAS: [q.index for q in found.queries],
        _GP: gaussian_process(library.points.double().numpy(), scores, chance[:start], queries),
        _CHANCE: chance[:queries],
        _EQUAL: equal[:queries],
    }


def gaussian_process(
    points: np.ndarray, scores: Sequence[float], start: Sequence[int], queries: int
) -> list[int]:
    """Indices asked for by the largest expected improvement under a Gaussian process.

    Squared-exponential kernel on points (n, d); length and noise of the largest marginal likelihood on a grid.
    """
    squared = ((points[:, None] - points[None]) ** 2).sum(-1)
    middle, asked = float(np.median(squared[squared > 0])), list(start)
    while len(asked) < queries:
        y = np.array([scores[i] for i in asked])
        y = (y - y.mean()) / max(y.std(), 1e-9)
        best = None
        for length in (0.1, 0.3, 1.0, 3.0):
            kernel = np.exp(-squared / (2 * length * middle))
            for noise in (0.01, 0.1, 0.5):
                low = np.linalg.cholesky(kernel[np.ix_(asked, asked)] + noise * np.eye(len(asked)))
                inner = np.linalg.solve(low, y)
                likelihood = -0.5 * inner @ inner - np.log(np.diag(low)).sum()
                if best is None or likelihood > best[0]:
                    across = np.linalg.solve(low, kernel[asked])
                    best = (likelihood, across.T @ inner, np.sqrt(np.maximum(1 - (across**2).sum(0), 1e-12)))
        assert best is not None
        mean, spread = best[1], best[2]
        z = (mean - y.max()) / spread
        below = np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in z])
        gain = (mean - y.max()) * below + spread * np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
        gain[asked] = -np.inf
        asked.append(int(gain.argmax()))
    return asked


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, of numbers without ties worth speaking of."""
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


def _at_equal_size(encoders: list[Architecture], scores: list[float], words: Words) -> list[float]:
    """Per encoder of equal layers: mean score of the others within 10 % of its parameters, less its own."""
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in FlexiBERT(_config(a, words)).parameters()) for a in encoders]
    out = []
    for i, architecture in enumerate(encoders):
        near = [
            scores[j] for j, size in enumerate(sizes)
            if not homogeneous(encoders[j]) and abs(size - sizes[i]) <= _NEAR * sizes[i]
        ]  # fmt: skip
        if homogeneous(architecture) and near:
            out.append(sum(near) / len(near) - scores[i])
    return out


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], task: Any, words: Words, encoders: list[Architecture],
    scores: list[float], noise: list[float], library: Library[Architecture], curves: dict[str, list[list[float]]], steps: int,
) -> Finding:  # fmt: skip
    queries = len(curves[_CHANCE][0])
    top = sorted(scores)[-max(round(0.05 * len(scores)), 1)]

    def met(arm: str) -> list[float]:
        return [next((i for i, v in enumerate(c, 1) if v >= top), queries + 1) for c in curves[arm]]

    unlike = _at_equal_size(encoders, scores, words)
    better = reproduce.judge(unlike) if len(unlike) > 1 else "inconclusive"
    sooner = reproduce.judge(common.gain(met(_CHANCE), met(_BOSHNAS)))
    verdict, caution = common.settled(common.together(sooner, better), [max(scores)], [task])
    pair = np.triu_indices(len(scores), 1)
    values, points = np.array(scores), library.points
    alike = rank_correlation(
        torch.cdist(points, points).numpy()[pair], np.abs(values[:, None] - values)[pair]
    )
    halfway = queries // 2
    return reproduce.conclude(
        slug="flexibert",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"queries until one of the best 5 % was met, less than random search: {common.said(common.gain(met(_CHANCE), met(_BOSHNAS)))} "
            f"by BOSHNAS, {common.said(common.gain(met(_CHANCE), met(_GP)))} by a Gaussian process ({sooner}). Unlike layers against "
            f"equal ones at equal size: {common.said(unlike) if unlike else 'no pair'} of accuracy ({better}). Distance of points "
            f"against difference of scores: rank correlation {alike:+.2f}. Two trainings of one encoder differ by "
            f"{np.abs(noise).mean():.3f} on average, the library by {np.std(scores):.3f} (standard deviation).{caution}"
        ),
        table=[
            reproduce.row(
                arm,
                **{
                    "queries until the top 5 %": met(arm),
                    f"best after {halfway}": [c[halfway - 1] for c in curves[arm]],
                    f"best after {queries}": [c[-1] for c in curves[arm]],
                },
            )
            for arm in curves
        ],
        baseline=_CHANCE,
        settings={
            "library": f"{len(encoders)} of {SPACE.count} encoders, {sum(map(homogeneous, encoders))} of them of equal layers",
            "training": f"{steps} steps of at most 32 questions of TREC from random weights, learning rate {_LR:g}",
            "verified on": len(task.splits["verify"]),
            "accuracies": {"best": max(scores), "median": float(np.median(scores)), "worst": min(scores)},
            "not met counts as": queries + 1,
            "surrogates": "batches of all points, 30 epochs, rates 20 and 400 times the paper's; 20 steps of descent",
        },
        limits=(
            "Scores of short trainings from nothing on one small task, replayed: a search that trains and hands weights on "
            "was not run. GLUE after pre-training cannot be shown here." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
        plots={"best so far": {arm: np.mean(rows, 0).tolist() for arm, rows in curves.items()}},
    )  # fmt: skip
