"""An FT-Transformer trained on one table: short rounds, judged on rows held back, the best one kept."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightformers.bundle import Batch, Bundle
from lightformers.errors import DataError
from lightformers.models.tabular.rows import RowTransformer, RowTransformerConfig, layers
from lightformers.processors.schema import Row, Schema
from lightformers.processors.table import TableProcessor
from lightformers.train.loop import Settings, fit

#: Share of the rows that judge a round, and the fewest rows of which some are held back.
HELD, ENOUGH = 0.2, 40
#: Rounds of a training, and how many without a better one end it.
ROUNDS, PATIENCE = 40, 10


def learn(
    rows: Sequence[Row],
    targets: NDArray[Any],
    classes: int | None,
    schema: Schema,
    *,
    seed: int = 0,
    seconds: float = 60.0,
    width: int = 64,
    depth: int = 3,
    heads: int = 8,
    dropout: float = 0.1,
    epochs: float = 60,
    batch: int | None = None,
    lr: float = 1e-3,
    weight_decay: float = 1e-5,
    device: str = "cpu",
) -> Bundle:
    """A bundle with a `RowTransformer` for this table.

    targets: class numbers (int64), or numbers in the units of the data where classes is None. seconds, epochs: whichever
    is over first ends training; fewer if PATIENCE rounds bring nothing on the HELD rows. batch: rows of an update; None:
    an eighth of them, 16 to 256. Raises DataError where rows and targets are not as many.
    """
    if len(rows) != len(targets) or not len(rows):
        raise DataError(
            f"{len(rows)} rows and {len(targets)} targets: there is one of each, and at least one"
        )
    cast = schema.cast(rows)
    regression = classes is None
    units = (float(np.mean(targets)), float(np.std(targets)) or 1.0) if regression else (0.0, 1.0)
    label = torch.from_numpy(
        ((targets - units[0]) / units[1]).astype(np.float32) if regression else np.asarray(targets, np.int64)
    )
    kept, held = hold(targets, classes, seed)
    processor = TableProcessor.of([cast[i] for i in kept], schema)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = RowTransformer(
            RowTransformerConfig(
                len(processor.quantiles), processor.sizes, width, layers(width, depth, heads, dropout),
                "tabular-regression" if regression else "tabular-classification", units, dropout=dropout / 2,
                initializer_range=width**-0.5, num_labels=1 if classes is None else classes,
            )
        )  # fmt: skip
    model.to(device)
    inputs, _ = processor.pad_encoded(processor.encode_examples([{"row": r} for r in cast]))
    size = batch or int(np.clip(len(kept) // 8, 16, 256))
    _train(
        model, _Shuffled(inputs, label, kept, size, seed), _part(inputs, label, held), epochs * len(kept) / size,
        Settings(seconds=seconds, steps=1, lr=lr, weight_decay=weight_decay, precision="fp32", dropout=True,
                 schedule="stable", seed=seed), device,
    )  # fmt: skip
    return Bundle(model.eval(), processor, model.config.task)


def hold(targets: NDArray[Any], classes: int | None, seed: int) -> tuple[list[int], list[int]]:
    """Places of the rows to train on and of those that judge; of few rows all do both. Every class stays in training."""
    drawn = np.random.default_rng(seed)
    every = drawn.permutation(len(targets))
    if len(targets) < ENOUGH:
        return every.tolist(), every.tolist()
    if classes is None:
        cut = round(HELD * len(every))
        return every[cut:].tolist(), every[:cut].tolist()
    kept: list[int] = []
    held: list[int] = []
    for number in range(classes):
        members = every[np.asarray(targets)[every] == number]
        cut = round(HELD * len(members)) if len(members) > 1 else 0
        held += members[:cut].tolist()
        kept += members[cut:].tolist()
    return kept, held


def objective(module: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy of logits, or the squared error of a prediction."""
    outputs, label = module(**batch.inputs), batch.targets["label"]
    if "prediction" in outputs:
        return (outputs["prediction"].float() - label).square().mean()
    return nn.functional.cross_entropy(outputs["logits"].float(), label)


class _Shuffled:
    """Batches of rows in an order that is new in every epoch, the same for the same seed."""

    def __init__(
        self, inputs: dict[str, Tensor], label: Tensor, kept: Sequence[int], size: int, seed: int
    ) -> None:
        self.inputs, self.label, self.size, self.seed = inputs, label, min(size, len(kept)), seed
        self.kept = np.asarray(kept)

    def batch(self, position: int) -> Batch:
        each = max(len(self.kept) // self.size, 1)
        epoch, at = divmod(position, each)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.kept)
        return _part(self.inputs, self.label, order[at * self.size : (at + 1) * self.size])


def _part(inputs: dict[str, Tensor], label: Tensor, places: Any) -> Batch:
    index = torch.as_tensor(np.asarray(places, np.int64))
    return Batch({k: v[index] for k, v in inputs.items()}, {"label": label[index]})


def _train(
    model: nn.Module, batches: _Shuffled, held: Batch, updates: float, settings: Settings, device: str
) -> None:
    """In place. What is kept are the weights that did best on the held rows."""
    settings = dataclasses.replace(settings, steps=max(round(updates), 1))
    rounds = min(ROUNDS, max(round(updates), 1))
    best, weights, since, state = float("inf"), copy.deepcopy(model.state_dict()), 0, None
    started = time.monotonic()
    for turn in range(1, rounds + 1):
        result = fit(
            model, batches, objective, dataclasses.replace(settings, until=turn / rounds), state=state, device=device
        )  # fmt: skip
        state = result.state
        loss = judge(model, held, device)
        since += 1
        if loss < best:
            best, weights, since = loss, copy.deepcopy(model.state_dict()), 0
        if since >= PATIENCE or time.monotonic() - started > (settings.seconds or float("inf")):
            break
    model.load_state_dict(weights)


@torch.inference_mode()
def judge(model: nn.Module, held: Batch, device: str, size: int = 1024) -> float:
    """The mean of the objective over the rows, in evaluation mode."""
    model.eval()
    count = len(held.targets["label"])
    total = 0.0
    for start in range(0, count, size):
        part = Batch(
            {k: v[start : start + size] for k, v in held.inputs.items()},
            {"label": held.targets["label"][start : start + size]},
        ).to(device)
        total += float(objective(model, part)) * len(part.targets["label"])
    return total / count
