"""MASFormer (arXiv 2310.12442): how many layers have to see everything?

    lightformers reproduce masformer

Hardware: two cores, five minutes. A decoder of four layers with full attention learns characters of Tiny Shakespeare in
texts of 256, each with one sign that is asked for later. Its weights are taken over by decoders in which only some layers
are full and the others see their own block of 16 and the one before; all go on for the same number of steps, the full one
too. Expected: local attention in every layer answers only what lies near, one or two full layers nearly everything; which
ones is measured, not assumed.
"""

from __future__ import annotations

import time

import torch
from torch import nn

from lightformers import reproduce
from lightformers.bundle import Batch
from lightformers.models.language.decoder import Decoder, DecoderConfig
from lightformers.parts.attention.masformer import Place, mixed_spans, relative_cache, relative_cost
from lightformers.reproduce import common, planted
from lightformers.reproduce.finding import Finding

CLAIM = (
    "With full attention in two of four layers a converted decoder loses at most 0.02 nats per character and a tenth of the "
    "right answers against full attention everywhere, and answers more questions beyond the reach of local attention than "
    "local attention in every layer does."
)
LENGTH, BLOCK, _LAYERS, _WIDTH, _HEADS = 256, 16, 4, 128, 4
LOSS, RECALL = 0.02, 0.1
_LR = 2e-3
#: A question further away than this is out of sight of local attention in every layer: a block more per layer.
FAR = (_LAYERS + 1) * BLOCK
_FULL, _LOCAL, _PAPER = "full", "local", "2 full, bottom"
_ARMS: dict[str, tuple[int, Place]] = {
    _FULL: (_LAYERS, "bottom"),
    _LOCAL: (0, "bottom"),
    _PAPER: (2, "bottom"),
    "1 full, bottom": (1, "bottom"),
    "1 full, top": (1, "top"),
    "1 full, spread": (1, "spread"),
}
_FEW = (_FULL, _LOCAL, _PAPER)
#: Steps of the full decoder before it is converted, in steps of going on.
_BEFORE = 6


def run(budget: float = common.FULL) -> Finding:
    """Train, convert, go on: once per seed."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    data = planted.Planted.of(LENGTH, clock.size(16, 2))
    arms = tuple(a for a in _ARMS if not clock.few or a in _FEW)
    held = data.batches("valid", clock.size(24, 2), 99)
    steps = _plan(clock, data, held, len(arms), len(seeds))
    scores: dict[str, dict[str, list[float]]] = {arm: {} for arm in arms}
    used = []
    for seed, count in clock.rounds(seeds, steps):
        used.append(count)
        whole = _decoder(data, _FULL, seed)
        planted.train(whole, data.batches("train", _BEFORE * count, seed), _BEFORE * count, seed, _LR)
        for arm in arms:
            model = _decoder(data, arm, seed)
            model.load_state_dict(whole.state_dict())
            at_once = planted.measure(model, held, FAR)
            planted.train(model, data.batches("train", count, seed + 50), count, seed, _LR / 2)
            found = planted.measure(model, held, FAR) | {"loss at once": at_once["loss"]}
            for name, value in found.items():
                scores[arm].setdefault(name, []).append(value)
    return _conclude(clock, seeds, scores, used, data, len(held))


def _decoder(data: planted.Planted, arm: str, seed: int) -> Decoder:
    full, place = _ARMS[arm]
    layers = mixed_spans(
        _LAYERS, full, {"kind": "block-attention", "heads": _HEADS, "block": BLOCK},
        {"kind": "mlp", "hidden": 4 * _WIDTH, "activation": "gelu"}, {"kind": "attention", "heads": _HEADS}, place,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Decoder(DecoderConfig(vocab_size=data.vocabulary, hidden_size=_WIDTH, layers=layers)).eval()


def _plan(clock: common.Clock, data: planted.Planted, held: list[Batch], arms: int, seeds: int) -> int:
    """Steps of going on that fit."""
    if clock.budget < common.TINY:
        return 1
    model: nn.Module = _decoder(data, _PAPER, 0)
    planted.train(model, data.batches("train", 1, 0), 1, 0, _LR)  # first calls are slow
    begun = time.monotonic()
    planted.train(model, data.batches("train", 3, 0), 3, 0, _LR)
    step = (time.monotonic() - begun) / 3
    begun = time.monotonic()
    planted.measure(model, held, FAR)
    other = 2 * arms * (time.monotonic() - begun)
    return max(int((clock.left() / seeds - other) / step / (_BEFORE + arms)), 1)


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], scores: dict[str, dict[str, list[float]]], used: list[int],
    data: planted.Planted, held: int,
) -> Finding:  # fmt: skip
    loss = common.gain(scores[_FULL]["loss"], scores[_PAPER]["loss"])
    recall = common.gain(scores[_PAPER]["recall"], scores[_FULL]["recall"])
    far = common.gain(scores[_PAPER]["recall, far"], scores[_LOCAL]["recall, far"])
    verdict = common.together(
        reproduce.judge(loss, -LOSS), reproduce.judge(recall, -RECALL), reproduce.judge(far)
    )
    caution = ""
    if sum(scores[_FULL]["recall"]) / len(seeds) < 0.5:
        verdict, caution = (
            "inconclusive",
            " Nothing follows: full attention has not learned to answer either.",
        )
    table = [
        reproduce.row(
            arm,
            **cells,
            scores_computed=round(relative_cost(_LAYERS, _ARMS[arm][0], LENGTH, block=BLOCK), 3),
            keys_kept=round(relative_cache(_LAYERS, _ARMS[arm][0], LENGTH, block=BLOCK), 3),
        )
        for arm, cells in scores.items()
    ]
    return reproduce.conclude(
        slug="masformer",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"two full layers at the bottom against full attention: loss {common.said([-x for x in loss])} nats, right "
            f"answers {common.said(recall)}; against local attention everywhere, answers beyond {FAR} characters "
            f"{common.said(far)}.{caution}"
        ),
        table=table,
        baseline=_FULL,
        settings={
            "model": f"decoder, {_LAYERS} layers, width {_WIDTH}, {_HEADS} heads, rotary, {data.symbols} characters",
            "length": LENGTH,
            "block": BLOCK,
            "far": FAR,
            "steps of going on (training before it: six times)": dict(zip(map(str, seeds), used)),
            "texts of a batch": data.rows,
            "learning rate": _LR,
            "held-out texts": held * data.rows,
            "scores_computed, keys_kept": "of all layers, as shares of full attention everywhere",
        },
        limits=(
            "Summaries of 8192 tokens cannot be shown, nor that training on long texts adds what short texts lack: here all "
            "texts have one length. The question is planted. Arms are compared at equal tokens, not at equal operations."
            + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )
