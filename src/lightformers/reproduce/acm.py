"""Adaptive computation modules (arXiv 2312.10193): does it pay to choose the number of learners per token?

    lightformers reproduce acm

Hardware: two cores, five minutes. A small ViT is trained on a part of CIFAR-10; its feed-forwards become chains of four
learners that train as the paper says, for three budgets. With equal steps: the same chains with as many learners for
every token, or a random number of them, and a plain feed-forward of the same cost distilled alike. Costs are measured,
gates included; the fixed arms' curve is read at the cost that the gates came to. Expected: learned is no worse than
uniform, uniform no worse than random, and all are alike at three quarters.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from lightformers import reproduce
from lightformers.bundle import Batch, Bundle
from lightformers.compress import calibration
from lightformers.compress.adaptive.acm import AdaptiveModules
from lightformers.compress.adaptive.sites import install, sites
from lightformers.compress.adaptive.usage import modules, recording, usage
from lightformers.compress.distill import common as distilling
from lightformers.compress.distill.recover import imitation
from lightformers.parts.adaptive import AdaptiveModule
from lightformers.reproduce import Finding, common
from lightformers.steps import Run
from lightformers.tasks.image_classification import ImageClassification
from lightformers.train import losses

CLAIM = (
    "At a quarter and at half of the feed-forwards' cost, learners chosen per token keep more accuracy than the same "
    "number of learners for every token."
)
_LEARNED, _UNIFORM, _RANDOM, _DENSE = "gates", "uniform", "random", "narrow feed-forward"
_MACS = "multiply-adds of the feed-forwards per token"
_BUDGETS = (0.25, 0.5, 0.75)
_N, _WIDTH, _BLOCKS, _PATCH = 4, 96, 4, 8
#: A training of seconds instead of 97 epochs needs larger steps, and a firmer hold on the budget.
_STEP = AdaptiveModules(learners=_N, lr=2e-3, tune_lr=5e-4, spend=2.0, max_tokens=32)


@dataclass(frozen=True)
class Pixels:
    """Bytes (height, width, 3) to numbers around zero (3, height, width)."""

    def __call__(self, images: Sequence[np.ndarray], return_tensors: str = "np") -> dict[str, np.ndarray]:
        return {"pixel_values": np.stack([i.transpose(2, 0, 1).astype(np.float32) / 64 - 2 for i in images])}


def run(budget: float) -> Finding:
    """The experiment; see the module's docstring."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    task = _task(clock.size(6000, 64), clock.size(2000, 64))
    teacher = _teacher(task, clock)
    pixels = calibration.batches(teacher, task.splits["verify"])
    goal = _logits(teacher, pixels)
    names, scores = _arms(clock), _Scores(pixels, goal)
    images = _plan(clock, teacher, task, names, len(seeds))
    scores.note("original", teacher, _cost(teacher))
    spent, places = [], []
    for seed, count in clock.rounds(seeds, images):
        spent.append(count)
        job = _Job(teacher, task, Run(teacher=teacher, tokens=count, seed=seed, use_labels=True))
        parts = job.chains()
        for arm, b in names:
            made, macs = job.made(arm, b, parts)
            scores.note(f"{arm}, {b:g}", made, macs)
            if arm == _LEARNED and b == 0.5:
                places.append(_map(made, pixels))
    return _conclude(clock, seeds, scores, names, spent, places)


def _arms(clock: common.Clock) -> list[tuple[str, float]]:
    if clock.short:
        return [(arm, 0.5) for arm in (_LEARNED, _UNIFORM, _RANDOM, _DENSE)]
    budgets = _BUDGETS[:2] if clock.few else _BUDGETS
    fixed = [(arm, b) for b in (0.25, 0.5) for arm in (_RANDOM, _DENSE)] if not clock.few else [(_RANDOM, 0.5)]  # fmt: skip
    return [*((_LEARNED, b) for b in budgets), *((_UNIFORM, b) for b in budgets), *fixed]


def _task(train: int, held_out: int) -> ImageClassification:
    with np.load(reproduce.data("cifar10") / "cifar10.npz") as found:
        parts = {
            "train": (found["x_train"], found["y_train"], train),
            "valid": (found["x_train"][::-1], found["y_train"][::-1], 50),
            "test": (found["x_test"], found["y_test"], held_out),
        }
        rows = {
            name: [{"image": image, "label": int(label)} for image, label in zip(x[:n], y[:n])]
            for name, (x, y, n) in parts.items()
        }
    return ImageClassification.from_examples(rows)


def _teacher(task: ImageClassification, clock: common.Clock) -> Bundle:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=_WIDTH, num_hidden_layers=_BLOCKS, num_attention_heads=4, intermediate_size=4 * _WIDTH, image_size=32,
        patch_size=_PATCH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    config.num_labels = len(task.labels)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made: nn.Module = ViTForImageClassification(config)
    bundle = Bundle(made.eval(), Pixels(), "image-classification")
    common.fine_tune(bundle, task, clock.size(60000, 96), seed=0, lr=1e-3)
    bundle.model.eval()
    return bundle


class _Job:
    """The arms of one seed."""

    def __init__(self, teacher: Bundle, task: ImageClassification, run: Run) -> None:
        self.teacher, self.task, self.run = teacher, task, run
        self.places = sites(teacher.model, ("ffn",))
        self.batches = distilling.feed(teacher, task, run, _STEP.max_tokens)

    def chains(self) -> list[AdaptiveModule]:
        """Learners and gates after the first two phases, which all arms with chains share."""
        parts = _STEP.build(self.teacher.model, self.places, self.run.seed)
        _STEP.learn(self.teacher, self.places, parts, self.batches, self.run, 0.0)
        _STEP.choose(self.teacher, self.places, parts, self.batches, self.run, 0.0)
        return parts

    def made(self, arm: str, budget: float, chains: Sequence[AdaptiveModule]) -> tuple[Bundle, float]:
        """The arm's model, and multiply-adds of its feed-forwards on a token."""
        bundle, step = self.teacher.copy(), replace(_STEP, budget=budget)
        if arm == _DENSE:  # a chain of one learner that always runs; it gets the steps of the gates, too
            first, second, third = step.shares
            step = replace(step, shares=(first + second, 1e-9, third))
            with torch.random.fork_rng():
                torch.manual_seed(self.run.seed)
                parts = [AdaptiveModule(s.in_features, s.out_features, 1, round(budget * s.inner), 1) for s in self.places]  # fmt: skip
            step.learn(self.teacher, self.places, parts, self.batches, self.run, 0.0)
        else:
            parts = copy.deepcopy(list(chains))
        for site, part in zip(self.places, parts):
            install(bundle.model, site, part)
        if arm == _LEARNED:
            step.tune(bundle, parts, self.task, self.run, self.batches, 0.0)
            bundle.model.eval()
            return bundle, usage(bundle, self.task.splits["verify"]).macs
        router = _router(arm, budget, self.run.seed)
        for part in parts:
            part.router = router
        with ExitStack() as stack:
            base = imitation(bundle, self.teacher, self.task, self.run, self.batches, stack, step.labels)
            step.train(2, bundle.module(), self.batches, base, self.run, 0.0)
        bundle.model.eval()
        learners = 1.0 if arm == _DENSE else budget * _N
        return bundle, sum(learners * p.learner_macs for p in parts)


def _router(arm: str, budget: float, seed: int) -> Callable[[Tensor], Tensor]:
    """Choices that no gate makes: all of a narrow layer, as many for every token, or binomial with the same mean."""
    generator = torch.Generator().manual_seed(seed)

    def route(logits: Tensor) -> Tensor:
        if arm == _DENSE:
            return torch.ones_like(logits)
        if arm == _UNIFORM:
            return torch.eye(_N + 1)[round(budget * _N)].expand_as(logits)
        drawn = torch.rand(*logits.shape[:-1], _N, generator=generator) < budget
        return torch.eye(_N + 1)[drawn.sum(-1)]

    return route


def _cost(bundle: Bundle) -> float:
    return float(sum(site.macs for site in sites(bundle.model, ("ffn",))))


@torch.no_grad()
def _logits(bundle: Bundle, batches: Sequence[Batch]) -> Tensor:
    return torch.cat([bundle.model(**batch.inputs).logits.float() for batch in batches])


def _map(bundle: Bundle, batches: Sequence[Batch]) -> np.ndarray:
    """(rows, columns): learners that run on each patch, mean over images and blocks."""
    parts = list(modules(bundle.model).values())
    with recording(parts, None, Run()) as record, torch.no_grad():
        bundle.model(**batches[0].inputs)
        counts = torch.stack([record[i].argmax(-1).float() for i in range(len(parts))]).mean((0, 1))
    side = 32 // _PATCH
    return np.asarray(counts[-side * side :].reshape(side, side))


