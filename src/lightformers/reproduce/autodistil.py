"""AutoDistil (arXiv 2201.12507): super-networks of separate size ranges, and relation loss as a guide to accuracy.

    lightformers reproduce autodistil

Hardware: two cores, five minutes. Teacher: all-MiniLM-L6-v2 (6 blocks, width 384, 12 heads), vocabulary trimmed to the
texts. Super-networks: 2 or 4 blocks, 6 or 12 heads, width 128, 192 or 256, ratio 2 or 4, cut out of the teacher and
distilled on WikiText-2 sentences for equal numbers of tokens. Expected: loss falls with size and ranks sizes as
fine-tuning on TREC does; two partitions are at least as good as one super-network at the ends. So few steps may leave
both inside the noise.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from lightformers import reproduce
from lightformers.bundle import Batch, Bundle
from lightformers.compress.calibration import batches
from lightformers.compress.elastic.autodistil import AutoDistil, overlap, paper_parameters
from lightformers.compress.elastic.relations import Relations
from lightformers.compress.elastic.shared import Shared
from lightformers.compress.elastic.size import Size, cut
from lightformers.compress.elastic.space import Space
from lightformers.compress.vocabulary import TrimVocabulary
from lightformers.reproduce import common
from lightformers.reproduce.finding import Finding
from lightformers.steps import Recipe, Run
from lightformers.tasks.embedding import Embedding

CLAIM = (
    "Two super-networks of separate widths beat one over the whole range at its ends for equal steps, and the relation "
    "loss ranks sub-networks as their accuracy after fine-tuning does."
)
_LENGTH = 32
_MAX_TOKENS = 1024
_FINE_LR = 5e-4
_ALL = AutoDistil(
    blocks=(2, 4), heads=(6, 12), width=(128, 192, 256), ratios=(2.0, 4.0), lr=1e-3, max_tokens=_MAX_TOKENS
)
_MIDDLE = Size(4, (6,) * 4, (768,) * 4, 192)
_ONE = "one super-network"
_TWO = "two partitions"
_UNIFORM = "one super-network, uniform sampling"
_ALONE = "one student of the middle size"
_ARMS: dict[str, list[AutoDistil]] = {
    _ONE: [_ALL],
    _TWO: [replace(_ALL, width=(128,)), replace(_ALL, width=(192, 256))],
    _UNIFORM: [replace(_ALL, sampling="uniform")],
    _ALONE: [
        replace(_ALL, blocks=(4,), heads=(6,), width=(192,), ratios=(4.0,), sampling="uniform", networks=1)
    ],
}
#: Share of the time that distillation gets; the rest is fine-tuning.
_SHARE = 0.75

Trained = list[tuple[Bundle, Space]]


def run(budget: float = common.FULL) -> Finding:
    """Distil every arm, compare relation losses on unseen text, fine-tune some sizes of the first arm; once per seed."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    arms = [_ONE, _TWO] if clock.few else list(_ARMS)
    texts = _texts(clock.size(5000, 300), clock.size(200, 16))
    trec = common.classification("trec", 2000, clock.size(900, 64))
    teacher = Recipe((TrimVocabulary(size=None if clock.few else 8000),)).apply(
        common.encoder(max_length=_LENGTH), texts
    )
    space = _ALL.space(teacher)
    sizes = [space.smallest, _MIDDLE, space.largest]
    if not clock.few:
        sizes = list(dict.fromkeys([*sizes, *space.some(9, np.random.default_rng(1))]))
    tuned = sizes[: 3 if clock.few else 6]
    tokens, fine = _plan(clock, teacher, texts, trec, len(arms), len(tuned), len(seeds))
    held_out = batches(teacher, texts.texts("verify"), 4 * _MAX_TOKENS)
    losses: dict[str, dict[Size, list[float]]] = {arm: {} for arm in arms}
    accuracy: dict[Size, list[float]] = {size: [] for size in tuned}
    used, ranks = [], []
    for seed, count in clock.rounds(seeds, tokens):
        used.append(count)
        for arm in arms:
            trained = _train(arm, teacher, texts, count, seed)
            for size, loss in _losses(trained, teacher, sizes, held_out).items():
                losses[arm].setdefault(size, []).append(loss)
            if arm == _ONE:
                for size in tuned:
                    score = _score(trained[0], size, trec, max(int(fine * count / tokens), 32), seed)
                    accuracy[size].append(score)
        ranks.append(spearman([losses[_ONE][s][-1] for s in tuned], [accuracy[s][-1] for s in tuned]))
    return _conclude(clock, seeds, losses, accuracy, ranks, used, fine, space, teacher, trec)


def _texts(count: int, held_out: int) -> Embedding:
    """WikiText-2 cut into sentences, drawn once."""
    text = common.text("wikitext2_small", "train")
    rows = [s.strip() for line in text.splitlines() for s in line.split(" . ") if len(s.split()) > 5]
    drawn = [{"text": rows[i]} for i in np.random.default_rng(0).permutation(len(rows))]
    drawn = drawn[: count + 2 * held_out]
    rest = drawn[count:]
    return Embedding.from_examples(
        {"train": drawn[:count], "valid": rest[:held_out], "test": rest[held_out:]}
    )


def _train(arm: str, teacher: Bundle, texts: Embedding, tokens: int, seed: int) -> Trained:
    """The super-networks of an arm, which share its tokens."""
    made = []
    for step in _ARMS[arm]:
        bundle = teacher.copy()
        space = step.space(bundle)
        step.train(bundle, texts, Run(teacher=teacher, tokens=max(tokens // len(_ARMS[arm]), 1), seed=seed))
        made.append((bundle, space))
    return made


def _losses(trained: Trained, teacher: Bundle, sizes: list[Size], held_out: list[Batch]) -> dict[Size, float]:
    """Relation loss on unseen text of each size that an arm holds."""
    found: dict[Size, float] = {}
    for bundle, space in trained:
        inside = [size for size in sizes if size in space]
        lesson = Relations(bundle, teacher)
        found |= dict(zip(inside, lesson.mean(Shared(bundle, space.nesting), inside, held_out)))
    return found


def _score(trained: tuple[Bundle, Space], size: Size, task: Any, tokens: int, seed: int) -> float:
    """Accuracy of a sub-network that is cut out and fine-tuned."""
    bundle, space = trained
    small = bundle.copy()
    cut(small.model, size, space.nesting)
    made = common.classifier(small, len(task.labels), seed)
    common.fine_tune(made, task, tokens, seed, _FINE_LR)
    return common.accuracy(made, task)


def spearman(a: list[float], b: list[float]) -> float:
    """Correlation of ranks, ties sharing theirs; 0 where one side does not vary."""

    def ranks(values: list[float]) -> np.ndarray:
        x = np.asarray(values)
        return np.asarray([(x < v).sum() + ((x == v).sum() - 1) / 2 for v in x])

    x, y = ranks(a), ranks(b)
    if x.std() == 0 or y.std() == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def _plan(
    clock: common.Clock, teacher: Bundle, texts: Embedding, task: Any, arms: int, tuned: int, seeds: int
) -> tuple[int, int]:
    """Tokens of one arm and of one fine-tuning that fit, from short timed ones."""
    probe = _MAX_TOKENS if clock.few else 4 * _MAX_TOKENS
    _train(_ONE, teacher, texts, 1, 0)  # first calls are slow: tokenizing, building
    begun = time.monotonic()
    trained = _train(_ONE, teacher, texts, probe, 0)
    distil = probe / (time.monotonic() - begun)
    small = trained[0][0].copy()
    made = common.classifier(small, len(task.labels), 0)
    result = common.fine_tune(made, task, 10**9, 0, _FINE_LR, steps=3)
    begun = time.monotonic()
    common.accuracy(made, task)
    other = 2 * (time.monotonic() - begun) + 0.3
    each = clock.left() / seeds - tuned * other
    fine = result.tokens / result.seconds
    return max(int(distil * each * _SHARE / arms), 64), max(int(fine * each * (1 - _SHARE) / tuned), 32)


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], losses: dict[str, dict[Size, list[float]]],
    accuracy: dict[Size, list[float]], ranks: list[float], used: list[int], fine: int, space: Space,
    teacher: Bundle, task: Any,
) -> Finding:  # fmt: skip
    ends = (space.smallest, space.largest)

    def at_ends(arm: str) -> list[float]:
        return [sum(np.log(v)) / 2 for v in zip(*(losses[arm][size] for size in ends))]

    parted = [float(a - b) for a, b in zip(at_ends(_ONE), at_ends(_TWO))]
    best = max(accuracy.values(), key=sum)
    verdict, caution = common.settled(
        common.together(reproduce.judge(parted), reproduce.judge([-r for r in ranks])), best, [task]
    )
    names = {space.smallest: "smallest", _MIDDLE: "middle", space.largest: "largest"}
    shared = Shared(teacher, space.nesting)
    table = []
    for arm, found in losses.items():
        others = [v for size, v in found.items() if size not in names]
        cells: dict[str, Any] = {f"loss, {names[s]}": v for s, v in found.items() if s in names}
        if others:
            cells["loss, mean of others"] = [sum(v) / len(others) for v in zip(*others)]
        table.append(reproduce.row(arm, **cells))
    for size, scores in accuracy.items():
        table.append(reproduce.row(f"fine-tuned: {size}", accuracy=scores))
    return reproduce.conclude(
        slug="autodistil",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"log relation loss at both ends, one super-network less two partitions: {common.said(parted)}; rank "
            f"correlation of loss and accuracy over {len(accuracy)} sizes: {common.said(ranks)}.{caution}"
        ),
        table=table,
        baseline=_ONE,
        settings={
            "teacher": "all-MiniLM-L6-v2: 6 blocks, width 384, 12 heads of 32; tokens: " + str(len(teacher.processor)),
            "sizes": {
                str(s): {"parameters": shared.parameters_of(s), "by the paper's formula": paper_parameters(
                    s, vocabulary=len(teacher.processor))} for s in accuracy
            },
            "sizes in the whole space": space.count,
            "partitions overlap": overlap(*(s.space(teacher) for s in _ARMS[_TWO])),
            "tokens per arm": dict(zip(map(str, seeds), used)),
            "tokens of a fine-tuning": fine,
            "learning rates": {"distillation": _ALL.lr, "fine-tuning": _FINE_LR},
            "data": {"texts": "WikiText-2 sentences of at most 32 tokens", "TREC": len(task.splits["train"])},
        },
        limits=(
            "Minutes instead of days of distillation, a small teacher and a trimmed vocabulary; equal numbers of tokens, "
            "of which the single student uses each for one network and the others for four (two partitions: half the "
            "tokens each). GLUE and the comparison with other students cannot be shown." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )  # fmt: skip
