"""ElasticViT's training programme (Tang et al., ICCV 2023, arXiv 2303.09730): one training, networks of every cost."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightformers.bundle import Batch, Bundle
from lightformers.compress.distill import common
from lightformers.compress.elastic.adaptive_clipping import adaptive_clipping
from lightformers.compress.elastic.batch_norm import recalibrate
from lightformers.compress.elastic.divergence import adaptive_alpha
from lightformers.compress.elastic.elasticvit_banks import Bank, Entry
from lightformers.compress.elastic.elasticvit_sampling import ConflictAware, Draw, Sampler
from lightformers.compress.elastic.elasticvit_search import Evolution, evolve
from lightformers.errors import DataError, ModelError, UserError
from lightformers.models.vision.elasticvit import ElasticViTModel
from lightformers.models.vision.elasticvit_cost import even, flops
from lightformers.models.vision.elasticvit_space import Architecture, ElasticViTSpace
from lightformers.runners.named import named
from lightformers.steps import Run
from lightformers.train import Feed, Settings, TrainResult, fit


@dataclass(frozen=True)
class Trained:
    """banks: the best sub-networks met in training, by cost. result: of the training loop."""

    banks: tuple[Bank, ...]
    result: TrainResult


@dataclass(frozen=True)
class ElasticViT:
    """Train an `ElasticViTModel` so that its sub-networks can be used without training of their own.

    Each update trains `uniform` sub-networks of similar cost on the teachers' mean output (on the labels without
    teachers) and one small network on the mean output of these; gradients add up.

    targets: multiply-adds of the banks, ascending. window: how much more a bank's sub-networks may cost. smallest: costs
        of the small networks beside the space's smallest; of each the evenly scaled one is taken.
    capacity, capacity_large: entries of a bank, and of one of at least `large` multiply-adds.
    exploit, rise: probability of drawing from the bank at first, and what every sixth of the training adds.
    candidates: how many are drawn when exploring. temperature: the teachers' logits are divided by it.
    rescore: updates after which the current bank is scored anew; 0 for never.
    clip: limit of adaptive clipping, 0 for none. batch: images of an update. epochs: where the run has no budget.

    What differs from the paper: sub-networks are brought into a cost window gene by gene instead of drawn until one fits;
    the architectures of the small networks are not known, so they are scaled evenly; the score is the negative cross entropy on the
    update's own batch, before the update; there is no augmentation, which is the task's affair; all four graphs are
    held at once. The defaults are the paper's, made for ImageNet: smaller spaces need targets of their own.
    """

    targets: tuple[float, ...] = (100e6, 200e6, 300e6, 400e6, 500e6, 700e6, 900e6, 1200e6)
    window: float = 20e6
    smallest: tuple[float, ...] = (200e6, 400e6, 800e6)
    capacity: int = 150
    capacity_large: int = 50
    large: float = 700e6
    uniform: int = 3
    exploit: float = 0.2
    rise: float = 0.15
    candidates: int = 5
    temperature: float = 0.2
    rescore: int = 400
    lr: float = 5e-4
    weight_decay: float = 0.05
    warmup: float = 5 / 600
    clip: float = 0.1
    batch: int = 64
    epochs: float = 600.0

    def __post_init__(self) -> None:
        if not self.targets or list(self.targets) != sorted(set(self.targets)) or self.targets[0] <= 0:
            raise UserError(f"targets must be positive and ascending, got {self.targets}")
        if min(self.uniform, self.candidates, self.capacity, self.capacity_large, self.batch) < 1:
            raise UserError("uniform, candidates, capacities and batch must be at least 1")
        if min(self.window, self.temperature, self.epochs, self.lr) <= 0 or min(self.rescore, self.clip) < 0:
            raise UserError(
                "window, temperature, epochs and lr must be positive, rescore and clip not negative"
            )
        if not 0 <= self.exploit <= 1 or not 0 <= self.rise <= 1:
            raise UserError("exploit and rise are probabilities")

    def sampler(self, space: ElasticViTSpace, seed: int = 0) -> ConflictAware:
        """Fresh banks over `space`. Raises UserError where a target is outside of what it reaches."""
        least, most = flops(space, space.smallest), flops(space, space.largest)
        for target in self.targets:
            if not least <= target + self.window or target > most:
                raise UserError(
                    f"no sub-network costs {target:,.0f}: this space reaches from {least:,} to {most:,}; choose other targets"
                )
        banks = [Bank(t, self.capacity_large if t >= self.large else self.capacity) for t in self.targets]
        small = (space.smallest, *(even(space, t) for t in self.smallest if least <= t <= most))
        return ConflictAware(
            space, banks, self.window, small, self.uniform, self.candidates, self.exploit, self.rise, seed
        )

    def train(
        self,
        bundle: Bundle,
        task: Any,
        run: Run,
        teachers: Sequence[nn.Module] = (),
        sampler: Sampler | None = None,
    ) -> Trained:
        """Train `bundle.model` in place and leave it in evaluation mode.

        task: image classification; its labels score the banks, and are learnt from where there are no teachers.
        run: its budget in seconds, or in tokens, of which an image is one. sampler: instead of the paper's.
        teachers: modules that take `pixel_values` and give logits of the same classes.
        Raises ModelError where the bundle holds another model, UserError or DataError without a task or images.
        """
        model = network_of(bundle)
        batches = feed(bundle, task, self.batch, run.seed)
        sampler = sampler or self.sampler(model.space, run.seed)
        place = model.stem.weight.device
        updates = self._updates(batches, run)
        settings = Settings(
            seconds=run.seconds, steps=updates, lr=self.lr, warmup=self.warmup, schedule="cosine",
            weight_decay=self.weight_decay, clip=0, precision=common.precision(run), seed=run.seed,
            dropout=True,  # training mode: batch norms take the batch's own statistics
        )  # fmt: skip
        learnt = [t.to(run.device).eval() for t in teachers]
        objective = _Objective(self, sampler, learnt, run.seconds, updates)
        try:
            with adaptive_clipping(model, self.clip):
                result = fit(model, batches, objective, settings, run.progress, device=run.device)
        finally:
            model.to(place).eval()
        return Trained(tuple(sampler.banks), result)

    def _updates(self, batches: Feed, run: Run) -> int | None:
        if run.tokens is not None:
            return max(run.tokens // self.batch, 1)
        if run.seconds is not None:
            return None
        return max(round(self.epochs * len(batches.items) / self.batch), 1)


class _Objective:
    """(module, batch) -> the summed loss of one update's sub-networks; tells the sampler how good they were."""

    def __init__(
        self, programme: ElasticViT, sampler: Sampler, teachers: Sequence[nn.Module], seconds: float | None, steps: int | None
    ) -> None:  # fmt: skip
        self.programme, self.sampler, self.teachers = programme, sampler, teachers
        self.seconds, self.steps = seconds or math.inf, steps or math.inf
        self.done, self.started = 0, time.monotonic()

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        fraction = max(self.done / self.steps, (time.monotonic() - self.started) / self.seconds)
        draw = self.sampler.draw(min(fraction, 1.0))
        goal = self._goal(batch)
        loss, logits = update_loss(module, batch, draw, goal)
        if draw.bank is not None:
            self.sampler.note(draw, [score(one, batch) for one in logits])
            if self.programme.rescore and self.done % self.programme.rescore == self.programme.rescore - 1:
                self._rescore(module, batch, draw.bank)
        self.done += 1
        return loss

    @torch.no_grad()
    def _goal(self, batch: Batch) -> Tensor | None:
        if not self.teachers:
            return None
        outputs = [named(t(**batch.inputs))["logits"].float() for t in self.teachers]
        return torch.stack([(o / self.programme.temperature).softmax(-1) for o in outputs]).mean(0)

    @torch.no_grad()
    def _rescore(self, module: nn.Module, batch: Batch, index: int) -> None:
        bank = self.sampler.banks[index]
        scores = [score(module(**batch.inputs, arch=e.arch)["logits"], batch) for e in bank.entries]
        self.sampler.banks[index] = bank.rescored(scores)


