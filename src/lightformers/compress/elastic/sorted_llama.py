"""Sorted LLaMA: the first n blocks with the model's own norm and head are a model, for several n."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightformers.bundle import Batch, Bundle
from lightformers.compress.distill import common
from lightformers.compress.elastic import teaching
from lightformers.compress.elastic.exits import Exits, Given, check_depths
from lightformers.compress.elastic.matformer import Nested
from lightformers.compress.elastic.shared import Shared
from lightformers.compress.elastic.space import Space, whole
from lightformers.errors import UserError
from lightformers.runners.named import named, plain_arguments
from lightformers.steps import Run


@dataclass(frozen=True)
class SortedLlama:
    """Sorted fine-tuning (Kavehzadeh et al., 2023, arXiv 2309.08968): every exit learns, with one norm and one head.

    exits: depths that become models, rising to all blocks; None: quarters of them. The paper: 12, 16, ..., 40 of 40.
    mode: "sum" takes the mean of the losses of all exits, from one forward of all blocks; "sample" trains the first n
        blocks for one n per step (SortedNet's way), which costs less than a step of the whole.
    weights: per exit, of its loss ("sum") or its probability ("sample"), normalised to 1; None: uniform.
    lr, epochs, seconds, share, max_tokens, warmup, weight_decay: as in `distill.Recover`.

    Where examples of a causal language model hold a "prompt" that their text begins with, only what follows it is
    learnt; a batch without any such token gives a loss of 0. What differs from the paper: any family with one stack of
    blocks can be trained, an exit being whatever that model does after its last block; without labels the exits learn
    the outputs of the run's teacher. The logits of all exits are held in memory at once in "sum".

    To draft with an exit and verify with the whole, transformers has `generate(assistant_early_exit=n)`; to let every
    token leave at the first exit that is sure, there is `confident.ConfidentExits`.
    """

    exits: tuple[int, ...] | None = None
    mode: Literal["sum", "sample"] = "sum"
    weights: tuple[float, ...] | None = None
    lr: float = 1.2e-4
    epochs: float = 3.0
    seconds: float | None = None
    share: float = 1.0
    max_tokens: int | None = None
    warmup: float = 0.05
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if self.mode not in ("sum", "sample"):
            raise UserError(f"mode {self.mode!r} is not one of sum, sample")
        if self.exits is not None and (
            not self.exits or sorted({e for e in self.exits if e > 0}) != list(self.exits)
        ):
            raise UserError(f"exits must be positive and rise, got {self.exits}")
        if self.weights is not None and (min(self.weights, default=-1) < 0 or sum(self.weights) <= 0):
            raise UserError("weights must not be negative, nor all 0")
        if not self.lr > 0 or not 0 < self.share <= 1:
            raise UserError("lr must be positive, share in (0, 1]")

    def space(self, bundle: Bundle) -> Space:
        """The depths of a model. Raises ModelError for exits that it has not, UserError for weights that do not fit."""
        full = whole(bundle.model)
        depth = full.blocks[0]
        exits = self.exits or tuple(sorted({math.ceil(depth * i / 4) for i in (1, 2, 3, 4)}))
        check_depths(exits, depth)
        if self.weights is not None and len(self.weights) != len(exits):
            raise UserError(f"there are {len(exits)} exits and {len(self.weights)} weights")
        return replace(full, blocks=exits, alike=True)

    def train(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Train `bundle` in place. Raises before anything is changed: ModelError, UserError without task or teacher."""
        started = time.monotonic()
        space = self.space(bundle)
        teaching.check(bundle, task, run)
        run = common.shared(run, self.share, self.seconds)
        exits = Exits(bundle, space.blocks)
        exits.check(bundle.collate(task.calibration(2, seed=run.seed)).inputs)
        batches = common.feed(bundle, task, run, self.max_tokens)
        plan = common.Plan(self.lr, self.epochs, self.warmup, self.weight_decay)
        with ExitStack() as stack:
            if bundle.task == "causal-lm" and teaching.supervised(bundle, run):
                lesson = answers(bundle)
            else:
                lesson = teaching.lesson(bundle, task, run, batches, stack)
            objective: Any = (
                Sorted(exits, lesson, self.weights)
                if self.mode == "sum"
                else Nested(Shared(bundle), list(space), lesson, "sample", self.weights, run.seed)
            )
            common.train(bundle, batches, objective, plan, run, started)
        return bundle


class Sorted:
    """(module, batch) -> weighted mean of the losses of all exits."""

    def __init__(self, exits: Exits, lesson: teaching.Lesson, weights: Sequence[float] | None = None) -> None:
        given = [float(w) for w in weights or [1.0] * len(exits.depths)]
        self.exits, self.lesson = exits, lesson
        self.weights = [w / sum(given) for w in given]

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        found = self.exits(module, batch.inputs)
        losses = [w * self.lesson(Given(outputs), batch) for w, (_, outputs) in zip(self.weights, found)]
        return torch.stack(losses).sum()


def answers(bundle: Bundle) -> teaching.Lesson:
    """Next-token loss over the tokens after each example's "prompt" (all of them where there is none)."""
    arguments = plain_arguments(bundle.module())

    def lesson(module: nn.Module, batch: Batch) -> Tensor:
        logits = named(module(**batch.inputs, **arguments))["logits"]
        return answer_loss(logits, batch.inputs["input_ids"], answer_mask(bundle, batch))

    return lesson


def answer_mask(bundle: Bundle, batch: Batch) -> Tensor:
    """(batch, length) bool: tokens that are to be learnt. A prompt ends where its own tokens and the text's part."""
    mask = batch.inputs["attention_mask"].bool().clone()
    prompts = [e.get("prompt") for e in batch.targets["examples"]]
    if not any(prompts):
        return mask
    encoded = bundle.encode([{"text": p or ""} for p in prompts])
    for row, prompt, item, own in zip(mask, prompts, encoded, batch.targets["examples"]):
        if prompt:
            pairs = zip(item["input_ids"], own["input_ids"])
            same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(item["input_ids"]))
            first = int(row.long().argmax())  # padding may stand on the left
            row[first : first + same] = False
    return mask


def answer_loss(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Mean nats of the tokens in `mask` (batch, length), each predicted from those before it; 0 where there are none.

    The first token of a row has nothing before it and never counts.
    """
    scored = mask[:, 1:]
    nats = F.cross_entropy(logits[:, :-1][scored].float(), ids[:, 1:][scored], reduction="sum")
    return nats / scored.sum().clamp(min=1)
