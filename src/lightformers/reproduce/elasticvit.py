"""ElasticViT (arXiv 2303.09730): do sub-networks of similar cost in neighbouring updates train better than random ones?

    lightformers reproduce elasticvit

Hardware: two cores, five minutes. A super-network of one convolution and two attention stages (0.2 to 9.5 million
multiply-adds) learns CIFAR-10 from a small convolutional teacher. Equal updates for: uniform sampling, complexity-aware
sampling, and both samplings of the paper. Judged on three fixed sub-networks for each of four costs, batch statistics
recalibrated, no retraining. Expected: gradients of neighbouring updates agree more, small sub-networks gain; differences of
0 to 3 points.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightformers import reproduce
from lightformers.bundle import Batch, Bundle
from lightformers.compress.elastic.batch_norm import recalibrate
from lightformers.compress.elastic.elasticvit import ElasticViT, accuracy, extract, feed
from lightformers.compress.elastic.elasticvit_banks import within
from lightformers.compress.elastic.elasticvit_sampling import Sampler, Uniform
from lightformers.models.vision.elasticvit import ElasticViTModel
from lightformers.models.vision.elasticvit_cost import flops
from lightformers.models.vision.elasticvit_space import Architecture, ElasticViTSpace, Stage
from lightformers.reproduce import common
from lightformers.reproduce.finding import Finding
from lightformers.steps import Run
from lightformers.tasks.image_classification import ImageClassification
from lightformers.train import Feed, Settings, fit

CLAIM = (
    "Drawing sub-networks of similar cost in neighbouring updates makes their gradients agree more than uniform drawing "
    "does, and gives more accurate sub-networks at equal updates, without retraining."
)
SPACE = ElasticViTSpace(
    (16, 24, 32),
    (
        Stage("conv", (1, 2, 3), (8, 12, 16), (2, 3)),
        Stage("attention", (1, 2), (16, 32, 48), (1, 2), 2, values=(1, 2)),
        Stage("attention", (1, 2), (32, 48, 64), (1, 2), 2, values=(1, 2)),
    ),
    classes=10,
    features=128,
    expansion=2,
)
_BATCH = 64
_PAPER = ElasticViT(
    targets=(0.5e6, 1e6, 2e6, 4e6), window=0.2e6, smallest=(1e6, 2e6), capacity=24, capacity_large=24, temperature=0.5,
    rescore=60, lr=3e-3, warmup=0.05, batch=_BATCH,
)  # fmt: skip
_UNIFORM, _COMPLEXITY, _BOTH, _ALONE = "uniform", "complexity-aware", "both samplings", "trained alone"
_SMALL, _LARGE = "accuracy, one of the cheapest", "accuracy, one of the dearest"
_ARMS = (_UNIFORM, _COMPLEXITY, _BOTH)
#: Updates of the teacher for each update of an arm; one costs about a tenth.
_TEACHER = 3
#: Where in the feed the batches of batch statistics and of gradients stand: beyond those that are trained on.
_STATISTICS, _GRADIENTS = 8_000, 9_000
Fixed = list[list[Architecture]]


def run(budget: float = common.FULL) -> Finding:
    """One teacher per seed; every arm gets the same updates on the same images."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    task = _task(clock)
    fixed, pairs = _fixed(1 if clock.short else 3), clock.size(8, 1)
    steps = 1 if clock.short else _plan(clock, task, fixed, pairs, len(seeds))
    scores: dict[str, dict[str, list[float]]] = {}
    used = []
    for seed, count in clock.rounds(seeds, steps):
        used.append(count)
        for arm, cells in _one(task, fixed, pairs, count, seed).items():
            for cell, value in cells.items():
                scores.setdefault(arm, {}).setdefault(cell, []).append(value)
    return _conclude(clock, seeds, scores, used, task)


def _pixels(images: list[np.ndarray], return_tensors: str = "np") -> dict[str, np.ndarray]:
    return {"pixel_values": np.stack([i.transpose(2, 0, 1).astype(np.float32) / 64 - 2 for i in images])}


def _task(clock: common.Clock) -> ImageClassification:
    with np.load(reproduce.data("cifar10") / "cifar10.npz") as file:
        held = {name: file[name] for name in ("x_train", "y_train", "x_test", "y_test")}

    def rows(part: str, first: int, last: int) -> list[dict[str, Any]]:
        pairs = zip(held[f"x_{part}"][first:last], held[f"y_{part}"][first:last])
        return [{"image": x, "label": int(y)} for x, y in pairs]

    train, test = clock.size(9000, 200), clock.size(500, 60)
    return ImageClassification.from_examples(
        {"train": rows("train", 0, train), "valid": rows("train", 9000, 9100), "test": rows("test", 0, test)}
    )


