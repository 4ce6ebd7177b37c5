"""EcoFormer (arXiv 2209.09004): do learned codes of signs stand in for softmax?

    lightformers reproduce ecoformer

Hardware: two cores, five minutes. A small ViT (four blocks, width 64, 65 tokens) learns a part of CIFAR-10 with softmax
attention, once per seed; its attention is then swapped for codes with learned planes, codes with random planes, Performer's
features and elu + 1, and every arm is fine-tuned for the same number of images, softmax too. Expected: learned codes follow
the attention of the softmax model more closely than random ones and come close to softmax after fine-tuning; the counted
energy falls, the more the longer the sequence.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lightformers import anatomy, reproduce
from lightformers.bundle import Bundle
from lightformers.compress.ecoformer import EcoFormer
from lightformers.compress.swap_attention import SwapAttention
from lightformers.parts.attention import hashing, swapped
from lightformers.parts.attention.ecoformer import (
    Operations,
    code_operations,
    linear_operations,
    softmax_operations,
    unit,
)
from lightformers.reproduce import common
from lightformers.reproduce.finding import Finding
from lightformers.steps import Recipe, Run, Step
from lightformers.tasks.image_classification import ImageClassification

CLAIM = (
    "Fine-tuned with attention by learned codes a vision transformer is at most 2 points less accurate than with softmax, and "
    "more accurate than with random codes; learned codes follow the attention that they replace more closely."
)
TOLERANCE = 0.02
_WIDTH, _BLOCKS, _HEADS, _PATCH = 64, 4, 4, 4
_TOKENS = (32 // _PATCH) ** 2 + 1
_SOFTMAX, _LEARNED, _RANDOM, _PERFORMER, _ELU = (
    "softmax",
    "learned codes",
    "random codes",
    "performer",
    "elu + 1",
)
_STEPS: dict[str, Step | None] = {
    _SOFTMAX: None,
    _LEARNED: EcoFormer(),
    _RANDOM: EcoFormer(steps=0),
    _PERFORMER: SwapAttention("performer", {"features": 16}),
    _ELU: SwapAttention("linear"),
}
#: Images of training before the swap, in images of fine-tuning.
_BEFORE = 5
_LR, _TUNE_LR = 1e-3, 5e-4


@dataclass(frozen=True)
class Pixels:
    """Bytes (height, width, 3) to numbers around zero (3, height, width)."""

    def __call__(self, images: Sequence[np.ndarray], return_tensors: str = "np") -> dict[str, np.ndarray]:
        return {"pixel_values": np.stack([i.transpose(2, 0, 1).astype(np.float32) / 64 - 2 for i in images])}


def run(budget: float = common.FULL) -> Finding:
    """Train, swap, fine-tune: every arm once per seed."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    arms = tuple(_STEPS)[: 3 if clock.few else len(_STEPS)]
    task = _task(clock.size(20000, 64), clock.size(1500, 64))
    images = _plan(clock, task, arms, len(seeds))
    scores: dict[str, dict[str, list[float]]] = {arm: {} for arm in arms}
    used = []
    for seed, count in clock.rounds(seeds, images):
        used.append(count)
        whole = _vit(task, seed)
        common.fine_tune(whole, task, _BEFORE * count, seed, _LR)
        for arm in arms:
            made = _swapped(whole, arm, task, seed, clock.short)
            found = (
                {} if arm not in (_LEARNED, _RANDOM) else {"follows attention": _follows(whole, made, task)}
            )
            common.fine_tune(made, task, count, seed + 50, _TUNE_LR)
            for name, value in (found | {"accuracy": common.accuracy(made, task)}).items():
                scores[arm].setdefault(name, []).append(value)
    return _conclude(clock, seeds, scores, used, task)


def _task(train: int, held_out: int) -> ImageClassification:
    with np.load(reproduce.data("cifar10") / "cifar10.npz") as found:
        x, y, x_test, y_test = (found[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    parts = {"train": (x, y, train), "valid": (x[::-1], y[::-1], 50), "test": (x_test, y_test, held_out)}
    rows = {
        name: [{"image": image, "label": int(label)} for image, label in zip(x[:n], y[:n])]
        for name, (x, y, n) in parts.items()
    }
    return ImageClassification.from_examples(rows)


def _vit(task: ImageClassification, seed: int) -> Bundle:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=_WIDTH, num_hidden_layers=_BLOCKS, num_attention_heads=_HEADS, intermediate_size=4 * _WIDTH,
        image_size=32, patch_size=_PATCH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    config.num_labels = len(task.labels)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Bundle(ViTForImageClassification(config).eval(), Pixels(), "image-classification")


def _swapped(whole: Bundle, arm: str, task: ImageClassification, seed: int, short: bool) -> Bundle:
    """A copy with the arm's attention."""
    step = _STEPS[arm]
    if short and isinstance(step, EcoFormer):
        step = replace(step, bits=4, steps=min(step.steps, 2))
    return Recipe([step] if step else []).apply(whole, task, Run(seed=seed, dtype="fp32"))


@torch.no_grad()
def _follows(whole: Bundle, made: Bundle, task: ImageClassification) -> float:
    """Spearman's correlation, over the keys of a query, of codes' products and the softmax model's scores; the mean."""
    seen: dict[str, Tensor] = {}
    blocks = [b.attention for b in anatomy.of(whole.model).blocks if b.attention is not None]
    hooks = [
        anatomy.get(whole.model, path).register_forward_hook(
            lambda m, a, o, path=path: seen.update({path: o})
        )
        for attention in blocks
        for path in (attention.q, attention.k)
        if path is not None
    ]
    batch = whole.collate(task.splits["verify"][:8])
    whole.model(**batch.inputs)
    for hook in hooks:
        hook.remove()
    cores = swapped.cores(made.model)
    found = []
    for attention in blocks:
        q, k = (seen[str(p)].unflatten(-1, (_HEADS, -1)).transpose(1, 2) for p in (attention.q, attention.k))
        core = next(c for path, c in cores.items() if path.startswith(attention.path + "."))
        h = hashing.codes(unit(q), core.core.hash)
        found.append(_rank_correlation(h @ h.transpose(-1, -2), q @ k.transpose(-1, -2)))
    return sum(found) / len(found)


def _rank_correlation(a: Tensor, b: Tensor) -> float:
    """Over the last dimension, mean over the others; ties share their mean rank."""

    def ranks(x: Tensor) -> Tensor:
        x = x.contiguous()
        line = x.sort(-1).values
        first, last = (torch.searchsorted(line, x, right=right).float() for right in (False, True))
        place = (first + last) / 2
        return place - place.mean(-1, keepdim=True)

    one, other = ranks(a), ranks(b)
    scale = (one.square().sum(-1) * other.square().sum(-1)).sqrt().clamp(min=1e-9)
    return float(((one * other).sum(-1) / scale).mean())


def _plan(clock: common.Clock, task: ImageClassification, arms: tuple[str, ...], seeds: int) -> int:
    """Images of fine-tuning that fit."""
    if clock.budget < common.TINY:
        return 32
    whole = _vit(task, 0)
    each = fixed = 0.0
    for arm in arms:
        begun = time.monotonic()
        made = _swapped(whole, arm, task, 0, clock.short)
        common.accuracy(made, task)
        fixed += time.monotonic() - begun
        common.fine_tune(made, task, 32, 0, _LR)  # first calls are slow
        begun = time.monotonic()
        common.fine_tune(made, task, 96, 0, _LR)
        took = (time.monotonic() - begun) / 96
        each += took * (1 + (_BEFORE if arm == _SOFTMAX else 0))
    return max(int((clock.left() / seeds - fixed) / each), 32)


def _operations(arm: str, n: int) -> Operations:
    if arm == _SOFTMAX:
        return softmax_operations(n, _HEADS, _WIDTH // _HEADS)
    if arm in (_PERFORMER, _ELU):
        return linear_operations(n, _HEADS, _WIDTH // _HEADS, 16)
    return code_operations(n, _HEADS, _WIDTH // _HEADS)


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], scores: dict[str, dict[str, list[float]]], used: list[int],
    task: ImageClassification,
) -> Finding:  # fmt: skip
    accuracy = {arm: cells["accuracy"] for arm, cells in scores.items()}
    kept = common.gain(accuracy[_LEARNED], accuracy[_SOFTMAX])
    over = common.gain(accuracy[_LEARNED], accuracy[_RANDOM])
    closer = common.gain(scores[_LEARNED]["follows attention"], scores[_RANDOM]["follows attention"])
    verdict = common.together(
        reproduce.judge(kept, -TOLERANCE), reproduce.judge(over), reproduce.judge(closer)
    )
    caution = ""
    if sum(accuracy[_SOFTMAX]) / len(seeds) < 0.25:
        verdict, caution = "inconclusive", " Nothing follows: softmax has hardly learned either."
    table = []
    for arm, cells in scores.items():
        counted = {n: _operations(arm, n) for n in (_TOKENS, 1024)}
        table.append(
            reproduce.row(
                arm,
                **cells,
                million_multiplications=round(counted[_TOKENS].multiplications / 1e6, 3),
                million_additions=round(counted[_TOKENS].additions / 1e6, 3),
                microjoules=round(counted[_TOKENS].picojoules / 1e6, 3),
                microjoules_at_1024=round(counted[1024].picojoules / 1e6, 3),
            )
        )
    return reproduce.conclude(
        slug="ecoformer",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"accuracy of learned codes against softmax {common.said(kept)}, against random codes {common.said(over)}; rank "
            f"correlation with softmax scores before fine-tuning, learned less random {common.said(closer)}; counted energy of "
            f"attention {_operations(_LEARNED, _TOKENS).picojoules / _operations(_SOFTMAX, _TOKENS).picojoules:.2f} of softmax's "
            f"at {_TOKENS} tokens, {_operations(_LEARNED, 1024).picojoules / _operations(_SOFTMAX, 1024).picojoules:.3f} at 1024.{caution}"
        ),
        table=table,
        baseline=_SOFTMAX,
        settings={
            "model": f"ViT, {_BLOCKS} blocks, width {_WIDTH}, {_HEADS} heads, patches of {_PATCH}, {_TOKENS} tokens, CIFAR-10",
            "training images": len(task.splits["train"]),
            "images of fine-tuning (training before it: five times)": dict(zip(map(str, seeds), used)),
            "learning rates": [_LR, _TUNE_LR],
            "held-out images": len(task.splits["verify"]),
            "counts": "of one block's attention without projections; 3.7 pJ a multiplication, 0.9 pJ an addition",
        },
        limits=(
            "ImageNet accuracy and energy on a chip cannot be shown: operations are counted, not measured, and exponentials and "
            "the making of features are not among them. Backbones with stages, whose last stage keeps softmax, were not tried."
            + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )  # fmt: skip
