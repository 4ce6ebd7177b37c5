"""MatFormer (arXiv 2310.07707): four decoders from one training, or four trainings?

    lightformers reproduce matformer

Hardware: two cores, five minutes. A character decoder (4 blocks, width 128, 512 inner channels) learns Tiny Shakespeare
nested in four granularities; against it four decoders of the same widths trained apart, in as many steps in total and in
as many each, and a plainly trained one that is sliced afterwards. Expected: slicing without nesting breaks down;
nested sizes come close to those trained apart or beat them, mixtures lie between, and the smallest agrees with the largest
more than an independent one does. The largest pays for it.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from lightformers import reproduce
from lightformers.bundle import Bundle
from lightformers.compress.elastic import matformer
from lightformers.compress.elastic.size import Nesting, Size, cut
from lightformers.compress.elastic.space import Space
from lightformers.reproduce import characters, common, drafts
from lightformers.reproduce.finding import Finding
from lightformers.steps import Run

CLAIM = (
    "One nested training gives decoders of four widths that are each at most 1 % worse in loss than decoders trained apart in "
    "as many steps in total, and the smallest agrees with the largest on more next tokens than one trained apart does."
)
TOLERANCE = 0.01
_LR = 1.5e-3
_NESTED, _APART, _EACH, _SLICED = "nested", "apart, equal steps in total", "apart, equal steps each", "sliced"
_METHOD = matformer.MatFormer(sort=False, lr=_LR, warmup=0.1, max_tokens=16 * characters.LENGTH)


def run(budget: float = common.FULL) -> Finding:
    """Every arm once per seed, on the same windows at the same rate."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    text = {part: common.text("tinyshakespeare", part) for part in ("train", "valid")}
    letters = characters.alphabet(*text.values())
    job = characters.task(
        characters.windows(text["train"][: clock.size(len(text["train"]), 40_000)]),
        characters.windows(text["valid"][: clock.size(60_000, 6_000)]),
    )
    steps = _plan(clock, letters, job, len(seeds))
    scores: dict[str, dict[str, list[float]]] = {}
    used = []
    for seed, count in clock.rounds(seeds, steps):
        used.append(count)
        for arm, cells in _one(clock, letters, job, count, seed).items():
            for cell, value in cells.items():
                scores.setdefault(arm, {}).setdefault(cell, []).append(value)
    return _conclude(clock, seeds, scores, used, letters)