def _fixed(count: int) -> Fixed:
    """`count` sub-networks of each cost, the same for all arms and seeds. One of the cheapest and one of the dearest are
    trained alone as well."""
    rng = np.random.default_rng(7)
    return [[within(SPACE, t, t + _PAPER.window, rng) for _ in range(count)] for t in _PAPER.targets]


class Teacher(nn.Module):
    """Three convolutions with batch norm and a linear layer on the mean: (batch, 3, 32, 32) -> (batch, 10)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((3, 24, 2), (24, 48, 1), (48, 96, 2)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
            ]  # fmt: skip
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(96, 10)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.layers(pixel_values).mean((2, 3)))}


def _seeded(make: Any, seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def _bundle(seed: int) -> Bundle:
    return Bundle(_seeded(lambda: ElasticViTModel(SPACE), seed), _pixels, "image-classification")


def _fit(model: nn.Module, batches: Feed, steps: int, seed: int, teacher: nn.Module | None = None) -> None:
    """Train one network, on the labels or on what the teacher says, as the super-network's are."""

    def objective(module: nn.Module, batch: Batch) -> Tensor:
        target = batch.targets["label"]
        if teacher is not None:
            with torch.no_grad():
                target = (teacher(**batch.inputs)["logits"] / _PAPER.temperature).softmax(-1)
        return nn.functional.cross_entropy(module(**batch.inputs)["logits"], target)

    settings = Settings(
        steps=max(steps, 1), lr=_PAPER.lr, warmup=_PAPER.warmup, schedule="cosine", weight_decay=_PAPER.weight_decay,
        precision="fp32", seed=seed, dropout=True,
    )  # fmt: skip
    fit(model, batches, objective, settings)
    model.eval()


def _sampler(arm: str, seed: int) -> Sampler:
    if arm == _UNIFORM:
        return Uniform(SPACE, _PAPER.uniform, seed)
    programme = _PAPER
    if arm == _COMPLEXITY:
        programme = dataclasses.replace(_PAPER, exploit=0.0, rise=0.0, candidates=1)
    return programme.sampler(SPACE, seed)


def _one(
    task: ImageClassification, fixed: Fixed, pairs: int, steps: int, seed: int
) -> dict[str, dict[str, float]]:
    batches, test = feed(_bundle(seed), task, _BATCH, seed), _tests(task)
    teacher = _seeded(Teacher, seed)
    _fit(teacher, batches, _TEACHER * steps, seed)
    out: dict[str, dict[str, float]] = {}
    bundles, samplers = {}, {}
    for arm in _ARMS:
        bundles[arm], samplers[arm] = _bundle(seed), _sampler(arm, seed)
        run = Run(dtype="fp32", seed=seed, tokens=steps * _BATCH)
        _PAPER.train(bundles[arm], task, run, [teacher], samplers[arm])
        found = [[_accuracy(bundles[arm], arch, batches, test) for arch in group] for group in fixed]
        cells = {_named(t): float(np.mean(group)) for t, group in zip(_PAPER.targets, found)}
        out[arm] = {
            **cells,
            "mean accuracy": float(np.mean(found)),
            _SMALL: found[0][0],
            _LARGE: found[-1][0],
        }
    # how much gradients agree is asked of one set of weights, so that only the sampling differs
    same: Any = bundles[_UNIFORM].model
    for arm, sampler in samplers.items():
        out[arm]["cosine of gradients"] = agreement(same, sampler, batches, pairs)
    out[_ALONE] = {"teacher": accuracy(teacher, test)}
    for name, arch in ((_SMALL, fixed[0][0]), (_LARGE, fixed[-1][0])):
        alone = _seeded(lambda arch=arch: ElasticViTModel(SPACE, arch), seed)
        _fit(alone, batches, steps, seed, teacher)
        recalibrate(alone, [batches.batch(_STATISTICS + i) for i in range(3)])
        out[_ALONE][name] = accuracy(alone, test)
    return out


def _accuracy(bundle: Bundle, arch: Architecture, batches: Feed, test: list[Batch]) -> float:
    """Of a sub-network, its batch statistics measured on three training batches."""
    return accuracy(extract(bundle, arch, [batches.batch(_STATISTICS + i) for i in range(3)]).model, test)


def _named(target: float) -> str:
    return f"accuracy at {target / 1e6:g} M"


def _tests(task: ImageClassification) -> list[Batch]:
    bundle, rows = _bundle(0), task.splits["verify"]
    return [bundle.collate(rows[i : i + 250]) for i in range(0, len(rows), 250)]


