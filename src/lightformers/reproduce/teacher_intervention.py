"""Teacher intervention (arXiv 2302.11812): ternary weights learn faster behind the teacher's attention.

    lightformers reproduce teacher-intervention

Hardware: two cores, five minutes. Three blocks of all-MiniLM-L6-v2 are fine-tuned on TREC, once per seed; that is the
teacher. Its ternary copy (activations in eight bits) is trained without labels, with and without intervention, for
equal tokens, on 500 questions and on 4,000. Expected: intervention is ahead after the same tokens, most with few
questions; minutes of training may leave every arm far below the teacher.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch

from lightformers import anatomy, reproduce
from lightformers.bundle import Bundle
from lightformers.compress.quantize.intervention import Order, Watch, layer_losses
from lightformers.compress.quantize.teacher_intervention import TeacherIntervention
from lightformers.reproduce import common
from lightformers.reproduce.finding import Finding
from lightformers.steps import Recipe, Run
from lightformers.tasks.text_classification import TextClassification

CLAIM = (
    "After the same training, a ternary model that first learnt behind its teacher's attention classifies better than one "
    "trained by plain distillation."
)
_BASE = "plain distillation"
_PAPER = "gradual intervention"
_ARMS: dict[str, Order] = {
    _BASE: "none",
    _PAPER: "gradual",
    "output only": "output",
    "map only": "map",
    "context only": "context",
    "inverted": "inverted",
    "stochastic": "stochastic",
}
_FIRST = 1 / 3
_LR, _FINE_LR = 3e-4, 5e-4
_LENGTH, _MAX_TOKENS = 48, 1024
#: Share of the time that fine-tuning the teacher gets.
_SHARE = 0.15


def run(budget: float = common.FULL) -> Finding:
    """Fine-tune a teacher per seed, train a ternary copy of it by every arm and on both amounts of data."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    sizes = (100,) if clock.short else (500, 4000)
    task = common.classification("trec", sizes[-1], clock.size(900, 64))
    tasks = {n: _smaller(task, n) for n in sizes}
    encoder = common.encoder(max_length=_LENGTH)
    anatomy.surgery.keep_blocks(encoder.model, [0] if clock.short else [0, 2, 5])
    tokens, fine, arms = _plan(clock, encoder, task, len(seeds), len(sizes))
    scores: dict[str, dict[str, list[float]]] = {"teacher": {}, **{arm: {} for arm in arms}}
    used = []
    for seed, count in clock.rounds(seeds, tokens):
        used.append(count)
        teacher = _teacher(encoder, task, max(int(fine * count / tokens), 32), seed)
        scores["teacher"].setdefault("accuracy", []).append(common.accuracy(teacher, task))
        for n, part in tasks.items():
            for arm in arms:
                student = _student(teacher, part, arm, count, seed)
                cells = scores[arm]
                cells.setdefault(f"accuracy, {n} texts", []).append(common.accuracy(student, task))
                cells.setdefault(f"hidden states, {n} texts", []).append(_distance(student, teacher, task))
    return _conclude(clock, seeds, scores, tasks, task, used, fine)


def _smaller(task: TextClassification, count: int) -> TextClassification:
    return dataclasses.replace(task, splits={**task.splits, "train": task.splits["train"][:count]})


def _teacher(encoder: Bundle, task: Any, tokens: int, seed: int) -> Bundle:
    bundle = common.classifier(encoder.copy(), len(task.labels), seed)
    common.fine_tune(bundle, task, tokens, seed, _FINE_LR)
    return bundle


def _student(teacher: Bundle, task: Any, arm: str, tokens: int, seed: int) -> Bundle:
    step = TeacherIntervention(order=_ARMS[arm], first=_FIRST, lr=_LR, max_tokens=_MAX_TOKENS)
    return Recipe((step,)).apply(teacher, task, Run(tokens=tokens, seed=seed, dtype=common.precision()))


