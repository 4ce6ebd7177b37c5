"""Combiner (arXiv 2107.05768): is a weight for everything better than the sparse pattern that it costs?

    lightformers reproduce combiner

Hardware: two cores, five minutes. Decoders of three layers learn characters of Tiny Shakespeare in texts of 256, each with
one sign that is asked for later, from scratch: with full attention, with Combiner's fixed, logsparse and axial forms, and
with the sparse patterns of the first two. Expected: full attention is best, each Combiner at most as bad as its pattern,
and answers more questions about signs that the pattern never sees directly.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from lightformers import reproduce
from lightformers.bundle import Batch
from lightformers.models.language.decoder import Decoder, DecoderConfig
from lightformers.parts.mixers.table import MIXERS, make
from lightformers.reproduce import common, planted
from lightformers.reproduce.finding import Finding

CLAIM = (
    "Trained on the same texts in as many steps, Combiner's fixed and logsparse forms reach a lower loss per character than "
    "the sparse patterns they are built from."
)
LENGTH, SPAN, _LAYERS, _WIDTH, _HEADS = 256, 16, 3, 96, 4
_LR = 2e-3
_FULL = "full attention"
_FIXED, _FIXED_PARENT = "Combiner, fixed", "pattern, fixed"
_LOG, _LOG_PARENT = "Combiner, logsparse", "pattern, logsparse"
_ARMS: dict[str, dict[str, Any]] = {
    _FULL: {"kind": "attention", "rotary": False},
    _FIXED: {"kind": "combiner", "span": SPAN},
    _FIXED_PARENT: {"kind": "combiner", "span": SPAN, "pool": "last"},
    _LOG: {"kind": "combiner-logsparse"},
    _LOG_PARENT: {"kind": "combiner-logsparse", "pool": "last"},
    "Combiner, axial": {"kind": "combiner-axial", "span": SPAN},
}


def run(budget: float = common.FULL) -> Finding:
    """Every arm once per seed."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    data = planted.Planted.of(LENGTH, clock.size(8, 2))
    held = data.batches("valid", clock.size(40, 2), 99)
    arms = tuple(_ARMS)[: 5 if clock.few else 6]
    steps = _plan(clock, data, held, arms, len(seeds))
    scores: dict[str, dict[str, list[float]]] = {arm: {} for arm in arms}
    used = []
    for seed, count in clock.rounds(seeds, steps):
        used.append(count)
        batches = data.batches("train", count, seed)
        for arm in arms:
            model = _decoder(data, arm, seed)
            planted.train(model, batches, count, seed, _LR)
            for name, value in planted.measure(model, held, SPAN).items():
                scores[arm].setdefault(name, []).append(value)
    return _conclude(clock, seeds, scores, used, data, len(held))


def _decoder(data: planted.Planted, arm: str, seed: int) -> Decoder:
    layer = {
        "mixer": {"heads": _HEADS, **_ARMS[arm]},
        "ffn": {"kind": "mlp", "hidden": 4 * _WIDTH, "activation": "gelu"},
    }
    config = DecoderConfig(
        vocab_size=data.vocabulary, hidden_size=_WIDTH, layers=[layer] * _LAYERS, positions="learned",
        max_position_embeddings=LENGTH,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Decoder(config).eval()


def _plan(
    clock: common.Clock, data: planted.Planted, held: list[Batch], arms: tuple[str, ...], seeds: int
) -> int:
    """Steps of every arm that fit: two of each are timed."""
    if clock.budget < common.TINY:
        return 1
    each = 0.0
    for arm in arms:
        model: nn.Module = _decoder(data, arm, 0)
        planted.train(model, data.batches("train", 1, 0), 1, 0, _LR)  # first calls are slow
        batches = data.batches("train", 2, 0)
        each += _seconds(partial(planted.train, model, batches, 2, 0, _LR)) / 2
    # an evaluation is a third of a step per batch
    return max(int(clock.left() / seeds / each - len(held) / 3), 1)


def _seconds(work: Callable[[], object]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


@torch.no_grad()
def _times(lengths: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """Seconds of one layer's forward pass over one text, best of three, segments of about the root of the length."""
    out: dict[str, dict[str, float]] = {}
    for arm, options in _ARMS.items():
        for n in lengths:
            given = dict(options) | ({"span": int(n**0.5)} if "span" in options else {})
            mixer = make(MIXERS, width=_WIDTH, heads=_HEADS, **given).eval()
            x = torch.randn(1, n, _WIDTH, generator=torch.Generator().manual_seed(0))
            out.setdefault(arm, {})[str(n)] = round(min(_seconds(partial(mixer, x)) for _ in range(3)), 4)
    return out


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], scores: dict[str, dict[str, list[float]]], used: list[int],
    data: planted.Planted, held: int,
) -> Finding:  # fmt: skip
    fixed, log = (
        common.gain(scores[parent]["loss"], scores[arm]["loss"])
        for arm, parent in ((_FIXED, _FIXED_PARENT), (_LOG, _LOG_PARENT))
    )
    recalls = {
        arm: common.gain(scores[arm]["recall, far"], scores[parent]["recall, far"])
        for arm, parent in ((_FIXED, _FIXED_PARENT), (_LOG, _LOG_PARENT))
    }
    verdict = common.together(reproduce.judge(fixed), reproduce.judge(log))
    behind = common.gain(scores[_FIXED]["loss"], scores[_FULL]["loss"])
    counts = {arm: sum(p.numel() for p in _decoder(data, arm, 0).parameters()) for arm in scores}
    return reproduce.conclude(
        slug="combiner",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"nats per character, pattern less Combiner: fixed {common.said(fixed)}, logsparse {common.said(log)}; right "
            f"answers beyond a segment, Combiner less pattern: fixed {common.said(recalls[_FIXED])}, logsparse "
            f"{common.said(recalls[_LOG])}. Combiner-fixed is {common.said(behind)} nats behind full attention."
        ),
        table=[reproduce.row(arm, **cells, parameters=counts[arm]) for arm, cells in scores.items()],
        baseline=_FULL,
        settings={
            "model": f"decoder, {_LAYERS} layers, width {_WIDTH}, {_HEADS} heads, learned positions, {data.symbols} characters",
            "length": LENGTH,
            "segment": SPAN,
            "steps": dict(zip(map(str, seeds), used)),
            "texts of a batch": data.rows,
            "learning rate": _LR,
            "held-out texts": held * data.rows,
            "seconds of a layer by length": _times((256,) if clock.short else (256, 1024, 4096)),
        },
        limits=(
            "Images (ImageNet-64, for which the axial form is made) were not tried; the axial form has more parameters. The "
            "patterns are Combiner with each span replaced by its last token." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )
