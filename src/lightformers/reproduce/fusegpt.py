"""FuseGPT (arXiv 2411.14507): a removed block is folded into its neighbours.

    lightformers reproduce fusegpt

Hardware: two cores, five minutes. A character decoder of eight blocks (width 128) is trained on Tiny Shakespeare; two
blocks go: by macro influence, by input-output cosine, at random; without tuning, with low-rank updates alone, and with
the removed block's matrices taken in. Tuned arms see the same windows for the same tokens at the same rates. Expected:
any tuning far better than none; whether taking in adds to low-rank updates is the question.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from lightformers import reproduce
from lightformers.compress import DropBlocks, FuseBlocks
from lightformers.reproduce import characters, common
from lightformers.reproduce.finding import Finding
from lightformers.steps import Recipe, Run, Step

CLAIM = (
    "Two of eight blocks chosen by macro influence and fused into their neighbours cost fewer nats per character than the "
    "same removal with low-rank updates alone and equal tuning, and than removal without tuning."
)
_BASE, _DROP, _LORA, _FUSED = "whole", "macro influence, removed", "low-rank updates alone", "fused"
_COSINE, _RANDOM = "input-output cosine, removed", "random blocks, removed"
_DEPTH, _GONE, _LR, _BASE_LR = 8, 2, 1e-3, 1e-4
_TRAIN_LR = 2e-3
_BATCH = 16 * characters.LENGTH  # characters of a training step
_FIELDS = {"rate": _GONE / _DEPTH, "group": 4, "rank": 8, "lr": _LR, "base_lr": _BASE_LR}


def run(budget: float = common.FULL) -> Finding:
    """Train a decoder per seed and take two blocks out of it in every way."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    text = {part: common.text("tinyshakespeare", part) for part in ("train", "valid")}
    letters = characters.alphabet(*text.values())
    held_out = characters.windows(text["valid"])[: 32 * clock.size(12, 1)]  # half of it is verified on
    job = characters.task(characters.windows(text["train"][: clock.size(10**6, 50_000)]), held_out)
    windows = clock.size(256, 16)
    steps, tuning = _plan(clock, letters, job, windows, len(seeds))
    scores: dict[str, dict[str, list[float]]] = {}
    sources: dict[str, list[str]] = {}
    for seed in seeds:
        whole = characters.decoder(letters, seed, blocks=_DEPTH)
        characters.train(whole, job, steps, seed, _TRAIN_LR)
        task = characters.task(characters.drawn(text["train"], windows, seed), held_out)
        base = characters.loss(whole, job)
        scores.setdefault(_BASE, {}).setdefault("nats per character", []).append(base)
        for arm, step in _arms(windows, seed, clock.size(32, 4)).items():
            edited = Recipe([step]).apply(whole, task, Run(tokens=tuning, seed=seed))
            nats = characters.loss(edited, job)
            cells = scores.setdefault(arm, {})
            cells.setdefault("nats per character", []).append(nats)
            cells.setdefault("nats above whole", []).append(nats - base)
            kept = next(iter(edited.origin.blocks.values()))
            sources.setdefault(arm, []).append(" ".join(str(i) for i in range(_DEPTH) if i not in kept))
    return _conclude(clock, seeds, scores, sources, steps, tuning, windows)


def _arms(windows: int, seed: int, scoring: int) -> dict[str, Step]:
    gone = np.random.default_rng(seed).permutation(_DEPTH)[:_GONE]
    stay = tuple(i for i in range(_DEPTH) if i not in gone)
    fields = {**_FIELDS, "examples": windows, "scoring": scoring}
    return {
        _DROP: FuseBlocks(**fields, epochs=0),  # type: ignore[arg-type]
        _LORA: FuseBlocks(**fields, inject=False),  # type: ignore[arg-type]
        _FUSED: FuseBlocks(**fields),  # type: ignore[arg-type]
        _COSINE: DropBlocks(keep=_DEPTH - _GONE, score="influence", examples=scoring),
        _RANDOM: DropBlocks(blocks=stay),
    }


def _plan(
    clock: common.Clock, letters: characters.Characters, job: Any, windows: int, seeds: int
) -> tuple[int, int]:
    """Training steps of a decoder, and tuning tokens of an arm, that fit: two fifths of the time for each."""
    whole = characters.decoder(letters, 0, blocks=_DEPTH)
    characters.train(whole, job, 1, 0, _TRAIN_LR)  # first calls are slow
    probe = 2 if clock.short else 6
    begun = time.monotonic()
    characters.train(whole, job, probe, 0, _TRAIN_LR)
    each = (time.monotonic() - begun) / probe
    taken = []
    for tokens in (1, 2 * _BATCH * probe):
        begun = time.monotonic()
        Recipe([_arms(windows, 0, clock.size(32, 4))[_FUSED]]).apply(whole, job, Run(tokens=tokens))
        taken.append(time.monotonic() - begun)
    rate = 2 * _BATCH * probe / max(taken[1] - taken[0], 1e-3)
    begun = time.monotonic()
    characters.loss(whole, job)
    fixed = 6 * (time.monotonic() - begun) + 3 * taken[0]
    left = max(clock.left() / seeds - fixed, 0.0)
    return max(int(0.5 * left / each), 2), max(int(0.5 * left * rate / 2), 512)


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], scores: dict[str, dict[str, list[float]]],
    sources: dict[str, list[str]], steps: int, tuning: int, windows: int,
) -> Finding:  # fmt: skip
    def better(arm: str, than: str) -> list[float]:
        return common.gain(scores[than]["nats per character"], scores[arm]["nats per character"])

    verdict = common.together(reproduce.judge(better(_FUSED, _LORA)), reproduce.judge(better(_FUSED, _DROP)))
    base = scores[_BASE]["nats per character"]
    caution = ""
    if (
        sum(base) / len(base) > 2.6
    ):  # about what the frequencies of single characters give, less what a pair tells
        verdict, caution = "inconclusive", " Nothing follows: the decoder has hardly learnt."
    return reproduce.conclude(
        slug="fusegpt",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"nats per character saved by fusing: {common.said(better(_FUSED, _LORA))} against low-rank updates alone, "
            f"{common.said(better(_FUSED, _DROP))} against no tuning; above the whole decoder it stays "
            f"{common.said(scores[_FUSED]['nats above whole'])}. Macro influence against input-output cosine "
            f"{common.said(better(_DROP, _COSINE))}, against random blocks {common.said(better(_DROP, _RANDOM))}.{caution}"
        ),
        table=[
            reproduce.row(
                arm, **cells,
                **{"perplexity": [math.exp(v) for v in cells["nats per character"]]},
                **({"blocks removed, per seed": "; ".join(sources[arm])} if arm in sources else {}),
            )
            for arm, cells in scores.items()
        ],
        baseline=_LORA,
        settings={
            "model": f"GPT-2 form, {_DEPTH} blocks, width 128, characters of Tiny Shakespeare",
            "training steps": steps,
            "tuning tokens per arm": tuning,
            "windows tuned on": windows,
            "group": _FIELDS["group"],
            "rank": _FIELDS["rank"],
            "learning rates": [_LR, _BASE_LR],
        },
        limits=(
            "A decoder of eight blocks has little of the redundancy of billions of parameters; zero-shot tasks and "
            "quantization on top were not tried. The learning rate of low-rank updates is ten times the paper's." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )  # fmt: skip
