"""What distilling steps share: budget, feed, frozen embeddings, live teacher, and the one training loop."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Batch, Bundle, Encoded, Example
from lightformers.compress.distill import made_up
from lightformers.errors import DataError, ModelError
from lightformers.memo import Memo
from lightformers.processors import Processor
from lightformers.runners.named import named, plain_arguments
from lightformers.steps import Run
from lightformers.train import Feed, Settings, TrainResult, fit
from lightformers.train.schedules import Schedule

#: Tasks whose targets are logits over a whole vocabulary: many numbers per token.
LANGUAGE_MODELS = frozenset({"causal-lm", "masked-lm"})
MAX_TOKENS = 4096
MAX_TOKENS_VOCABULARY = 1024
#: Training texts, tokenized once for all recoveries that share a tokenizer; or only their lengths.
_ENCODED: Memo[list[Encoded]] = Memo()
_LENGTHS: Memo[np.ndarray] = Memo()
_MADE_UP: Memo[list[Example]] = Memo()


@dataclass(frozen=True)
class Plan:
    """How a step trains: the fields that every distilling step has."""

    lr: float
    epochs: float
    warmup: float
    weight_decay: float
    schedule: Schedule = "linear"


def teacher_of(bundle: Bundle, run: Run) -> Bundle:
    """The teacher of this run. Raises ModelError if there is none, or if it is the student."""
    teacher = run.teacher
    if teacher is None:
        raise ModelError(
            "distillation needs a teacher: apply the step through a Recipe, or give Run(teacher=...)"
        )
    if teacher.model is bundle.model:
        raise ModelError("teacher and student are one model: give the step a copy (Recipe.apply makes one)")
    if bundle.processor is None:
        raise ModelError("distillation needs the bundle's tokenizer or image processor")
    return teacher


def shared(run: Run, share: float, seconds: float | None = None) -> Run:
    """The run with this share of its budget; `seconds` (a step's own) count where the run has no budget."""
    if run.seconds is None and run.tokens is None and seconds is not None:
        return dataclasses.replace(run, seconds=seconds)
    return dataclasses.replace(
        run,
        seconds=None if run.seconds is None else run.seconds * share,
        tokens=None if run.tokens is None else max(int(run.tokens * share), 1),
    )


def feed(
    bundle: Bundle, task: Any, run: Run, max_tokens: int | None = None, length: int | None = None, more: int = 0
) -> Feed:  # fmt: skip
    """The task's training examples as batches; encoded once where neither labels nor masks are drawn per batch.

    length: cut texts to so many tokens, where they are encoded once. more: made-up texts for each of the task's, where
    these are single texts.
    """
    examples: list[Example] = task.training_examples(run.use_labels)
    if not examples:
        raise DataError("the train split is empty: give more data")
    more = more if single_texts(bundle, examples) else 0
    drawn = (more, run.seed) if more else ()
    if more:
        key = (*_key(bundle, task, run.use_labels), *drawn)
        examples = examples + _MADE_UP(
            bundle.processor, key, lambda: made_up.examples(examples, more, run.seed)
        )
    limit = max_tokens or (MAX_TOKENS_VOCABULARY if bundle.task in LANGUAGE_MODELS else MAX_TOKENS)
    ours = isinstance(bundle.processor, Processor)
    if "image" in examples[0] or ours:  # encoded when they are needed: all at once they would not fit
        return Feed(
            examples,
            lambda items, seed: task.collate(bundle, items, seed),
            np.ones(len(examples)),
            limit,
            64 if ours else 32,
            seed=run.seed,
        )
    pairs = "query" in examples[0]
    if run.use_labels or bundle.task in LANGUAGE_MODELS:
        measured = _pair_lengths if pairs else _lengths
        lengths = _LENGTHS(
            bundle.processor, (*_key(bundle, task, True), *drawn), lambda: measured(bundle, examples)
        )
        return Feed(
            examples, lambda items, seed: task.collate(bundle, items, seed), lengths, limit, seed=run.seed
        )
    shortest = min(n for n in (length, bundle.max_length, sys.maxsize) if n)
    short = bundle if length is None else dataclasses.replace(bundle, max_length=shortest)
    items = _ENCODED(
        bundle.processor,
        (*_key(short, task, False), *drawn),
        lambda: _compact(short.encode(examples)),
    )
    lengths = np.array([bundle.length(e) for e in items])
    return Feed(items, lambda items, _: bundle.pad(items), lengths, limit, seed=run.seed)


def single_texts(bundle: Bundle, examples: Sequence[Example]) -> bool:
    """Whether the examples are texts by themselves, which other texts may stand beside without an answer."""
    return bundle.task in ("embedding", "text-classification") and all(
        "text" in e and "text_pair" not in e for e in examples[:100]
    )


def _compact(encoded: list[Encoded]) -> list[Encoded]:
    """Token numbers as arrays of 32 bits: as lists they take nine times the memory."""
    numbers = ("input_ids", "token_type_ids")
    return [{k: np.asarray(v, np.int32) if k in numbers else v for k, v in e.items()} for e in encoded]


def _key(bundle: Bundle, task: Any, labels: bool) -> tuple[Any, ...]:
    return task.fingerprint, labels, bundle.max_length, tuple(sorted(bundle.prompts.items()))


def _lengths(bundle: Bundle, examples: Sequence[Example]) -> np.ndarray:
    return np.array([bundle.length(e) for e in bundle.encode(examples)])


def _pair_lengths(bundle: Bundle, pairs: Sequence[Example]) -> np.ndarray:
    """A pair makes two rows, both padded to the longest of the batch."""
    sides = [
        _lengths(bundle, [{"text": p[role], "role": role} for p in pairs]) for role in ("query", "document")
    ]
    return np.asarray(2 * np.maximum(sides[0], sides[1]))


def train(
    bundle: Bundle, batches: Feed, objective: Callable[[nn.Module, Batch], Tensor], plan: Plan, run: Run,
    started: float, frozen: Sequence[str] = (),
) -> TrainResult:  # fmt: skip
    """Train `bundle` on the run's budget (else `plan.epochs`), and leave it in eval mode on the device it was on."""
    place = next(bundle.model.parameters()).device
    seconds = None if run.seconds is None else max(run.seconds - (time.monotonic() - started), 0.1)
    tokens = run.tokens
    if seconds is None and tokens is None:
        tokens = max(int(plan.epochs * batches.lengths.sum()), 1)
    settings = Settings(
        seconds=seconds, tokens=tokens, lr=plan.lr, warmup=plan.warmup, schedule=plan.schedule,
        weight_decay=plan.weight_decay, precision=precision(run), frozen=tuple(frozen), seed=run.seed,
    )  # fmt: skip
    try:
        return fit(bundle.module(), batches, objective, settings, run.progress, device=run.device)
    finally:
        bundle.model.to(place).eval()


def precision(run: Run) -> Any:
    """bf16 where the run wants it and the processor multiplies in it; emulated bf16 is slower than fp32."""
    if run.dtype != "bf16":
        return "fp32"
    if torch.device(run.device).type == "cpu":
        known = [
            getattr(torch.cpu, f"_is_{name}_supported", None)
            for name in ("avx512_bf16", "amx_tile", "arm_bf16")
        ]
        if not any(f() for f in known if f is not None):
            return "fp32"
    return "bf16"


def frozen_embeddings(bundle: Bundle, teacher: Bundle, train_embeddings: bool | None) -> list[str]:
    """Patterns that freeze the word embeddings. None decides: they are frozen while the width is the teacher's.

    They hold most numbers of a small model, so this spares optimizer memory. It was not measurably faster per
    CPU-second in batches of 4,096 tokens, and its effect on quality is not measured.
    """
    path, theirs = anatomy.of(bundle.model).embeddings, anatomy.of(teacher.model).embeddings
    if path is None or theirs is None:
        return []
    if train_embeddings is None:
        own = anatomy.get(bundle.model, path).weight.shape[1]  # type: ignore[index]
        train_embeddings = own != anatomy.get(teacher.model, theirs).weight.shape[1]  # type: ignore[index]
    if train_embeddings:
        return []
    weight = anatomy.get(bundle.model, path).weight
    return [name for name, p in bundle.module().named_parameters() if p is weight]


@contextmanager
def live(teacher: Bundle, device: str) -> Iterator[Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]]:
    """The teacher as a function of inputs, in eval mode and without gradients; it is left as it was."""
    module = teacher.module()
    modes = [(m, m.training) for m in module.modules()]
    place = next(module.parameters()).device
    arguments = plain_arguments(module)
    module.eval().to(device)

    def call(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        with torch.no_grad():
            return named(module(**inputs, **arguments))

    try:
        yield call
    finally:
        module.to(place)
        for m, training in modes:
            m.training = training


def vocabulary_map(bundle: Bundle, teacher: Bundle) -> tuple[int, ...] | None:
    """Teacher's row of each of the student's tokens, None if they are the same. Raises ModelError if it is unknown."""
    own, theirs = bundle.origin.vocabulary, teacher.origin.vocabulary
    if own and min(own) < 0:
        raise ModelError(
            "the student has another tokenizer than its teacher: distil before the tokenizer is replaced"
        )
    if own == theirs:
        return None
    if theirs is not None:
        raise ModelError(
            "the teacher's vocabulary was trimmed and is not the student's: distil from the original"
        )
    return own


def translated(inputs: Mapping[str, Tensor], rows: Tensor | None) -> dict[str, Tensor]:
    """A student's inputs with the token ids of the teacher."""
    out = dict(inputs)
    if rows is not None and "input_ids" in out:
        out["input_ids"] = rows[out["input_ids"]]
    return out


def block_map(bundle: Bundle, teacher: Bundle) -> list[tuple[int, int]]:
    """(student's block, teacher's block) whose outputs should be alike, as places in `anatomy.blocks`.

    A student's block should hand the next one what that had as its input in the source: the output of the block
    before the next block's source; the last one, the teacher's last output. So the block before a gap learns to
    jump it.
    """
    pairs = []
    own, theirs = anatomy.of(bundle.model), anatomy.of(teacher.model)
    for stack in own.stacks:
        mine = [i for i, b in enumerate(own.blocks) if b.stack == stack.name]
        source = [i for i, b in enumerate(theirs.blocks) if b.stack == stack.name]
        names = tuple(teacher.origin.blocks.get(stack.name) or range(len(source)))
        kept = tuple(bundle.origin.blocks.get(stack.name) or range(len(mine)))
        if len(kept) != len(mine) or len(names) != len(source) or not set(kept) <= set(names):
            raise ModelError(
                f"blocks {kept} of the student's {stack.name} cannot be found among the teacher's {names}: "
                "hidden states can only be matched with the model that was cut"
            )
        places = [names.index(k) for k in kept]
        pairs += [(mine[i], source[p - 1]) for i, p in enumerate([*places[1:], len(source)])]
    return pairs