def agreement(model: ElasticViTModel, sampler: Sampler, batches: Feed, pairs: int) -> float:
    """Mean cosine of the gradients of two sub-networks from neighbouring updates, on one batch, over all weights."""
    cosines = []
    model.train()
    for place in range(pairs):
        batch = batches.batch(_GRADIENTS + place)
        one, other = (_gradient(model, sampler.draw(0.99).uniform[0], batch) for _ in range(2))
        cosines.append(float(nn.functional.cosine_similarity(one, other, dim=0)))
    model.eval()
    return float(np.mean(cosines))


def _gradient(model: ElasticViTModel, arch: Architecture, batch: Batch) -> Tensor:
    loss = nn.functional.cross_entropy(model(**batch.inputs, arch=arch)["logits"], batch.targets["label"])
    weights = list(model.parameters())
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return torch.cat([torch.zeros(w.numel()) if g is None else g.flatten() for g, w in zip(found, weights)])


def _plan(clock: common.Clock, task: ImageClassification, fixed: Fixed, pairs: int, seeds: int) -> int:
    """Updates of one arm that fit, from timed ones."""
    bundle, teacher, sampler = _bundle(99), _seeded(Teacher, 99), _sampler(_BOTH, 99)
    batches, test = feed(bundle, task, _BATCH, 99), _tests(task)

    def train(steps: int) -> None:
        _PAPER.train(bundle, task, Run(dtype="fp32", tokens=steps * _BATCH), [teacher], sampler)

    def timed(work: Callable[[], Any]) -> float:
        begun = time.monotonic()
        work()
        return time.monotonic() - begun

    train(2)  # first calls are slow
    start = timed(lambda: train(1))
    update = max((timed(lambda: train(9)) - start) / 8, 1e-3)
    lesson = timed(lambda: _fit(teacher, batches, 8, 99)) / 8
    scored = timed(lambda: [_accuracy(bundle, group[0], batches, test) for group in fixed]) / len(fixed)
    agreed = timed(lambda: agreement(bundle.model, sampler, batches, 2)) / 2  # type: ignore[arg-type]
    each = 3 * (start + agreed * pairs + scored * sum(map(len, fixed))) + 2 * scored
    arms = len(_ARMS) + 0.7  # the two networks that are trained alone
    return max(int((clock.left() / seeds - each) / (arms * update + _TEACHER * lesson)), 2)


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], scores: dict[str, dict[str, list[float]]], used: list[int],
    task: ImageClassification,
) -> Finding:  # fmt: skip
    def over(arm: str, rival: str, cell: str = "mean accuracy") -> list[float]:
        return common.gain(scores[arm][cell], scores[rival][cell])

    cosine = over(_COMPLEXITY, _UNIFORM, "cosine of gradients")
    better = over(_BOTH, _UNIFORM)
    verdict, caution = common.together(reproduce.judge(cosine), reproduce.judge(better)), ""
    if float(np.mean(scores[_BOTH]["mean accuracy"])) < 0.2:
        verdict, caution = "inconclusive", " Nothing follows: accuracy is near the 0.1 of guessing."
    gaps = ", ".join(
        f"{name.partition(', ')[2]} {common.said(over(_BOTH, _ALONE, name))}" for name in (_SMALL, _LARGE)
    )
    return reproduce.conclude(
        slug="elasticvit",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"cosine of gradients, complexity-aware over uniform: {common.said(cosine)}. Mean accuracy of the fixed "
            f"sub-networks over uniform: complexity-aware {common.said(over(_COMPLEXITY, _UNIFORM))}, both samplings "
            f"{common.said(better)}; at {_PAPER.targets[0] / 1e6:g} million "
            f"multiply-adds {common.said(over(_BOTH, _UNIFORM, _named(_PAPER.targets[0])))}. Over the same networks trained "
            f"alone for as many updates: {gaps}.{caution}"
        ),
        table=[reproduce.row(arm, **cells) for arm, cells in scores.items()],
        baseline=_UNIFORM,
        settings={
            "space": f"one convolution and two attention stages, {flops(SPACE, SPACE.smallest):,} to {flops(SPACE, SPACE.largest):,} multiply-adds",
            "updates per arm": dict(zip(map(str, seeds), used)),
            "updates of the teacher": f"{_TEACHER} times as many",
            "images of an update": _BATCH,
            "sub-networks of an update": _PAPER.uniform + 1,
            "banks": list(_PAPER.targets),
            "learning rate": _PAPER.lr,
            "data": f"CIFAR-10 subset, {len(task.splits['train'])} to train, {len(task.splits['verify'])} to test",
        },
        limits=(
            "Hundreds of updates on 32 x 32 images instead of 600 epochs of ImageNet, one weak teacher, a space of a "
            "forty-fold range in cost with four banks. Latency on phones and the search were not tried." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )  # fmt: skip
