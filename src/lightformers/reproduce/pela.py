"""PELA (arXiv 2310.10700): low rank repaired by feature distillation as a base for fine-tuning.

    lightformers reproduce pela

Hardware: two cores, five minutes. all-MiniLM-L6-v2 (three of its blocks) is cut to half of its block weights by SVD and
repaired on unlabelled sentences, with and without the perturbation term; then each is fine-tuned on TREC. SVD alone
gets the repair's tokens as further fine-tuning, and so does a pair of random factors' repair its own. Expected: repair
beats SVD alone; the perturbation term changes little.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from lightformers import anatomy, reproduce
from lightformers.bundle import Bundle
from lightformers.compress import DropBlocks, Greenformers, Pela
from lightformers.compress.distill import common as distilling
from lightformers.compress.layers import linears
from lightformers.reproduce import common
from lightformers.reproduce.finding import Finding
from lightformers.steps import Recipe, Run
from lightformers.tasks.embedding import Embedding
from lightformers.train import losses
from lightformers.train.capture import Capture

CLAIM = (
    "An encoder cut to half of its block weights by SVD and repaired by feature distillation on unlabelled text is, after "
    "fine-tuning, more accurate than SVD that is fine-tuned for all the tokens of both, and loses at most two hundredths "
    "to the whole one."
)
TOLERANCE = 0.02
_RATIO, _LENGTH, _LR, _FINE_LR = 2.0, 48, 5e-4, 3e-4
_BASE, _SVD, _FEATURES, _BOTH, _RANDOM = (
    "dense",
    "SVD",
    "features",
    "features + perturbation",
    "random factors, features",
)
_STEPS = {
    _FEATURES: Pela(_RATIO, perturbation=0.0, lr=_LR, max_tokens=1024),
    _BOTH: Pela(_RATIO, lr=_LR, max_tokens=1024),
}
_ARMS = (_BASE, _SVD, _FEATURES, _BOTH, _RANDOM)
#: Share of an arm's tokens that is the repair's.
_SHARE = 0.5


def run(budget: float = common.FULL) -> Finding:
    """Repair and fine-tune every arm, once per seed."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    arms = (_BASE, _SVD, _BOTH) if clock.few else _ARMS
    task = common.classification("trec", clock.size(4500, 64), clock.size(900, 64))
    plain = _texts(clock.size(6000, 100))
    blocks = (2,) if clock.short else (0, 2, 5)
    teacher = Recipe([DropBlocks(blocks=blocks)]).apply(common.encoder(max_length=_LENGTH))
    tokens = _plan(clock, teacher, plain, task, len(arms), len(seeds))
    scores: dict[str, dict[str, list[float]]] = {arm: {} for arm in arms}
    used = []
    for seed, count in clock.rounds(seeds, tokens):
        used.append(count)
        for arm in arms:
            base, fine = _base(arm, teacher, plain, count, seed)
            found = (
                {"feature error": _error(base, teacher, plain, clock.size(128, 16))} if arm != _BASE else {}
            )
            if arm != _BASE:
                found["largest change of a weight"] = _apart(base, teacher)
            made = common.classifier(base, len(task.labels), seed)
            common.fine_tune(made, task, fine, seed, _FINE_LR, ["*word_embeddings.weight"])
            found["accuracy"] = common.accuracy(made, task)
            for name, value in found.items():
                scores[arm].setdefault(name, []).append(value)
    return _conclude(clock, seeds, task, teacher, scores, used)


def _texts(count: int) -> Embedding:
    """Unlabelled sentences of WikiText-2 and AG News, drawn once; 200 to verify on."""
    lines = common.text("wikitext2_small", "train").splitlines()
    rows = [s.strip() for line in lines for s in line.split(" . ") if len(s.split()) > 5]
    rows += [r["text"] for r in common.records("ag_news", "train")]
    order = np.random.default_rng(0).permutation(len(rows))[: count + 250]
    drawn = [{"text": rows[i]} for i in order]
    return Embedding.from_examples({"train": drawn[:count], "valid": drawn[count:-200], "test": drawn[-200:]})


def _base(arm: str, teacher: Bundle, plain: Embedding, tokens: int, seed: int) -> tuple[Bundle, int]:
    """The arm's model before fine-tuning, and the tokens that are left for it."""
    repair = max(int(tokens * _SHARE), 1)
    if arm in (_BASE, _SVD):
        bundle = teacher.copy()
        if arm == _SVD:
            Pela(_RATIO).compress(bundle.model)
        return bundle, tokens
    if arm == _RANDOM:
        bundle = Recipe([Greenformers(1 / _RATIO, "random")]).apply(teacher, None, Run(seed=seed))
        _features_alone(bundle, teacher, plain, repair, seed)
    else:
        bundle = Recipe([_STEPS[arm]]).apply(teacher, plain, Run(tokens=repair, seed=seed))
    return bundle, max(tokens - repair, 1)


def _features_alone(bundle: Bundle, teacher: Bundle, plain: Embedding, tokens: int, seed: int) -> None:
    """What `Pela` does after the cut, for factors that stem from no cut."""
    run = Run(teacher=teacher, tokens=tokens, seed=seed)
    own, theirs = anatomy.of(bundle.model), anatomy.of(teacher.model)
    every = range(len(own.blocks))
    with (
        distilling.live(teacher, "cpu") as call,
        Capture(bundle.model, own, hidden=every) as mine,
        Capture(teacher.model, theirs, hidden=every) as goal,
    ):

        def objective(module: Any, batch: Any) -> torch.Tensor:
            module(**batch.inputs)
            call(batch.inputs)
            mask = batch.inputs["attention_mask"]
            return torch.stack(
                [losses.hidden_mse(mine.hidden(i), goal.hidden(i), mask) for i in every]
            ).mean()

        plan = distilling.Plan(_LR, 1.0, 0.05, 0.02, "cosine")
        feed = distilling.feed(bundle, plain, run, 1024)
        distilling.train(bundle, feed, objective, plan, run, time.monotonic())


@torch.no_grad()
def _error(bundle: Bundle, teacher: Bundle, plain: Embedding, count: int) -> float:
    """Mean squared difference of block outputs on unseen sentences, over the mean square of the original's."""
    batch = teacher.collate(plain.texts("verify")[:count])
    every = range(len(anatomy.of(teacher.model).blocks))
    held = []
    for one in (bundle, teacher):
        with Capture(one.model, anatomy.of(one.model), hidden=every) as caught:
            one.model.eval()(**batch.inputs)
            held.append([caught.hidden(i) for i in every])
    mask = batch.inputs["attention_mask"]
    return sum(float(losses.normalized_hidden_mse(a, b, mask)) for a, b in zip(*held)) / len(every)


@torch.no_grad()
def _apart(bundle: Bundle, teacher: Bundle) -> float:
    gaps = []
    for path in linears(anatomy.of(teacher.model)):
        layer: Any = anatomy.get(bundle.model, path)
        gaps.append(float((layer.second @ layer.first - anatomy.linear(teacher.model, path)[0]).abs().max()))
    return sum(gaps) / len(gaps)


def _plan(clock: common.Clock, teacher: Bundle, plain: Embedding, task: Any, arms: int, seeds: int) -> int:
    """Tokens of an arm, repair and fine-tuning together, that fit; from timed short ones."""
    probe = 20 * 1024 if not clock.short else 2 * 1024
    begun = time.monotonic()
    bundle, fine = _base(_BOTH, teacher, plain, probe, 0)
    made = common.classifier(bundle, len(task.labels), 0)
    common.fine_tune(made, task, fine, 0, _FINE_LR, ["*word_embeddings.weight"])
    rate = probe / (time.monotonic() - begun)
    begun = time.monotonic()
    common.accuracy(made, task)
    fixed = 1.5 * (time.monotonic() - begun)
    return max(int(rate * (clock.left() / (arms * seeds) - fixed)), 256)


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], task: Any, teacher: Bundle,
    scores: dict[str, dict[str, list[float]]], used: list[int],
) -> Finding:  # fmt: skip
    def gain(arm: str, over: str) -> list[float]:
        return common.gain(scores[arm]["accuracy"], scores[over]["accuracy"])

    verdict = common.together(
        reproduce.judge(gain(_BOTH, _SVD)), reproduce.judge(gain(_BOTH, _BASE), -TOLERANCE)
    )
    verdict, caution = common.settled(verdict, scores[_BASE]["accuracy"], [task])
    more = "" if _FEATURES not in scores else (
        f" The perturbation term adds {common.said(gain(_BOTH, _FEATURES))}; the start by SVD, against random factors, "
        f"{common.said(gain(_FEATURES, _RANDOM))}."
    )  # fmt: skip
    return reproduce.conclude(
        slug="pela",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"accuracy of the repaired model against SVD with equal tokens {common.said(gain(_BOTH, _SVD))}, against dense "
            f"{common.said(gain(_BOTH, _BASE))}.{more}{caution}"
        ),
        table=[reproduce.row(arm, **cells) for arm, cells in scores.items()],
        baseline=_SVD,
        settings={
            "model": f"all-MiniLM-L6-v2, {len(anatomy.of(teacher.model).blocks)} blocks; TREC, word embeddings frozen there",
            "ratio": _RATIO,
            "tokens per arm, repair and fine-tuning": dict(zip(map(str, seeds), used)),
            "share of the repair": _SHARE,
            "learning rates": [_LR, _FINE_LR],
            "sentences": "WikiText-2 and AG News",
        },
        limits=(
            "No vision model, no pre-training data of the original and none of its losses; detection, segmentation and "
            "retrieval were not tried." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )  # fmt: skip
