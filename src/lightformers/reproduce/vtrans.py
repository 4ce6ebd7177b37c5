"""VTrans (arXiv 2406.05276): do learnt noisy gates find what a task can spare?

    lightformers reproduce vtrans

Hardware: two cores, five minutes. all-MiniLM-L6-v2 is fine-tuned on TREC (six classes), then heads and feed-forward
channels go until 60 % of the encoder's weights are gone: by gates (trained with the weights, or alone), by magnitude, at
random. Every arm spends the same tokens on gates and distillation together. Expected: gates at least as good as
magnitude, which is well ahead of random; gates alone slightly worse than with the weights.
"""

from __future__ import annotations

import time
from typing import Any

from lightformers import anatomy, reproduce
from lightformers.bundle import Bundle
from lightformers.compress import PruneChannels, PruneHeads, Recover, VTrans
from lightformers.compress.layers import linears
from lightformers.reproduce import common
from lightformers.reproduce.finding import Finding
from lightformers.steps import Recipe, Run

CLAIM = (
    "With 60 % of the encoder's weights gone, structures chosen by variational gates keep more accuracy than those chosen "
    "by weight magnitude and at random, for the same tokens of distillation in all."
)
SPARSITY = 0.6
_LR = 3e-4
_RECOVER_LR = 2e-4
_FULL, _FASTER, _MAGNITUDE, _RANDOM, _DENSE = (
    "gates and weights",
    "gates alone",
    "magnitude",
    "random",
    "dense",
)
_ARMS = (_FULL, _FASTER, _MAGNITUDE, _RANDOM)
#: Share of an arm's tokens that gates are learnt on.
_SHARE = 0.4


def run(budget: float = common.FULL) -> Finding:
    """One dense model per seed; every arm cuts a copy of it and distils from it."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    task = common.classification("trec", 4500, clock.size(900, 64))
    encoder = common.encoder(max_length=32)
    arms = tuple(a for a in _ARMS if not (clock.few and a == _FASTER))
    tokens = _plan(clock, encoder, task, len(arms), len(seeds))
    scores: dict[str, dict[str, list[float]]] = {}
    used = []
    for seed, count in clock.rounds(seeds, tokens):
        used.append(count)
        dense = _dense(encoder, task, count, seed)
        cells = {_DENSE: {"accuracy": common.accuracy(dense, task), "weights left": 1.0}}
        for arm in arms:
            small = _pruned(dense, task, arm, count, seed)
            cells[arm] = {"accuracy": common.accuracy(small, task), "weights left": _left(small, dense)}
        for arm, found in cells.items():
            for cell, value in found.items():
                scores.setdefault(arm, {}).setdefault(cell, []).append(value)
    return _conclude(clock, seeds, scores, used, task)


def _dense(encoder: Bundle, task: Any, tokens: int, seed: int, steps: int | None = None) -> Bundle:
    bundle = common.classifier(encoder.copy(), len(task.labels), seed)
    common.fine_tune(bundle, task, tokens, seed, _LR, ["*word_embeddings.weight"], steps)
    return bundle


def _pruned(dense: Bundle, task: Any, arm: str, tokens: int, seed: int) -> Bundle:
    """Cut, then distilled from the dense model; the tokens of the gates come off those of the distillation."""
    run = Run(tokens=tokens, seed=seed)
    if arm in (_FULL, _FASTER):
        gates = VTrans(
            SPARSITY, "full" if arm == _FULL else "faster", share=_SHARE, lr=_RECOVER_LR, max_tokens=1024
        )
        return Recipe(
            [gates, Recover(lr=_RECOVER_LR, share=1 - _SHARE, temperature=2.0, max_tokens=1024)]
        ).apply(dense, task, run)
    score: Any = "magnitude" if arm == _MAGNITUDE else "random"
    keep = 1 - SPARSITY
    # 12 heads: five of them are 0.417 of the attention, so the feed-forward makes up for it
    cuts: list[Any] = [
        PruneHeads(5 / 12, score, reconstruct=False),
        PruneChannels(keep - 0.01, 8, True, score, compensate=False, reconstruct=False),
    ]
    return Recipe([*cuts, Recover(lr=_RECOVER_LR, temperature=2.0, max_tokens=1024)]).apply(dense, task, run)


def _left(small: Bundle, dense: Bundle) -> float:
    """Share of the weights of attention and feed-forward that is left."""
    a, b = (anatomy.parameters_of(m.model, linears(anatomy.of(m.model))) for m in (small, dense))
    return a / b


def _plan(clock: common.Clock, encoder: Bundle, task: Any, arms: int, seeds: int) -> int:
    """Tokens of an arm that fit, from short timed ones; the dense model gets as many."""
    dense = _dense(encoder, task, 10**9, 99, 1)  # first calls are slow
    _pruned(dense, task, _FULL, 64, 99)
    begun = time.monotonic()
    _pruned(dense, task, _FULL, 64, 99)
    common.accuracy(dense, task)
    fixed = time.monotonic() - begun
    probe = 4000 if not clock.short else 800
    begun = time.monotonic()
    _pruned(dense, task, _FULL, probe, 99)
    rate = probe / max(time.monotonic() - begun - fixed, 0.05)
    each = clock.left() / seeds - (arms + 1) * fixed
    return max(int(rate * each / (arms + 1)), 64)


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], scores: dict[str, dict[str, list[float]]], used: list[int], task: Any
) -> Finding:  # fmt: skip
    def accuracy(arm: str) -> list[float]:
        return scores[arm]["accuracy"]

    rival, chance = (common.gain(accuracy(_FULL), accuracy(a)) for a in (_MAGNITUDE, _RANDOM))
    verdict, caution = common.settled(
        common.together(reproduce.judge(rival), reproduce.judge(chance)), accuracy(_DENSE), [task]
    )
    alone = common.said(common.gain(accuracy(_FASTER), accuracy(_FULL))) if _FASTER in scores else "not tried"
    return reproduce.conclude(
        slug="vtrans",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"accuracy of gates over magnitude {common.said(rival)}, over random {common.said(chance)}; gates alone against "
            f"gates and weights {alone}. Dense {common.said(accuracy(_DENSE), False)}, gates "
            f"{common.said(accuracy(_FULL), False)} with {common.said(scores[_FULL]['weights left'], False)} of the weights.{caution}"
        ),
        table=[reproduce.row(arm, **cells) for arm, cells in scores.items()],
        baseline=_MAGNITUDE,
        settings={
            "model": "all-MiniLM-L6-v2 with a classification head",
            "data": {"trec train": len(task.splits["train"]), "verify": len(task.splits["verify"])},
            "tokens per arm": dict(zip(map(str, seeds), used)),
            "share of the gates": _SHARE,
            "learning rates": {"fine-tuning": _LR, "distillation": _RECOVER_LR, "gates": VTrans.gate_lr},
        },
        limits=(
            "One small encoder and tens of steps, where gates are meant to train for epochs. The hidden size was not gated; "
            "hard-concrete gates, which tokens pruned heads attend to, and the 70 % headline against other methods were not "
            "tried." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )  # fmt: skip
