"""Recovery: what a cut took away is learned back from the original, without labels.

The outputs of the original (vectors, class logits) are the targets, after Hinton et al. (2015, arXiv 1503.02531);
hidden states may be matched beside them, as TinyBERT does (Jiao et al., 2020, arXiv 1909.10351).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Batch, Bundle, Encoded
from lightformers.compress.distill import common
from lightformers.compress.distill.targets import Targets
from lightformers.errors import ModelError, UserError
from lightformers.runners.named import named, plain_arguments
from lightformers.steps import Run, Stage
from lightformers.train import Feed, losses
from lightformers.train.capture import Capture

#: Tasks whose outputs are numbers that are met by squared error.
_NUMBERS = ("forecasting", "tabular-regression")
_CACHED = {"embedding": "embedding", "text-classification": "logits", "image-classification": "logits",
           "token-classification": "logits", "tabular-classification": "logits", **dict.fromkeys(_NUMBERS, "prediction")}  # fmt: skip
_BANK = 2048
_AHEAD, _AHEAD_IMAGES = 256, 64


@dataclass(frozen=True)
class Recover:
    """Train a cut model to give the original's outputs again.

    What is matched follows the bundle: embeddings by cosine distance; class logits by KL, per example or per token; logits of a language model by KL at valid positions; forecasts and numbers by squared error. Everything
    but the last is computed by the teacher once per example and kept for later epochs and recoveries.

    lr: peak learning rate. seconds, epochs: budget where the run has neither seconds nor tokens; seconds go first.
    share: fraction of the run's budget that is this step's (a recipe may recover twice).
    similarity: weight of the KL between similarities to other examples, beside the cosine distance (embeddings of
        equal width; others have nothing else).
    temperature: of the KL of logits; of the similarities it is 0.05.
    hidden: weight of the mean squared difference of block outputs, relative to their size; above 0 the teacher runs
        along and blocks must have its width.
    labels: weight of the task's own loss where the run uses labels.
    train_embeddings: whether word embeddings are trained; None: only if their width differs from the teacher's.
    max_tokens: padded tokens in a batch; None: 4096, for language models 1024.
    length: cut training texts to so many tokens (label-free encoders only), so that a short training sees more of
        them; None: as long as the model takes.
    made_up: texts that are made up for each training text (see `made_up`), where these are single texts; for a long
        training on little data.

    What is known of the defaults (MiniLM, docstring-to-code retrieval, one seed each; MRR over the original's on unseen
    pairs, plus or minus 0.02 to 0.033). Blocks 0, 2, 4, 5 of six, 120,000 tokens: lr 1.2e-4 1.015, 2.5e-4 0.998, 5e-4
    0.991; similarity=1 at 5e-4 0.931. Six blocks with half their channels, 150,000 tokens: 6e-5 0.991, 2.5e-4 0.985.
    Five blocks with 3/4: 6e-5 1.003, 2.5e-4 0.988. Five blocks with half, 300,000 tokens: 6e-5 0.990, 1.2e-4 0.990,
    2.5e-4 0.987. Five blocks with 3/4, 1.2e-4, 75 seconds: texts of at most 400 characters 1.009, whole ones 0.995.

    Raises ModelError without a teacher or for a bundle without a known task, `train.Diverged` where the loss is not
    finite. Out of memory stays RuntimeError.
    """

    lr: float = 1.2e-4
    epochs: float = 3.0
    seconds: float | None = None
    share: float = 1.0
    similarity: float = 0.0
    temperature: float = 1.0
    hidden: float = 0.0
    labels: float = 0.5
    train_embeddings: bool | None = None
    max_tokens: int | None = None
    length: int | None = None
    made_up: int = 0
    warmup: float = 0.05
    weight_decay: float = 0.01
    stage: ClassVar[Stage] = Stage.RECOVER

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        started = time.monotonic()
        teacher = self.check(bundle, task, run)
        run = common.shared(run, self.share, self.seconds)
        frozen = common.frozen_embeddings(bundle, teacher, self.train_embeddings)
        batches = common.feed(bundle, task, run, self.max_tokens, self.length, self.made_up)
        plan = common.Plan(self.lr, self.epochs, self.warmup, self.weight_decay)
        with ExitStack() as stack:
            objective = _Objective(self, bundle, teacher, task, run, batches, stack)
            common.train(bundle, batches, objective, plan, run, started, frozen)
        return bundle

    def check(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises what `apply` would raise before it trains; returns the teacher. For steps that cut, then recover."""
        teacher = common.teacher_of(bundle, run)
        self._validate(bundle, task)
        return teacher

    def _validate(self, bundle: Bundle, task: Any) -> None:
        if task is None:
            raise UserError(
                "recovery needs a task: its training examples are what the models are compared on"
            )
        if bundle.task not in {*_CACHED, *common.LANGUAGE_MODELS}:
            raise ModelError(
                f"recovery does not know what a bundle with task {bundle.task!r} should give: load it with a task"
            )
        weights = (self.similarity, self.hidden, self.labels)
        if min(weights) < 0 or self.temperature <= 0 or not 0 < self.share <= 1:
            raise UserError("weights must not be negative, temperature must be positive, share in (0, 1]")
        if self.made_up < 0:
            raise UserError(
                f"made_up is a number of texts for each that is there, 0 for none; got {self.made_up}"
            )


class _Objective:
    """(module, batch) -> loss. What it opens (teacher, hooks, runtime) is closed with `stack`."""

    def __init__(
        self,
        step: Recover,
        bundle: Bundle,
        teacher: Bundle,
        task: Any,
        run: Run,
        batches: Feed,
        stack: ExitStack,
    ) -> None:
        self.step, self.bundle, self.task, self.use_labels = step, bundle, task, run.use_labels
        self.arguments = plain_arguments(bundle.module())
        vocabulary = common.vocabulary_map(bundle, teacher)
        self.rows = None if vocabulary is None else torch.tensor(vocabulary, device=run.device)
        self.targets: Targets | None = None
        self.teacher: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None
        if bundle.task in _CACHED:
            self.targets = Targets(
                teacher, _CACHED[bundle.task], _ahead(batches, bundle), vocabulary, run.dtype
            )
            stack.callback(self.targets.close)
        if step.hidden or self.targets is None:
            self.teacher = stack.enter_context(common.live(teacher, run.device))
        self.hidden: list[tuple[int, int]] = []
        if step.hidden:
            self._open_hidden(teacher, stack)
        self.rng = np.random.default_rng(run.seed)

    def _open_hidden(self, teacher: Bundle, stack: ExitStack) -> None:
        own, theirs = anatomy.of(self.bundle.model), anatomy.of(teacher.model)
        if own.width != theirs.width:
            raise ModelError(
                f"hidden states of width {own.width} and {theirs.width} cannot be matched: set hidden=0, or use MiniLM"
            )
        self.hidden = common.block_map(self.bundle, teacher)
        self.own = stack.enter_context(Capture(self.bundle.model, own, hidden=[s for s, _ in self.hidden]))
        self.theirs = stack.enter_context(Capture(teacher.model, theirs, hidden=[t for _, t in self.hidden]))

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        goal = self._goal(batch)
        outputs = named(module(**batch.inputs, **self.arguments))
        loss = self._outputs(outputs, goal, batch)
        if self.hidden:
            mask = batch.inputs.get("attention_mask")
            terms = [
                losses.normalized_hidden_mse(self.own.hidden(s), self.theirs.hidden(t), mask)
                for s, t in self.hidden
            ]
            loss = loss + self.step.hidden * sum(terms) / len(terms)
            self.own.clear()
            self.theirs.clear()
        if self.use_labels and self.step.labels:
            loss = loss + self.step.labels * self.task.loss(outputs, batch)
        return loss

    def _goal(self, batch: Batch) -> Tensor:
        """The teacher's outputs. Known ones are looked up before the teacher runs along: its runner may be the
        same module, and must not leave other states in the hooks."""
        goal = None
        if self.targets is not None:
            tokens = self.bundle.task == "token-classification"
            goal = self.targets.padded(batch) if tokens else self.targets.stacked(batch)
        if self.teacher is not None:
            outputs = self.teacher(common.translated(batch.inputs, self.rows))
            goal = outputs["logits"] if goal is None else goal
        assert goal is not None
        return goal

    def _outputs(self, outputs: Mapping[str, Tensor], goal: Tensor, batch: Batch) -> Tensor:
        if self.bundle.task == "embedding":
            return self._embedding(outputs["embedding"], goal)
        if self.bundle.task in _NUMBERS:
            return (outputs["prediction"].float() - goal).square().mean()
        own, valid = outputs["logits"], None
        if self.targets is None:  # only the valid rows: with a vocabulary of logits each, padding is dear
            rows = batch.inputs["attention_mask"].bool()
            own, goal = own[rows], goal[rows]
            goal = goal if self.rows is None else goal[:, self.rows]
        elif self.bundle.task == "token-classification":
            starts = batch.targets.get("word_starts")
            valid = batch.inputs["attention_mask"].bool() if starts is None else starts >= 0
        return losses.logits_kl(own, goal, self.step.temperature, valid)

    def _embedding(self, own: Tensor, theirs: Tensor) -> Tensor:
        assert self.targets is not None
        unit, goal = nn.functional.normalize(own.float(), dim=-1), nn.functional.normalize(theirs, dim=-1)
        if own.shape != theirs.shape:  # another space: only the similarities can be the same
            return losses.similarity_kl(unit, goal)
        loss = losses.embedding_cosine(own, theirs)
        if self.step.similarity:
            bank = torch.from_numpy(self.targets.sample(_BANK, self.rng)).to(own.device)
            bank = nn.functional.normalize(bank, dim=-1)
            loss = loss + self.step.similarity * losses.similarity_kl(unit, goal, bank)
        return loss


def imitation(
    bundle: Bundle, teacher: Bundle, task: Any, run: Run, batches: Feed, stack: ExitStack, labels: float = 0.0
) -> Callable[[nn.Module, Batch], Tensor]:
    """(module, batch) -> how far the module's outputs are from the teacher's: what `Recover` trains with.

    labels: weight of the task's own loss, where the run uses labels. The module takes the bundle's inputs; it may be
    another than the bundle's (a sub-network of it). What is opened is closed with `stack`. Raises as `Recover` does.
    """
    step = Recover(labels=labels)
    step._validate(bundle, task)
    return _Objective(step, bundle, teacher, task, run, batches, stack)


def _ahead(batches: Feed, bundle: Bundle) -> Callable[[Batch], list[Encoded]]:
    """What a batch's successors will ask the teacher for: many at once run several times faster than few.

    Twice as many each time, up to four times the first, so that a short training does not pay for what it never reaches.
    """
    first = _AHEAD_IMAGES if "image" in batches.items[0] else _AHEAD
    asked = itertools.count()

    def successors(batch: Batch) -> list[Encoded]:
        items: list[Any] = []
        position = batch.targets["position"]
        wanted = first * 2 ** min(next(asked), 2)
        while len(items) < wanted:
            position += 1
            items += [batches.items[i] for i in batches.indices(position)]
        if "input_ids" in items[0]:
            return items
        if "query" in items[0]:
            items = [{"text": pair[role], "role": role} for pair in items for role in ("query", "document")]
        return bundle.encode(items)

    return successors