class _Scores:
    """Arm -> one value per seed."""

    def __init__(self, batches: Sequence[Batch], goal: Tensor) -> None:
        self.batches, self.goal = batches, goal
        self.labels = torch.cat([batch.targets["label"] for batch in batches])
        self.values: dict[str, dict[str, list[float]]] = {}

    def note(self, arm: str, bundle: Bundle, macs: float) -> None:
        got = _logits(bundle, self.batches)
        found = {
            "accuracy": float((got.argmax(-1) == self.labels).float().mean()),
            "KL from the original": float(losses.logits_kl(got, self.goal)),
            _MACS: macs,
        }
        for name, value in found.items():
            self.values.setdefault(arm, {}).setdefault(name, []).append(value)

    def curve(self, arm: str, budgets: Sequence[float], seed: int, macs: float) -> float:
        """The accuracy of a fixed arm at a cost, linear between its points, level beyond them."""
        cells = [self.values[f"{arm}, {b:g}"] for b in budgets]
        x = [c[_MACS][seed] for c in cells]
        return float(np.interp(macs, x, [c["accuracy"][seed] for c in cells]))


def _plan(
    clock: common.Clock, teacher: Bundle, task: ImageClassification, names: Sequence[tuple[str, float]], seeds: int
) -> int:  # fmt: skip
    """Images of an arm's training that fit, from a timed short one."""
    probe = 960 if not clock.short else 64
    begun = time.monotonic()
    job = _Job(teacher, task, Run(teacher=teacher, tokens=probe, seed=9, use_labels=True))
    parts = job.chains()
    shared = time.monotonic() - begun
    begun = time.monotonic()
    job.made(_LEARNED, 0.5, parts)
    tune = time.monotonic() - begun
    dense = sum(arm == _DENSE for arm, _ in names)
    begun = time.monotonic()
    _logits(teacher, calibration.batches(teacher, task.splits["verify"]))
    fixed = 2 * (time.monotonic() - begun) * (len(names) + 1)
    # the time of a round grows with its images: chains once, the last phase in every arm, narrow ones as long again
    rate = (shared * (1 + dense) + tune * len(names)) / probe
    return max(int((clock.left() / seeds - fixed) / rate), 64)


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], scores: _Scores, names: Sequence[tuple[str, float]], spent: list[int],
    places: list[np.ndarray],
) -> Finding:  # fmt: skip
    values = scores.values
    budgets = [b for arm, b in names if arm == _UNIFORM]

    def gains(over: str, at: Sequence[float]) -> list[float]:
        """Per seed, the mean over budgets; uniform learners are read off their curve at the cost that was measured."""
        made = []
        for b in at:
            cells, other = values[f"{_LEARNED}, {b:g}"], values[f"{over}, {b:g}"]["accuracy"]
            if over == _UNIFORM:
                other = [scores.curve(over, budgets, seed, macs) for seed, macs in enumerate(cells[_MACS])]
            made.append(common.gain(cells["accuracy"], other))
        return [sum(terms) / len(terms) for terms in zip(*made)]

    gained = gains(_UNIFORM, [b for b in budgets if b < 0.75])
    verdict, caution = reproduce.judge(gained), ""
    others = "".join(
        f", over {arm} at the same target {common.said(gains(arm, [b for a, b in names if a == arm]))}"
        for arm in (_RANDOM, _DENSE)
        if any(a == arm for a, _ in names)
    )
    whole = values["original"]["accuracy"][0]
    values["original"] = {k: v * len(seeds) for k, v in values["original"].items()}
    if whole < 0.2:
        verdict, caution = "inconclusive", f" Nothing follows: the original's accuracy is {whole:.3f}."
    return reproduce.conclude(
        slug="acm",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"accuracy of chosen over uniform learners at the same measured cost {common.said(gained)}{others}; the "
            f"original {whole:.3f}.{caution}"
        ),
        table=[reproduce.row(arm, **cells) for arm, cells in values.items()],
        baseline=f"{_UNIFORM}, 0.5",
        settings={
            "model": f"ViT, {_BLOCKS} blocks, width {_WIDTH}, patches of {_PATCH}; CIFAR-10, part",
            "learners": _N,
            "images per arm, all phases": dict(zip(map(str, seeds), spent)),
            "shares of the phases": list(_STEP.shares),
            "learning rates": [_STEP.lr, _STEP.gate_lr, _STEP.tune_lr],
            "weight of the distance to the budget": _STEP.spend,
            "test images": len(scores.labels),
        },
        limits=(
            "No ImageNet model, no speech; no early exits, A-ViT or MoEfication beside it. Costs are counted: at this size "
            "gathering and scattering tokens takes longer than it saves." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
        plots={"learners per patch at half of the cost": np.mean(places, 0).round(3).tolist()} if places else {},
    )  # fmt: skip
