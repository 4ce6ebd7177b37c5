"""Hierarchical autoregressive transformers (arXiv 2501.10322): a language model without a tokenizer, at what price?

    lightformers reproduce hierarchical-autoregressive

Hardware: two cores, five minutes. Three models of about equal parameters learn the same pieces of 256 characters of
WikiText-2 for equal seconds: bytes to words to bytes (a small layer, 3 of width 96, a small one), a transformer of bytes
(3 layers of width 96) and one of a learnt vocabulary of 1,024 byte pairs (3 layers of width 96). Then each goes on for a
quarter of that time on German captions. Bits per byte of text as it is, of text with 10 % of its letters swapped, dropped or
changed in case, and of German text. Expected: near the byte pairs, far better than bytes; a smaller loss by the noise; less
bits on German after the same time.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightformers import reproduce
from lightformers.bundle import Batch
from lightformers.models.language.decoder import Decoder, DecoderConfig
from lightformers.models.language.hierarchical_autoregressive import (
    HierarchicalAutoregressive,
    HierarchicalConfig,
)
from lightformers.models.language.words import PAD, stack, words_of
from lightformers.reproduce import common
from lightformers.reproduce.finding import Finding
from lightformers.train import Feed, Settings, fit

CLAIM = (
    "Trained for the same time, bytes-to-words-to-bytes costs at most 2 % more bits per byte than a transformer of byte pairs, "
    "loses fewer bits when letters are noisy, and needs fewer on German after the same time of going on."
)
TOLERANCE = 0.02
LENGTH, BATCH, LR, LONGEST = 256, 16, 2e-3, 24
HIERARCHY = HierarchicalConfig((48, 1, 2), (96, 3, 4), (48, 1, 2), LONGEST)
PLAIN, LAYERS = 96, 3
_WORDS, _BYTES, _PAIRS = "bytes to words to bytes", "bytes", "byte pairs (1,024)"


@dataclass(frozen=True)
class Arm:
    """A way to model text. encode: a text to numbers of any shape; pad: several of those to one tensor; nats: (module,
    tensor) -> nats of each text and the mean loss per symbol; made: seed -> module."""

    encode: Callable[[str], Any]
    pad: Callable[[list[Any]], Tensor]
    nats: Callable[[nn.Module, Tensor], Tensor]
    loss: Callable[[nn.Module, Tensor], Tensor]
    made: Callable[[], nn.Module]


def arms(train: str, pairs: int = 1024) -> dict[str, Arm]:
    """The three; byte pairs are learnt from `train`."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([train], vocab_size=pairs, show_progress=False)
    size = tokenizer.get_vocab_size()
    hierarchy = Arm(
        lambda text: words_of(text, LONGEST),
        stack,
        lambda module, words: module.nats(words),  # type: ignore[operator]
        lambda module, words: module.loss(words),  # type: ignore[operator]
        lambda: HierarchicalAutoregressive(HIERARCHY),
    )
    return {
        _WORDS: hierarchy,
        _BYTES: Arm(lambda text: list(text.encode()), _filled, _nats, _loss, lambda: _plain(257)),
        _PAIRS: Arm(lambda text: tokenizer.encode(text).ids, _filled, _nats, _loss, lambda: _plain(size + 1)),
    }


def _plain(symbols: int) -> nn.Module:
    """A plain decoder; the last symbol begins every text."""
    row = {"mixer": {"kind": "attention", "heads": 4}, "ffn": {"kind": "swiglu", "hidden": 256}}
    return Decoder(
        DecoderConfig(vocab_size=symbols, hidden_size=PLAIN, layers=[row] * LAYERS, tie_word_embeddings=True)
    )


def _filled(rows: list[list[int]]) -> Tensor:
    most = max(map(len, rows))
    return torch.tensor([row + [PAD] * (most - len(row)) for row in rows])


def _each(module: nn.Module, ids: Tensor) -> Tensor:
    symbols: int = module.config.vocab_size  # type: ignore[union-attr, assignment]
    start = ids.new_full((len(ids), 1), symbols - 1)
    logits = module(input_ids=torch.cat([start, ids[:, :-1].clamp(min=0)], 1), use_cache=False).logits
    return nn.functional.cross_entropy(logits.mT.float(), ids, ignore_index=PAD, reduction="none")


@torch.no_grad()
def _nats(module: nn.Module, ids: Tensor) -> Tensor:
    return _each(module, ids).sum(1)


def _loss(module: nn.Module, ids: Tensor) -> Tensor:
    return _each(module, ids).sum() / (ids != PAD).sum()


def noisy(text: str, share: float, seed: int) -> str:
    """The text with this share of its letters dropped, changed in case, or swapped with their neighbour."""
    drawn, out = random.Random(seed), list(text)
    for i, letter in enumerate(out):
        if not letter.isalpha() or drawn.random() >= share:
            continue
        kind = drawn.randrange(3)
        if kind == 0:
            out[i] = ""
        elif kind == 1:
            out[i] = letter.swapcase()
        elif i + 1 < len(out):
            out[i], out[i + 1] = out[i + 1], letter
    return "".join(out)


