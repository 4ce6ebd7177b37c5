"""Minitron (arXiv 2407.14679): cut a trained model and distil, or train a small one from scratch?

    lightformers reproduce minitron

Hardware: two cores, five minutes. A character decoder (6 blocks, width 128, 4 heads) is trained on Tiny Shakespeare and
cut to width 96, three heads and half of the feed-forward. Equal steps for: scored cut + KL, scored cut + labels, random cut +
KL, and the same shape from scratch. Expected: both scored cuts far ahead of scratch; scored before random right
after the cut, less so after retraining; KL at least as good as labels.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from lightformers import anatomy, reproduce
from lightformers.bundle import Bundle
from lightformers.compress import Minitron, MinitronRetrain
from lightformers.compress.prune import importance
from lightformers.compress.prune.minitron import cut
from lightformers.reproduce import characters, common
from lightformers.reproduce.finding import Finding
from lightformers.steps import Recipe, Run

CLAIM = (
    "A model cut out of a larger one by activation scores and distilled from it reaches a lower loss than the same shape "
    "trained from scratch for equal steps, and no higher one than when it is retrained on labels."
)
_LR = 1e-3
_RETRAIN_LR = 7e-4
_STEP = Minitron(width=0.75, channels=0.5, examples=64)
_KL, _LABELS, _RANDOM, _SCRATCH = "scored cut + KL", "scored cut + labels", "random cut + KL", "from scratch"
_ARMS = (_KL, _LABELS, _RANDOM, _SCRATCH)
#: Steps of the teacher for each step of retraining; it costs about three times as much as an arm's.
_TEACHER = 3


def run(budget: float = common.FULL) -> Finding:
    """One teacher per seed; every arm gets the same steps on the same data."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    text = {part: common.text("tinyshakespeare", part) for part in ("train", "valid")}
    letters = characters.alphabet(*text.values())
    cut_at = clock.size(len(text["train"]), 40_000)
    job = characters.task(
        characters.windows(text["train"][:cut_at]), characters.windows(text["valid"][: clock.size(60_000, 6_000)])
    )  # fmt: skip
    arms = tuple(a for a in _ARMS if not (clock.short and a == _LABELS))
    steps = _plan(clock, letters, job, len(arms), len(seeds))
    scores: dict[str, dict[str, list[float]]] = {}
    used = []
    for seed, count in clock.rounds(seeds, steps):
        used.append(count)
        for arm, cells in _one(letters, job, arms, count, seed).items():
            for cell, value in cells.items():
                scores.setdefault(arm, {}).setdefault(cell, []).append(value)
    return _conclude(clock, seeds, scores, used, letters, job)


def _one(
    letters: characters.Characters, job: Any, arms: tuple[str, ...], steps: int, seed: int
) -> dict[str, dict[str, float]]:  # fmt: skip
    teacher = characters.decoder(letters, seed, blocks=6)
    characters.train(teacher, job, _TEACHER * steps, seed, _LR)
    out = {"teacher": {"loss after retraining": characters.loss(teacher, job)}}
    for arm in arms:
        small = _start(teacher, job, arm, seed)
        out[arm] = {"loss before": characters.loss(small, job)}
        if arm in (_KL, _RANDOM):
            # the feed of the distilling steps counts real tokens; windows are all of one length
            tokens = steps * 16 * characters.LENGTH
            step = MinitronRetrain(lr=_RETRAIN_LR, max_tokens=16 * characters.LENGTH, warmup=0.1)
            step.apply(small, job, Run(teacher=teacher, tokens=tokens, seed=seed))
        else:
            characters.train(small, job, steps, seed, _LR if arm == _SCRATCH else _RETRAIN_LR)
        out[arm]["loss after retraining"] = characters.loss(small, job)
    return out


def _start(teacher: Bundle, job: Any, arm: str, seed: int) -> Bundle:
    """What an arm trains: a cut of the teacher, or random weights of the same shape."""
    if arm == _SCRATCH:
        found = anatomy.of(_start(teacher, job, _KL, seed).model)
        first = found.blocks[0]
        assert first.attention and first.feed_forward
        return characters.decoder(
            teacher.processor, seed + 100, len(found.blocks), found.width, first.attention.heads, first.feed_forward.width
        )  # fmt: skip
    if arm != _RANDOM:
        return Recipe([_STEP]).apply(teacher, job, Run(seed=seed))
    known = importance.measure(teacher, job, Run(seed=seed), _STEP.examples)
    generator = torch.Generator().manual_seed(seed)
    random = importance.Importance(
        {i: torch.rand(s.shape, generator=generator) for i, s in known.channels.items()},
        {k: torch.rand(s.shape, generator=generator) for k, s in known.heads.items()},
        torch.rand(known.hidden.shape, generator=generator),
    )
    return cut(teacher.copy(), job, Run(seed=seed), _STEP.shape, random, _STEP)


def _plan(clock: common.Clock, letters: characters.Characters, job: Any, arms: int, seeds: int) -> int:
    """Steps of retraining that fit, from timed ones."""
    _one(letters, job, (_KL,), 1, 99)  # first calls are slow
    begun = time.monotonic()
    _one(letters, job, (_KL, _SCRATCH), 1, 99)
    fixed = (time.monotonic() - begun) * (arms + 1) / 3
    begun = time.monotonic()
    _one(letters, job, (_KL,), 5, 99)
    # four more steps of an arm and twelve of the teacher: what an arm's own cost is about a half of that
    four = max(time.monotonic() - begun - fixed * 2 / (arms + 1), 1e-3)
    each = four / 4 * (0.55 + 0.45 * arms)
    return max(int((clock.left() / seeds - fixed) / each), 2)


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], scores: dict[str, dict[str, list[float]]], used: list[int],
    letters: characters.Characters, job: Any,
) -> Finding:  # fmt: skip
    def after(arm: str) -> list[float]:
        return scores[arm]["loss after retraining"]

    scratch = common.gain(after(_SCRATCH), after(_KL))
    random = common.gain(after(_RANDOM), after(_KL))
    first = common.gain(scores[_RANDOM]["loss before"], scores[_KL]["loss before"])
    verdicts = [reproduce.judge(scratch)]
    labels = "not tried"
    if _LABELS in scores:
        over = common.gain(after(_LABELS), after(_KL))
        verdicts.append(reproduce.judge(over, -0.01))
        labels = common.said(over)
    teacher = characters.decoder(letters, 0, blocks=6)
    small = _start(teacher, job, _SCRATCH, 0)
    return reproduce.conclude(
        slug="minitron",
        claim=CLAIM,
        verdict=common.together(*verdicts),
        summary=(
            f"nats per character by which scored cut + KL is lower: than from scratch {common.said(scratch)}, than labels "
            f"{labels}, than a random cut {common.said(random)} (right after the cut {common.said(first)}). "
            f"Teacher {common.said(after('teacher'), False)}, scored cut + KL {common.said(after(_KL), False)}."
        ),
        table=[reproduce.row(arm, **cells) for arm, cells in scores.items()],
        baseline=_SCRATCH,
        settings={
            "teacher": f"GPT-2 form, 6 blocks, width 128, {teacher.parameters:,} parameters",
            "small": f"width 96, 3 heads, half of the feed-forward, {small.parameters:,} parameters",
            "steps of retraining": dict(zip(map(str, seeds), used)),
            "steps of the teacher": f"{_TEACHER} times as many",
            "learning rates": {"teacher and scratch": _LR, "retraining": _RETRAIN_LR},
            "data": "Tiny Shakespeare, windows of 128 characters, batches of 16",
        },
        limits=(
            "A character decoder of a million parameters and hundreds of steps: neither the 40-fold saving of tokens nor "
            "MMLU can be shown. Equal steps are not equal time: KL runs the teacher too, and the teacher's own training is "
            "not counted, as in the paper. Search over shapes and depth were not tried here." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )  # fmt: skip
