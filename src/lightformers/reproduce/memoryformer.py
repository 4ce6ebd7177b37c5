"""MemoryFormer (arXiv 2411.12992): projections looked up in hashed tables, against dense ones of equal arithmetic.

    lightformers reproduce memoryformer

Hardware: two cores, five minutes. Character decoders of 2 layers on Tiny Shakespeare: memory layers of 4 and 8 bits at
width 128, a plain transformer of that width, and one narrowed until its multiply-adds per token are no more than those of
the memory model. Expected: at equal arithmetic the memory model is better than the narrow one, near the wide one at equal
width, with many more parameters; a step is no faster, since gathering is bound by memory.
"""

from __future__ import annotations

from typing import Any

import torch

from lightformers import reproduce
from lightformers.bundle import Bundle
from lightformers.parts.ffn.memory_layer import Score, address
from lightformers.reproduce import characters, common, decoders
from lightformers.reproduce.finding import Finding

CLAIM = "With multiply-adds per token no more than a narrowed transformer's, a decoder of memory layers predicts better than it."
_LR, _DEPTH = 2e-3, 2
_BASE, _WIDE, _PAPER = "plain, equal arithmetic", "plain, equal width", "memory, 8 bits"
_MEMORY: dict[str, dict[str, Any]] = {
    _PAPER: {"bits": 8},
    "memory, 4 bits": {"bits": 4},
    "memory, 8 bits, score of the text": {"bits": 8, "score": "corner"},
    "memory, 8 bits, no LayerNorm": {"bits": 8, "normalize": False},
}
_ARMS = (_PAPER, _BASE, _WIDE, *list(_MEMORY)[1:])


def run(budget: float = common.FULL) -> Finding:
    """Train every arm once per seed; fit a random linear map with tables."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    letters, job = decoders.world(clock)
    arms = _ARMS[: 3 if clock.few else 4 if budget < common.FULL else None]
    blank = {arm: decoders.decoder(letters, 0, _layers(arm)) for arm in arms if arm != _BASE}
    goal = decoders.multiply_adds(blank[_PAPER].model)
    width = _narrow(letters, goal)

    def build(arm: str, seed: int) -> Bundle:
        if arm == _BASE:
            return decoders.decoder(letters, seed, _narrowed(width), width)
        return decoders.decoder(letters, seed, _layers(arm))

    def make(arm: str, seed: int, steps: int) -> Bundle:
        bundle = build(arm, seed)
        decoders.train(bundle, job, steps, seed, _LR)
        return bundle

    blank[_BASE] = build(_BASE, 0)
    found = decoders.contest(
        clock, seeds, arms, make, lambda _, bundle: {"loss": characters.loss(bundle, job)}
    )
    over, behind = found.gain(_PAPER, _BASE), common.gain(found.cell(_PAPER), found.cell(_WIDE))
    fits = {bits: fit_error(bits) for bits in (1, 2, 4, 8)}
    return reproduce.conclude(
        slug="memoryformer",
        claim=CLAIM,
        verdict=reproduce.judge(over),
        summary=(
            f"the memory model is {common.said(over)} nats below the transformer narrowed to width {width}, and {common.said(behind)} "
            f"above the one of its own width; it holds {blank[_PAPER].parameters / blank[_WIDE].parameters:.0f} times the weights of "
            f"that, and a step takes {found.seconds[_PAPER] / found.seconds[_WIDE]:.1f} times as long. Of a random linear map one layer "
            f"leaves unexplained, by bits of a code: {', '.join(f'{b}: {e:.2f}' for b, e in fits.items())}."
        ),
        table=found.table(
            parameters={arm: bundle.parameters for arm, bundle in blank.items()},
            multiply_adds_per_token={arm: decoders.multiply_adds(bundle.model) for arm, bundle in blank.items()},
        ),
        baseline=_BASE,
        settings={
            "model": f"decoder, {_DEPTH} layers, width {decoders.WIDTH}, {decoders.HEADS} heads, dense embedding and head",
            "steps": dict(zip(map(str, seeds), found.steps)),
            "learning rate": _LR,
            "multiply-adds": "linear and memory layers, attention over half of 128 keys, head; the same in all arms",
            "data": decoders.DATA,
        },
        limits=(
            "Two layers and hundreds of steps: rows that are rarely chosen learn little. Accuracy at the scale of the Pile cannot "
            "be shown; time on processors that gather well neither." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )  # fmt: skip


def _layers(arm: str) -> list[dict[str, Any]]:
    if arm not in _MEMORY:
        return _narrowed(decoders.WIDTH)
    options = dict(_MEMORY[arm])
    shared = {k: v for k, v in options.items() if k != "normalize"}
    mixer = {"kind": "memory", "heads": decoders.HEADS, **shared}
    return [{"mixer": mixer, "ffn": {"kind": "memory", **options}}] * _DEPTH


def _narrow(letters: characters.Characters, goal: int) -> int:
    """The largest width, a multiple of twice the heads, whose model needs no more multiply-adds than `goal`."""
    for width in range(decoders.WIDTH, 0, -2 * decoders.HEADS):
        bundle = decoders.decoder(letters, 0, _narrowed(width), width)
        if decoders.multiply_adds(bundle.model) <= goal:
            return width
    return 2 * decoders.HEADS


def _narrowed(width: int) -> list[dict[str, Any]]:
    return [{"mixer": decoders.attention(), "ffn": decoders.mlp(4 * width)}] * _DEPTH


def fit_error(bits: int, score: Score = "projected", width: int = 16, rows: int = 8000) -> float:
    """Share of the variance of a random linear map of Gaussian inputs that the best tables leave unexplained, unseen."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * rows, width, generator=generator, dtype=torch.float64)
    goal = x @ torch.randn(width, 1, generator=generator, dtype=torch.float64)
    codes, scores = address(x, bits, score)
    design = torch.zeros(2 * rows, width // bits, 2**bits, dtype=torch.float64)
    design = design.scatter_(2, codes[..., None], scores[..., None]).flatten(1)
    best = torch.linalg.lstsq(design[:rows], goal[:rows], driver="gelsd").solution
    return float((design[rows:] @ best - goal[rows:]).square().mean() / goal[rows:].square().mean())