def bits(arm: Arm, module: nn.Module, texts: Sequence[str]) -> float:
    """Bits per byte, what ends words counted in the bits and not in the bytes."""
    module.eval()
    total = 0.0
    for i in range(0, len(texts), BATCH):
        total += float(arm.nats(module, arm.pad([arm.encode(t) for t in texts[i : i + BATCH]])).sum())
    return total / math.log(2) / sum(len(t.encode()) for t in texts)


def pieces(text: str, count: int | None = None, length: int = LENGTH) -> list[str]:
    """Consecutive pieces of so many characters; the first `count`, or all."""
    found = [text[i : i + length] for i in range(0, len(text) - length + 1, length)]
    return found[:count]


def german(count: int, part: str) -> list[str]:
    """Captions, joined and cut into pieces."""
    rows = common.records("multi30k_en_de", part)
    return pieces("\n".join(r["de"] for r in rows), count)


def run(budget: float = common.FULL) -> Finding:
    """Every arm with every seed for the same seconds, in English and then in German."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    text = common.text("wikitext2_small", "train")
    found = arms(text[: clock.size(len(text), 40_000)])
    train = pieces(text, clock.size(4800, 24))
    held = pieces(common.text("wikitext2_small", "valid"), clock.size(240, 4))
    foreign, unseen = german(clock.size(1200, 24), "train"), german(clock.size(100, 4), "valid")
    english, abroad = (
        {name: [arm.encode(t) for t in texts] for name, arm in found.items()} for texts in (train, foreign)
    )
    seconds = clock.left(0.25) / (len(seeds) * len(found)) / 1.25
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in found}
    batch = clock.size(BATCH, 2)
    for seed in seeds:
        damaged = [noisy(t, 0.1, seed) for t in held]
        for name, arm in found.items():
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                module = arm.made()
            updates = _train(arm, module, english[name], seconds, seed, batch)
            clean = bits(arm, module, held)
            cells = {
                "bits per byte": clean,
                "more with 10 % noise": bits(arm, module, damaged) - clean,
                "updates": updates,
            }
            cells["bits per byte, German, before"] = bits(arm, module, unseen)
            _train(arm, module, abroad[name], seconds / 4, seed, batch)
            cells |= {
                "bits per byte, German": bits(arm, module, unseen),
                "bits per byte, English after": bits(arm, module, held),
            }
            for cell, value in cells.items():
                scores[name].setdefault(cell, []).append(float(value))
    return _conclude(clock, seeds, scores, found)


def _train(arm: Arm, module: nn.Module, encoded: list[Any], seconds: float, seed: int, batch: int) -> int:
    def pad(items: list[Any], _: int) -> Batch:
        return Batch({"ids": arm.pad(items)}, {})

    def objective(module: nn.Module, batch: Batch) -> Tensor:
        return arm.loss(module, batch.inputs["ids"])

    feed = Feed(encoded, pad, np.full(len(encoded), LENGTH), LENGTH * batch, batch, seed=seed)
    settings = Settings(seconds=seconds, lr=LR, warmup=0.1, precision="fp32", schedule="cosine", seed=seed)
    return fit(module, feed, objective, settings).steps


def _conclude(
    clock: common.Clock,
    seeds: tuple[int, ...],
    scores: dict[str, dict[str, list[float]]],
    found: dict[str, Arm],
) -> Finding:
    mine, pairs = scores[_WORDS], scores[_PAIRS]
    cost = [a / b - 1 for a, b in zip(mine["bits per byte"], pairs["bits per byte"])]
    noise = common.gain(pairs["more with 10 % noise"], mine["more with 10 % noise"])
    abroad = common.gain(pairs["bits per byte, German"], mine["bits per byte, German"])
    verdict = common.together(
        reproduce.judge([-c for c in cost], margin=-TOLERANCE),
        reproduce.judge(noise),
        reproduce.judge(abroad),
    )
    caution = ""
    if min(pairs["bits per byte"]) > 4:
        verdict, caution = "inconclusive", " Nothing follows: the models have hardly learnt."
    rows = [
        reproduce.row(name, **cells, parameters=sum(p.numel() for p in found[name].made().parameters()))
        for name, cells in scores.items()
    ]
    return reproduce.conclude(
        slug="hierarchical-autoregressive",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"Bits per byte {common.said(mine['bits per byte'], False)}, {100 * float(np.mean(cost)):+.1f} % against byte pairs; "
            f"noise costs {common.said(noise)} fewer bits, German {common.said(abroad)} fewer. "
            f"A model of bytes: {common.said(scores[_BYTES]['bits per byte'], False)}.{caution}"
        ),
        table=rows,
        baseline=_PAIRS,
        settings={
            "data": "WikiText-2 (small), then Multi30k German", "piece": f"{LENGTH} characters", "batch": BATCH, "lr": LR,
            "longest word": LONGEST, "noise": "10 % of letters dropped, swapped or changed in case",
        },
        seeds=seeds,
        limits=(
            "Equal seconds on this processor stand for equal operations. Models of a million parameters say nothing of 7 billion; "
            "downstream tasks were not tried." + clock.note()
        ),
        started=clock.started,
    )  # fmt: skip
