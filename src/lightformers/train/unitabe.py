"""UniTabE: pre-training over tables of different columns, classes and numbers from a table, and filling what is missing."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightformers.bundle import Batch, Bundle, load
from lightformers.errors import DataError, ModelError, UserError
from lightformers.models.tabular.unitabe import CLASSES, HEADS, NUMBERS, PRETRAINED, UniTabE, UniTabEConfig
from lightformers.processors import word_pieces
from lightformers.processors.schema import Row, Schema
from lightformers.processors.unitabe import CLASSIFY, REGRESS, UniTabEProcessor
from lightformers.train.feed import Feed
from lightformers.train.loop import Progress, Settings, fit
from lightformers.train.table_objectives import Corpus, given, objective, recovery
from lightformers.train.unitabe_fill import fill

__all__ = ["fill", "learn", "pretrain"]

#: A model for tables at hand on a laptop: 2 layers of width 64. Dropout costs half the time of so small a model on a CPU.
SMALL: Mapping[str, Any] = {
    "embedding_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "dropout": 0.0,
}  # fmt: skip
#: Fewer rows than this are all trained on; of more, a share is kept apart to choose the moment to stop.
ENOUGH = 256
#: How often in a training the rows kept apart are looked at.
LOOKS = 8


def pretrain(
    tables: Sequence[Sequence[Row]],
    *,
    seed: int = 0,
    seconds: float | None = 180.0,
    steps: int | None = None,
    batch: int = 32,
    lr: float = 1e-3,
    device: str = "cpu",
    tokenizer: Any = None,
    vocabulary: int = 2048,
    labels: int = 32,
    weights: Mapping[str, float] | None = None,
    sizes: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """A model that has seen these tables, to `learn` another one from, or to `fill` them.

    tables: rows of each; targets may stand there as a column like any other. tokenizer: of transformers, WordPiece;
    None: `vocabulary` pieces are learned from the tables. labels: classes that it can tell apart later. weights: of
    "masking" and "contrast". sizes: fields of `UniTabEConfig` instead of `SMALL`. Training ends with `seconds` or
    `steps`, whichever comes first. Raises DataError for tables without values.
    """
    if not tables or not all(len(rows) for rows in tables):
        raise DataError("pre-training needs tables, each with rows")
    processor = UniTabEProcessor.learn(tables, vocabulary if tokenizer is None else 0, labels)
    if tokenizer is not None:
        processor = dataclasses.replace(processor, vocabulary=word_pieces.of_tokenizer(tokenizer))
    corpus = Corpus(tables, processor, batch, seed, weights)
    model = _fresh(processor, seed, task=PRETRAINED, **{**SMALL, **(sizes or {})})
    settings = Settings(seconds=seconds, steps=steps, lr=lr, warmup=0.05, weight_decay=0.0, precision="fp32", dropout=model.config.dropout > 0, seed=seed)  # fmt: skip
    result = fit(model, corpus, objective, settings, progress, None, device)
    note = {"step": "pretrain", "tables": len(tables), "steps": result.steps, "loss": result.loss}
    return Bundle(model.eval(), processor, PRETRAINED, history=[note])


def learn(
    rows: Sequence[Row],
    targets: np.ndarray,
    classes: int | None,
    schema: Schema,
    *,
    seed: int = 0,
    seconds: float | None = 60.0,
    weights: Bundle | str | Path | None = None,
    epochs: int = 30,
    batch: int = 32,
    lr: float = 1e-3,
    head: str = "scalar",
    focal: float = 0.0,
    held_out: float = 0.15,
    device: str = "cpu",
    sizes: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """A classifier (targets: whole numbers below `classes`) or a regressor (classes None, targets float) of rows.

    weights: a bundle of `pretrain`, left as it is, or its folder; None: from scratch, with a vocabulary of this table and
    `sizes`, fields of `UniTabEConfig` instead of `SMALL`. epochs, seconds: whichever is spent first; the same seed gives the same model where time does not end it.
    head: of regression, see `UniTabEConfig`. The paper writes digits; a scalar needs one step, so it is the
    default. focal: the gamma of the focal loss (arXiv 1708.02002). held_out: share of the rows (of `ENOUGH` or more)
    that chooses among `LOOKS` moments of training; 0: the last one. lr: the paper takes 1e-6 and batches of 8 for its
    92 million parameters. Raises UserError or DataError before anything is trained.
    """
    targets = np.asarray(targets)
    _check(rows, targets, classes, head, held_out, sizes if weights else {})
    start = weights if weights is None or isinstance(weights, Bundle) else load(weights)
    if start and not isinstance(start.model, UniTabE):
        raise ModelError(f"weights are those of a UniTabE, not of a {type(start.model).__name__}")
    processor = start.processor if start else UniTabEProcessor.learn([rows], labels=max(classes or 0, 2))
    processor = processor.with_columns(schema)
    model = _answering(processor, start, targets, classes, head, seed, sizes or {})
    task = NUMBERS if classes is None else CLASSES
    bundle = Bundle(model, processor, task, history=list(start.history) if start else [])
    loss = Loss(model, processor, task, focal)
    order = np.random.default_rng(seed).permutation(len(rows))
    kept = round(held_out * len(rows)) if len(rows) >= ENOUGH else 0
    examples = [{"row": rows[i], "label": targets[i].item()} for i in order]
    feed = Feed.of(bundle, examples[kept:], max_tokens=1 << 20, max_examples=batch, seed=seed)
    total = epochs * len(feed.epoch(0))
    settings = Settings(seconds=seconds, steps=total, lr=lr, warmup=0.05, weight_decay=0.0, precision="fp32", dropout=model.config.dropout > 0, seed=seed)  # fmt: skip
    held = bundle.encode(examples[:kept])
    best, state, stopped = np.inf, None, 1.0
    kept_weights: dict[str, Tensor] | None = None
    for look in range(1, LOOKS + 1) if kept else (LOOKS,):
        part = dataclasses.replace(settings, until=look / LOOKS)
        state = fit(model, feed, loss, part, progress, state, device).state
        value = _mean_loss(bundle, loss, held) if kept else 0.0
        if value < best:
            best, stopped = value, look / LOOKS
            kept_weights = {k: v.clone() for k, v in model.state_dict().items()}
    if kept_weights:
        model.load_state_dict(kept_weights)
    bundle.history.append({"step": "learn", "rows": len(rows), "held out": kept, "stopped at": stopped})
    model.eval()
    return bundle


class Loss:
    """The loss of a batch with labels: classes, standardised squared error, or the tokens of the written number."""

    def __init__(self, model: UniTabE, processor: UniTabEProcessor, task: str, focal: float = 0.0) -> None:
        self.config, self.processor, self.task, self.focal = model.config, processor, task, focal

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        label = batch.targets["label"]
        if self.task == CLASSES:
            loss = F.cross_entropy(module(**batch.inputs).logits.float(), label, reduction="none")
            return (loss * (1 - (-loss.detach()).exp()) ** self.focal).mean()
        if self.config.head == "digits":
            read, said = given([self.processor.number(float(x)) for x in label], self.processor)
            return recovery(module(**batch.inputs, answer_ids=read.to(label.device)).answers, said.to(label.device))  # fmt: skip
        mean, deviation = self.config.target_units
        return F.mse_loss(module(**batch.inputs).prediction.float(), ((label - mean) / deviation).float())


def _check(
    rows: Sequence[Row], targets: np.ndarray, classes: int | None, head: str, held_out: float, sizes: Any
) -> None:
    if len(rows) != len(targets) or not len(rows):
        raise DataError(f"{len(rows)} rows and {len(targets)} targets: one for each is needed")
    if classes is None and not np.isfinite(targets.astype(np.float64)).all():
        raise DataError("a target is missing or infinite")
    if classes is not None and (classes < 2 or targets.min() < 0 or targets.max() >= classes):
        raise DataError(f"targets are whole numbers from 0 to below {classes}, of two classes or more")
    if head not in HEADS:
        raise UserError(f"head is one of {', '.join(HEADS)}, not {head!r}")
    if not 0 <= held_out < 1:
        raise UserError(f"held_out is a share of the rows, not {held_out}")
    if sizes:
        raise UserError(
            f"the pre-trained model has its sizes: {', '.join(sizes)} cannot be given with weights"
        )


def _fresh(processor: UniTabEProcessor, seed: int, **fields: Any) -> UniTabE:
    special = {"pad": word_pieces.PAD, "bos": word_pieces.BEGIN, "eos": word_pieces.END}
    known = {
        "vocab_size": len(processor.vocabulary), "max_cell_tokens": processor.max_tokens,
        **{f"{name}_token_id": processor.token(piece) for name, piece in special.items()},
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UniTabE(UniTabEConfig(**{**fields, **known}))


def _answering(
    processor: UniTabEProcessor, start: Bundle | None, targets: np.ndarray, classes: int | None, head: str,
    seed: int, sizes: Mapping[str, Any],
) -> UniTabE:  # fmt: skip
    """A model whose forward answers the question of the task; weights of `start`, where it has them."""
    if classes is None:
        longest = max(len(processor.number(float(x))) for x in targets) + 1
        asks: dict[str, Any] = {
            "task": NUMBERS, "head": head, "prompt_ids": processor.prompt(REGRESS), "answer_tokens": longest,
            "numeral_ids": [processor.token(c) for c in word_pieces.NUMERALS],
            "otherwise": targets.mean(),
            "target_units": (targets.mean(), float(targets.std()) or 1.0) if head == "scalar" else (0.0, 1.0),
        }  # fmt: skip
    else:
        asks = {
            "task": CLASSES,
            "prompt_ids": processor.prompt(CLASSIFY),
            "label_ids": processor.labels(classes),
        }
    if start is None:
        return _fresh(processor, seed, **{**SMALL, **sizes, **asks})
    held: Any = start.model
    names = (*SMALL, "head_dim", "type_aware")
    model = _fresh(processor, seed, **{k: getattr(held.config, k) for k in names}, **asks)
    own = model.state_dict()
    model.load_state_dict({**own, **{k: copy.copy(v) for k, v in held.state_dict().items() if k in own}})
    return model


@torch.no_grad()
def _mean_loss(bundle: Bundle, loss: Loss, held: Sequence[Any], size: int = 256) -> float:
    model: Any = bundle.model.eval()
    cuts = [held[i : i + size] for i in range(0, len(held), size)]
    losses = [float(loss(model, bundle.pad(cut).to(model.device))) * len(cut) for cut in cuts]
    return sum(losses) / len(held)
