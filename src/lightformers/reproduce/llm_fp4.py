"""LLM-FP4 (arXiv 2310.16836): weights and activations in four-bit floats, without training.

    lightformers reproduce llm-fp4

Hardware: two cores, five minutes. all-MiniLM-L6-v2 is quantized after a look at 32 news texts, and scored on sentence
pairs it was never calibrated on; each seed draws other texts and other pairs. Arms: integers and floats at their
maxima, floats with searched ranges and formats, and the same with one power of two per channel. Expected: searching
helps, and the channels' own powers help most, because the features of an encoder differ in size.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np

from lightformers import anatomy, reproduce
from lightformers.bundle import Bundle
from lightformers.compress.quantize.llm_fp4 import FloatQuantize
from lightformers.parts.packed_layers import PackedLinear
from lightformers.reproduce import common
from lightformers.reproduce.finding import Finding
from lightformers.steps import Recipe, Run
from lightformers.tasks.embedding import Embedding

CLAIM = (
    "With weights and activations in four bits, floats whose ranges and formats are searched and whose activations have "
    "a power of two per channel keep more quality than four-bit integers, and than floats with one range per layer."
)
_BASE = "int4, largest value per row and per tensor"
_FLOAT = "e2m1, largest value"
_PLAIN = "searched floats, one range per layer"
_PAPER = "searched floats, a power of two per channel"
_FULL = "fp32"
_PLAINS: dict[str, dict[str, Any]] = {
    _BASE: {"weights": ("int4",), "activations": ("int4",)},
    _FLOAT: {"weights": ("e2m1",), "activations": ("e2m1",), "shift": False},
}
_OTHERS = {
    "int4 weights, int8 activations": {"weights": ("int4",), "activations": ("int8",)},
    "int8 weights and activations": {"weights": ("int8",), "activations": ("int8",)},
}


def run(budget: float = common.FULL) -> Finding:
    """Quantize by every arm and score it, once per draw of calibration texts and pairs."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    encoder = common.encoder(max_length=64)
    if clock.short:
        anatomy.surgery.keep_blocks(encoder.model, [0])
    rows = clock.size(256, 32)
    task = _texts(clock.size(600, 64))
    pairs = common.pairs(clock.size(900, 36))
    candidates = _plan(clock, encoder, task, pairs[:: len(seeds)], rows, len(seeds))
    arms = dict(_PLAINS) | ({} if clock.few else _OTHERS)
    scores: dict[str, dict[str, list[float]]] = {}
    chosen: Counter[str] = Counter()
    for seed in seeds:
        part = pairs[seed :: len(seeds)]
        exact = _vectors(encoder, part)
        _note(scores, _FULL, _correlation(exact, part), 1.0)
        todo = {
            arm: FloatQuantize(**fields, candidates=0, rounds=1, rows=rows) for arm, fields in arms.items()
        }
        for arm, shift in ((_PLAIN, False), (_PAPER, True)):
            todo[arm] = FloatQuantize(shift=shift, candidates=candidates, rounds=2, rows=rows)
        for arm, step in todo.items():
            small = Recipe((step,)).apply(encoder, task, Run(seed=seed, dtype="fp32"))
            if arm == _PAPER:
                chosen.update(_formats(small))
            found = _vectors(small, part)
            cosine = float((found * exact).sum(-1).mean())
            _note(scores, arm, _correlation(found, part), cosine)
    return _conclude(clock, seeds, scores, chosen, candidates, rows, len(pairs))


def _texts(count: int) -> Embedding:
    news = [{"text": f"{r['title']}. {r['text']}"} for r in common.records("ag_news", "train")]
    drawn = [news[i] for i in np.random.default_rng(0).permutation(len(news))[:count]]
    third = count // 3
    return Embedding.from_examples(
        {
            "train": drawn[: -2 * (third // 4)],
            "valid": drawn[-2 * (third // 4) : -(third // 4)],
            "test": drawn[-(third // 4) :],
        }
    )


def _vectors(bundle: Bundle, pairs: list[dict[str, Any]]) -> np.ndarray:
    """(2, n, width), unit length."""
    found = np.stack([common.vectors(bundle, [p[side] for p in pairs], exact=True) for side in "ab"])
    unit: np.ndarray = found / np.maximum(np.linalg.norm(found, axis=-1, keepdims=True), 1e-12)
    return unit


def _correlation(vectors: np.ndarray, pairs: list[dict[str, Any]]) -> float:
    return float(np.corrcoef((vectors[0] * vectors[1]).sum(-1), [p["score"] for p in pairs])[0, 1])


def _note(scores: dict[str, dict[str, list[float]]], arm: str, correlation: float, cosine: float) -> None:
    cells = scores.setdefault(arm, {"correlation": [], "cosine to fp32": []})
    # all vectors alike: there is no correlation, which is as bad as none
    cells["correlation"].append(correlation if np.isfinite(correlation) else 0.0)
    cells["cosine to fp32"].append(cosine)


def _formats(bundle: Bundle) -> list[str]:
    layers = [m for m in bundle.model.modules() if isinstance(m, PackedLinear)]
    return [f"weights {m.matrix.form.name}" for m in layers] + [
        f"activations {m.input.form.name}" for m in layers if m.input is not None
    ]


def _plan(
    clock: common.Clock, encoder: Bundle, task: Embedding, pairs: list[dict[str, Any]], rows: int, seeds: int
) -> int:
    """Candidates of a search that fit, from timed ones with one and with three."""
    took = []
    for count in (1, 3):
        begun = time.monotonic()
        step = FloatQuantize(candidates=count, rounds=2, rows=rows)
        small = Recipe((step,)).apply(encoder, task, Run(dtype="fp32"))
        took.append(time.monotonic() - begun)
    begun = time.monotonic()
    _vectors(small, pairs)
    score = time.monotonic() - begun
    each = max((took[1] - took[0]) / 2, 1e-3)
    spare = (
        clock.left(0.15) / seeds - (3 if clock.few else 5) * (score + 0.3 * took[0]) - 2 * (score + took[0])
    )
    return int(np.clip(spare / 2 / each, 2, 100))


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], scores: dict[str, dict[str, list[float]]], chosen: Counter[str],
    candidates: int, rows: int, pairs: int,
) -> Finding:  # fmt: skip
    def seen(arm: str) -> list[float]:
        return scores[arm]["correlation"]

    integers, plain = (common.gain(seen(_PAPER), seen(arm)) for arm in (_BASE, _PLAIN))
    return reproduce.conclude(
        slug="llm-fp4",
        claim=CLAIM,
        verdict=common.together(reproduce.judge(integers), reproduce.judge(plain)),
        summary=(
            f"correlation with people's scores {common.said(seen(_PAPER), False)} in four bits against "
            f"{common.said(seen(_FULL), False)} in fp32: {common.said(integers)} over int4, {common.said(plain)} over one "
            f"range per layer; searching and choosing formats over e2m1 at its maximum "
            f"{common.said(common.gain(seen(_PLAIN), seen(_FLOAT)))}."
        ),
        table=[reproduce.row(arm, **cells) for arm, cells in scores.items()],
        baseline=_BASE,
        settings={
            "model": "all-MiniLM-L6-v2" + (", its first block" if clock.short else ""),
            "calibration texts": FloatQuantize.examples,
            "tokens kept of them": rows,
            "candidates": candidates,
            "rounds": 2,
            "sentence pairs in all": pairs,
            "formats chosen, layers over all seeds": dict(sorted(chosen.items())),
        },
        limits=(
            "One small encoder without training; word embeddings are quantized in every arm. LLaMA's figures, language "
            "modelling and the speed of hardware for four-bit floats cannot be shown: the products are simulated. The "
            "search tries factors of the maximum, the paper's code factors of the exponent bias."
            + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )
