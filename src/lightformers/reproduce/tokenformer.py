"""TokenFormer (arXiv 2410.23168): growing a trained model by parameter tokens, against starting anew.

    lightformers reproduce tokenformer

Hardware: two cores, five minutes. A character decoder (4 layers, width 128) of Pattention learns Tiny Shakespeare with
half of its tokens; then, for as many steps again: grown to twice the tokens with keys of zero, grown with random ones,
the large one from scratch, a plain transformer of as many weights from scratch, and the small one continued. Expected:
zero keys leave the loss as it was, and end below the large one from scratch and the small one continued.
"""

from __future__ import annotations

from typing import Any

from lightformers import reproduce
from lightformers.bundle import Bundle
from lightformers.reproduce import characters, common, decoders
from lightformers.reproduce.finding import Finding
from lightformers.train.growth import grow

CLAIM = (
    "A trained model that is grown by parameter tokens is better after equally many further steps than the large one from "
    "scratch and than the small one continued."
)
_LR = 2e-3
_ZERO, _RANDOM = "grown, keys of zero", "grown, random tokens"
_SCRATCH, _PLAIN, _SMALL = "large from scratch", "plain transformer from scratch", "small, continued"
_ARMS = (_ZERO, _SCRATCH, _SMALL, _RANDOM, _PLAIN)
_TOKENS = 96


def run(budget: float = common.FULL) -> Finding:
    """Per seed one small model, from which three arms start; the others start anew."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    letters, job = decoders.world(clock)
    arms = _ARMS[: 3 if clock.few else None]
    small: dict[tuple[int, int], Bundle] = {}
    jumps: dict[str, list[float]] = {_ZERO: [], _RANDOM: []}

    def make(arm: str, seed: int, steps: int) -> Bundle:
        if arm in (_SCRATCH, _PLAIN):
            bundle = decoders.decoder(letters, seed, _plain() if arm == _PLAIN else _layers(2 * _TOKENS))
            decoders.train(bundle, job, steps, seed + 1000, _LR)
            return bundle
        if (seed, steps) not in small:
            small.clear()
            small[seed, steps] = decoders.decoder(letters, seed, _layers(_TOKENS))
            decoders.train(small[seed, steps], job, steps, seed, _LR)
        bundle = small[seed, steps].copy()
        if arm != _SMALL:
            before = characters.loss(bundle, job)
            grow(bundle.model, 2, "zero" if arm == _ZERO else "random", keep=arm == _ZERO)
            if seed != 99:
                jumps[arm].append(characters.loss(bundle, job) - before)
        # the second training draws other batches than the first; the arms that start anew see the same ones
        decoders.train(bundle, job, steps, seed + 1000, _LR)
        return bundle

    found = decoders.contest(
        clock, seeds, arms, make, lambda _, bundle: {"loss": characters.loss(bundle, job)}
    )
    over, more = found.gain(_ZERO, _SCRATCH), found.gain(_ZERO, _SMALL)
    sizes = {
        _ZERO: _layers(2 * _TOKENS), _RANDOM: _layers(2 * _TOKENS), _SCRATCH: _layers(2 * _TOKENS),
        _SMALL: _layers(_TOKENS), _PLAIN: _plain(),
    }  # fmt: skip
    counts = {arm: decoders.decoder(letters, 0, sizes[arm]).parameters for arm in arms}
    random = f", with random tokens by {common.said(jumps[_RANDOM])}" if jumps[_RANDOM] else ""
    return reproduce.conclude(
        slug="tokenformer",
        claim=CLAIM,
        verdict=common.together(reproduce.judge(over), reproduce.judge(more)),
        summary=(
            f"grown with keys of zero: {common.said(over)} nats below the large one from scratch, {common.said(more)} below the small "
            f"one continued. Growing itself changed the loss by {common.said(jumps[_ZERO])}{random}."
        ),
        table=found.table(timed=False, parameters=counts),
        baseline=_SCRATCH,
        settings={
            "model": f"decoder, {decoders.DEPTH} layers, width {decoders.WIDTH}; tokens {_TOKENS} -> {2 * _TOKENS} in q, k, v and "
            f"o, four times as many in the feed-forward",
            "steps of each of the two trainings": dict(zip(map(str, seeds), found.steps)),
            "learning rate": f"{_LR}, a fresh warm-up and cosine for each training, optimizer anew",
            "data": decoders.DATA,
        },
        limits=(
            "One growth by two, where the paper grows ten times in steps and saves tokens at billions of parameters. Steps per "
            "target loss and zero-shot tasks were not measured. The norms before the layers have weights here." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )  # fmt: skip


def _layers(tokens: int) -> list[dict[str, Any]]:
    mixer = {"kind": "tokenformer", "heads": decoders.HEADS, "tokens": tokens}
    return [{"mixer": mixer, "ffn": {"kind": "pattention", "tokens": 4 * tokens}}] * decoders.DEPTH


def _plain() -> list[dict[str, Any]]:
    """As many weights as with 2 * _TOKENS: 4 w^2 + 2 w h = 16 w t, t tokens in each projection."""
    hidden = 8 * 2 * _TOKENS - 2 * decoders.WIDTH
    return [{"mixer": decoders.attention(), "ffn": decoders.mlp(hidden)}] * decoders.DEPTH