def update_loss(
    module: nn.Module, batch: Batch, draw: Draw, goal: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """The loss of one update, and the logits of the uniform sub-networks.

    goal: probabilities (batch, classes) that they learn; None: the labels. The small network learns their mean.
    """
    logits = [module(**batch.inputs, arch=arch)["logits"].float() for arch in draw.uniform]
    target = batch.targets["label"] if goal is None else goal
    losses = [nn.functional.cross_entropy(one, target) for one in logits]
    mean = torch.stack([one.detach().softmax(-1) for one in logits]).mean(0)
    small = module(**batch.inputs, arch=draw.smallest)["logits"]
    return torch.stack([*losses, adaptive_alpha(small, mean)]).sum(), logits


def score(logits: Tensor, batch: Batch) -> float:
    """Negative cross entropy on the labels."""
    return -float(nn.functional.cross_entropy(logits.detach().float(), batch.targets["label"]))


def network_of(bundle: Bundle) -> ElasticViTModel:
    """The bundle's super-network; ModelError where it holds another model."""
    if not isinstance(bundle.model, ElasticViTModel):
        raise ModelError(
            f"ElasticViT trains a super-network of its own, not a {type(bundle.model).__name__}: make one with "
            "lightformers.models.vision.elasticvit.ElasticViTModel(space)"
        )
    return bundle.model


def feed(bundle: Bundle, task: Any, batch: int, seed: int) -> Feed:
    """The task's labelled training images in batches; raises UserError or DataError where there are none."""
    if task is None:
        raise UserError(
            "ElasticViT needs a task: its images train the super-network and its labels score sub-networks"
        )
    rows = task.training_examples(True)
    if not rows or "image" not in rows[0] or "label" not in rows[0]:
        raise DataError("ElasticViT learns from labelled images: the train split has none")
    classes = network_of(bundle).space.classes
    if (most := max(row["label"] for row in rows)) >= classes:
        raise DataError(f"a label is {most}, and the super-network has {classes} classes")

    def pad(items: list[Any], seed: int) -> Batch:
        made: Batch = task.collate(bundle, items, seed)
        return made

    return Feed(rows, pad, np.ones(len(rows)), max_tokens=batch, max_examples=batch, seed=seed)


def extract(bundle: Bundle, arch: Architecture, batches: Sequence[Batch]) -> Bundle:
    """The sub-network as a bundle of its own, its batch statistics measured on `batches`, in evaluation mode."""
    model = network_of(bundle).subnet(arch)
    recalibrate(model, batches)
    return dataclasses.replace(bundle, model=model.eval(), history=list(bundle.history))


@torch.no_grad()
def accuracy(model: nn.Module, batches: Sequence[Batch]) -> float:
    """Share of right answers."""
    right = [named(model(**b.inputs))["logits"].argmax(-1) == b.targets["label"] for b in batches]
    return float(torch.cat(right).float().mean())


def search(
    bundle: Bundle, train: Sequence[Batch], valid: Sequence[Batch], low: float, high: float,
    evolution: Evolution | None = None, seed: int = 0, banks: Sequence[Bank] = (),
    cost: Callable[[Architecture], float] | None = None,
) -> list[Entry]:  # fmt: skip
    """The most accurate sub-networks on `valid` that cost `low` to `high`, best first, by evolution.

    train: batches that batch statistics are measured on, anew for every candidate. banks: of the training; what they
    remember is where the search starts. cost: see `evolve`.
    """
    space = network_of(bundle).space
    start = [entry.arch for bank in banks for entry in bank.entries]
    return evolve(
        space,
        lambda arch: accuracy(extract(bundle, arch, train).model, valid),
        low,
        high,
        evolution,
        seed,
        cost,
        start,
    )