def _one(
    clock: common.Clock, letters: characters.Characters, job: Any, steps: int, seed: int
) -> dict[str, dict[str, float]]:
    whole = characters.decoder(letters, seed)
    space = _METHOD.space(whole)
    sizes = matformer.granularities(space)
    tokens = steps * 16 * characters.LENGTH
    _METHOD.train(whole, job, Run(tokens=tokens, seed=seed, use_labels=True))
    nested = [_sub(whole, size) for size in sizes]
    out = {_NESTED: _losses(nested, job) | _voice(nested, job)}
    out[_NESTED] |= _mixtures(whole, space, nested, job, clock.size(30, 2), seed)
    apart = [_trained(letters, job, size, max(steps // len(sizes), 1), seed) for size in sizes]
    out[_APART] = _losses(apart, job) | _voice(apart, job)
    if not clock.few:
        each = [_trained(letters, job, size, steps, seed) for size in sizes[:-1]]
    plain = _trained(letters, job, sizes[-1], steps, seed)
    if not clock.few:
        out[_EACH] = _losses([*each, plain], job) | _voice([*each, plain], job)
    sliced = [_sub(plain, size) for size in sizes]
    out[_SLICED] = _losses(sliced, job) | _voice(sliced, job)
    return out


def _sub(whole: Bundle, size: Size) -> Bundle:
    small = whole.copy()
    cut(small.model, size, Nesting())
    return small


def _trained(letters: characters.Characters, job: Any, size: Size, steps: int, seed: int) -> Bundle:
    bundle = characters.decoder(letters, seed, inner=size.channels[0])
    characters.train(bundle, job, steps, seed, _LR)
    return bundle


def _losses(models: list[Bundle], job: Any) -> dict[str, float]:
    found = [characters.loss(model, job) for model in models]
    return {f"loss, {name}": value for name, value in zip(("1/8", "1/4", "1/2", "whole"), found)}


def _voice(models: list[Bundle], job: Any) -> dict[str, float]:
    """The smallest against the largest."""
    rows = job.splits["verify"][:64]
    same, _ = drafts.agreement(models[0], models[-1], rows)
    return {
        "next tokens on which 1/8 agrees with the whole": same,
        "tokens accepted of a draft of 4": drafts.accepted(models[0], models[-1], rows),
    }


def _mixtures(
    whole: Bundle, space: Space, trained: list[Bundle], job: Any, number: int, seed: int
) -> dict[str, float]:
    """How far mixtures lie above the line between the trained sizes of fewer and of more channels."""
    rng, rows = np.random.default_rng(seed), min(number * 4, 60)
    places = [sum(size.channels) for size in matformer.granularities(space)]
    line = [characters.loss(model, job, rows) for model in trained]

    def above(size: Size) -> float:
        loss = characters.loss(_sub(whole, size), job, rows)
        return loss - float(np.interp(sum(size.channels), places, line))

    drawn = [space.sample(rng) for _ in range(number)]
    steady = [size for size in matformer.mixtures(space) if len(set(size.channels)) > 1]
    steady = [steady[i] for i in rng.permutation(len(steady))[:number]]
    return {
        "random mixtures above the line": float(np.mean([above(s) for s in drawn])),
        "steady mixtures above the line": float(np.mean([above(s) for s in steady])),
    }


def _plan(clock: common.Clock, letters: characters.Characters, job: Any, seeds: int) -> int:
    """Steps that fit, from timed ones of the whole model."""
    characters.train(characters.decoder(letters, 99), job, 1, 99, _LR)  # first calls are slow
    bundle = characters.decoder(letters, 99)
    begun = time.monotonic()
    characters.train(bundle, job, 8, 99, _LR)
    step = max((time.monotonic() - begun) / 8, 1e-3)
    begun = time.monotonic()
    characters.loss(bundle, job)
    score = time.monotonic() - begun
    scored, trainings = (30, 3) if clock.few else (60, 6)
    return max(int((clock.left() / seeds - scored * score) / step / trainings), 4)


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], scores: dict[str, dict[str, list[float]]], used: list[int],
    letters: characters.Characters,
) -> Finding:  # fmt: skip
    losses = [name for name in scores[_NESTED] if name.startswith("loss")]
    same = "next tokens on which 1/8 agrees with the whole"

    def behind(than: str) -> list[float]:
        """Relative loss above another arm, at the size where it is largest, per seed."""
        gaps = [[(a - b) / b for a, b in zip(scores[_NESTED][name], scores[than][name])] for name in losses]
        return [max(column) for column in zip(*gaps)]

    closer = common.gain(scores[_NESTED][same], scores[_APART][same])
    verdict = common.together(
        reproduce.judge([-v for v in behind(_APART)], -TOLERANCE), reproduce.judge(closer)
    )
    largest, reference = scores[_NESTED][losses[-1]], scores[_SLICED][losses[-1]]
    return reproduce.conclude(
        slug="matformer",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"relative loss of the nested decoders above those trained apart in as many steps in total, at the width where it is "
            f"largest: {common.said(behind(_APART))}; the smallest agrees with the largest on {common.said(closer)} more of the "
            f"next tokens. The largest stays {common.said(common.gain(largest, reference))} nats above one trained plainly, which, "
            f"sliced to 1/8, is at {common.said(scores[_SLICED][losses[0]], False)} nats."
        ),
        table=[reproduce.row(arm, **cells) for arm, cells in scores.items()],
        baseline=_APART,
        settings={
            "model": f"GPT-2 form, 4 blocks, width 128, 512 inner channels, {len(letters.symbols)} characters",
            "steps of the nested training": dict(zip(map(str, seeds), used)),
            "learning rate": _LR,
            "data": "Tiny Shakespeare, windows of 128 characters, 16 a step; loss in nats per character",
        },
        limits=(
            "A decoder of under a million parameters and hundreds of steps, against billions of parameters in the paper. Drafts "
            "are greedy. One-shot tasks, vision encoders and retrieval were not tried." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )  # fmt: skip
