"""What sub-networks learn: the task's own loss where labels may be used, else the outputs of the run's teacher."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from lightformers.bundle import Batch, Bundle
from lightformers.compress.distill import common
from lightformers.compress.distill.recover import imitation
from lightformers.errors import UserError
from lightformers.runners.named import named, plain_arguments
from lightformers.steps import Run
from lightformers.train import Feed

#: (the module of a sub-network, a batch) -> loss.
Lesson = Callable[[nn.Module, Batch], Tensor]


def supervised(bundle: Bundle, run: Run) -> bool:
    """Whether the task's loss is learnt. A text is its own label: language models without a teacher learn it too."""
    return run.use_labels or (run.teacher is None and bundle.task in common.LANGUAGE_MODELS)


def check(bundle: Bundle, task: Any, run: Run) -> None:
    """Raises what `lesson` would raise, before anything is changed. UserError without a task or a teacher."""
    if task is None:
        raise UserError("training an elastic model needs a task: its examples are what is learnt from")
    if not supervised(bundle, run):
        if run.teacher is None:
            raise UserError(
                "without labels an elastic model learns from a teacher: give Run(teacher=...), or use_labels=True"
            )
        common.teacher_of(bundle, run)


def lesson(bundle: Bundle, task: Any, run: Run, batches: Feed, stack: ExitStack) -> Lesson:
    """The loss of one sub-network on one batch. What it opens is closed with `stack`."""
    if not supervised(bundle, run):
        return imitation(bundle, common.teacher_of(bundle, run), task, run, batches, stack)
    arguments = plain_arguments(bundle.module())

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        value: Tensor = task.loss(named(module(**batch.inputs, **arguments)), batch)
        return value

    return loss