@torch.no_grad()
def _distance(student: Bundle, teacher: Bundle, task: TextClassification) -> float:
    """Mean squared difference of hidden states on held-out texts, summed over layers, no intervention."""
    rows = sorted(task.splits["verify"][:64], key=lambda e: len(e["text"]))
    inputs = teacher.collate(rows).inputs
    held: Any = student.model
    settings = TeacherIntervention().settings()
    with (
        Watch(teacher.model, teacher.module()) as theirs,
        Watch(held, student.module(), settings) as own,
    ):
        _, goal = theirs.forward(inputs)
        _, found = own.forward(inputs)
    return float(layer_losses(found, goal)["hidden"])


def _plan(
    clock: common.Clock, encoder: Bundle, task: Any, seeds: int, sizes: int
) -> tuple[int, int, tuple[str, ...]]:
    """Tokens of an arm, tokens of the teacher's fine-tuning, and the arms that fit: each is to get 12 seconds."""
    probe = 3 * _MAX_TOKENS
    few = _smaller(task, 100)
    teacher = _teacher(encoder, few, 32, 0)  # first calls are slow
    _student(teacher, few, _PAPER, 64, 0)
    begun = time.monotonic()
    _teacher(encoder, few, probe, 0)
    fine = probe / (time.monotonic() - begun)
    begun = time.monotonic()
    student = _student(teacher, few, _PAPER, probe, 0)
    rate = probe / (time.monotonic() - begun)
    begun = time.monotonic()
    common.accuracy(student, task)
    other = time.monotonic() - begun + 0.7
    each = clock.left() / seeds
    fit = int((1 - _SHARE) * each / sizes / (12 + other))
    arms = tuple(_ARMS)[: 2 if clock.few else max(2, fit)]
    spare = (1 - _SHARE) * each / sizes / len(arms) - other
    return max(int(rate * spare), 64), max(int(fine * _SHARE * each), 64), arms


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], scores: dict[str, dict[str, list[float]]], tasks: dict[int, Any],
    task: TextClassification, used: list[int], fine: int,
) -> Finding:  # fmt: skip
    def gains(n: int, cell: str = "accuracy") -> list[float]:
        return common.gain(scores[_PAPER][f"{cell}, {n} texts"], scores[_BASE][f"{cell}, {n} texts"])

    mean = [sum(values) / len(tasks) for values in zip(*(gains(n) for n in tasks))]
    largest = max(tasks)
    verdict, caution = common.settled(
        reproduce.judge(mean), scores[_PAPER][f"accuracy, {largest} texts"], [task]
    )
    apart = "; ".join(
        f"with {n} texts {common.said(gains(n))} in accuracy, {common.said(gains(n, 'hidden states'))} in the squared distance of hidden states"
        for n in tasks
    )
    return reproduce.conclude(
        slug="teacher-intervention",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"gradual intervention against plain distillation, ternary weights, equal tokens: {apart}. The teacher has "
            f"{common.said(scores['teacher']['accuracy'], False)}.{caution}"
        ),
        table=[reproduce.row(arm, **cells) for arm, cells in scores.items()],
        baseline=_BASE,
        settings={
            "model": f"{'one block' if clock.short else 'blocks 0, 2, 5'} of all-MiniLM-L6-v2 with a classification head, fine-tuned on TREC",
            "formats": "ternary weights and word embedding, 8-bit activations",
            "training tokens per arm": dict(zip(map(str, seeds), used)),
            "tokens of the teacher's fine-tuning": fine,
            "share of stage 1": round(_FIRST, 3),
            "learning rates": {"training": _LR, "teacher": _FINE_LR},
            "texts to verify on": len(task.splits["verify"]),
        },
        limits=(
            "Seconds of training instead of hours, one small model and task: 12.5 times fewer hours, GLUE and the shape "
            "of the loss surface cannot be shown. One learning rate for all arms." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )
