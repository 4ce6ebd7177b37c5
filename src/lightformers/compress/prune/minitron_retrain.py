"""Minitron's retraining: the cut model gives the uncut one's distribution again."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Batch, Bundle
from lightformers.compress import calibration
from lightformers.compress.distill import common
from lightformers.errors import ModelError, UserError
from lightformers.runners.named import named, plain_arguments
from lightformers.steps import Run, Stage
from lightformers.train import losses
from lightformers.train.capture import Capture


@dataclass(frozen=True)
class MinitronRetrain:
    """Distil logits, and hidden states where asked, from the uncut model (Muralidharan et al., 2024, arXiv 2407.14679).

    `KL(teacher || student)` per token, plus, with `hidden`, the mean squared distance of block outputs at a weight that
    makes both terms equal in every step: `alpha = L_logits / L_hidden`, not differentiated. Where widths differ, a
    linear map per pair of blocks is learnt along.

    hidden: match block outputs too (the paper: only where depth was cut a lot).
    temperature: of the distributions (paper: 1). labels: weight of the task's own loss where the run uses labels;
        0: none (the paper).
    lr, epochs, seconds, share, train_embeddings, max_tokens, warmup, weight_decay: as in `Recover`.

    Raises ModelError without a teacher, and for models that give no logits.
    """

    hidden: bool = False
    temperature: float = 1.0
    labels: float = 0.0
    lr: float = 2.5e-4
    epochs: float = 3.0
    seconds: float | None = None
    share: float = 1.0
    train_embeddings: bool | None = True
    max_tokens: int | None = None
    warmup: float = 0.05
    weight_decay: float = 0.01
    stage: ClassVar[Stage] = Stage.RECOVER

    def __post_init__(self) -> None:
        if not self.temperature > 0 or self.labels < 0 or not 0 < self.share <= 1 or not self.lr > 0:
            raise UserError("temperature and lr must be positive, labels not negative, share in (0, 1]")

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        started = time.monotonic()
        if task is None:
            raise UserError(
                "retraining needs a task: its training examples are what the models are compared on"
            )
        teacher = common.teacher_of(bundle, run)
        if bundle.task in (None, "embedding"):
            raise ModelError("Minitron distils logits, and this bundle has none: use Recover or MiniLM")
        vocabulary = common.vocabulary_map(bundle, teacher)
        pairs = common.block_map(bundle, teacher) if self.hidden else []
        run = common.shared(run, self.share, self.seconds)
        frozen = common.frozen_embeddings(bundle, teacher, self.train_embeddings)
        batches = common.feed(bundle, task, run, self.max_tokens)
        plan = common.Plan(self.lr, self.epochs, self.warmup, self.weight_decay)
        own, theirs = anatomy.of(bundle.model), anatomy.of(teacher.model)
        with ExitStack() as stack:
            objective = _Objective(self, pairs, own.width, theirs.width, run.seed)
            objective.call = stack.enter_context(common.live(teacher, run.device))
            objective.arguments = plain_arguments(bundle.module())
            objective.rows = None if vocabulary is None else torch.tensor(vocabulary, device=run.device)
            objective.task = task if run.use_labels and self.labels else None
            objective.mine = stack.enter_context(Capture(bundle.model, own, hidden=[s for s, _ in pairs]))
            objective.goal = stack.enter_context(Capture(teacher.model, theirs, hidden=[t for _, t in pairs]))
            common.train(bundle, batches, objective, plan, run, started, frozen)
        return bundle


def balance(first: Tensor, second: Tensor) -> Tensor:
    """`first + alpha * second` with alpha = first / second taken as a constant: both count the same."""
    return first + (first.detach() / second.detach().clamp(min=1e-12)) * second


class _Objective(nn.Module):
    """(module, batch) -> loss; holds the maps between hidden states of different width."""

    def __init__(
        self, step: MinitronRetrain, pairs: list[tuple[int, int]], width: int, goal: int, seed: int
    ) -> None:
        super().__init__()
        self.step, self.pairs = step, pairs
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            same = width == goal
            self.maps = nn.ModuleList(nn.Identity() if same else nn.Linear(width, goal) for _ in pairs)
        self.call: Any = None
        self.arguments: dict[str, bool] = {}
        self.rows: Tensor | None = None
        self.task: Any = None
        self.mine: Any = None
        self.goal: Any = None

    def forward(self, module: nn.Module, batch: Batch) -> Tensor:
        theirs = self.call(common.translated(batch.inputs, self.rows))["logits"]
        outputs = named(module(**batch.inputs, **self.arguments))
        mask = batch.inputs.get("attention_mask")
        own, theirs = (calibration.real_tokens(x, mask) for x in (outputs["logits"], theirs))
        if self.rows is not None and theirs.shape[-1] != own.shape[-1]:
            theirs = theirs[:, self.rows]
        loss = losses.logits_kl(own, theirs, self.step.temperature)
        if self.pairs:
            terms = [
                losses.hidden_mse(to(self.mine.hidden(s)), self.goal.hidden(t), mask)
                for to, (s, t) in zip(self.maps, self.pairs)
            ]
            loss = balance(loss, torch.stack(terms).mean())
        self.mine.clear()
        self.goal.clear()
        if self.task is not None:
            loss = loss + self.step.labels * self.task.loss(outputs, batch)
        return loss
