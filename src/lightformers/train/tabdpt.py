"""TabDPT (arXiv 2410.18164): pre-training over tables, and its use on a table without any training.

    model = pretrain([Source.of(table), ...], Settings(seconds=600), TabDPTConfig(features=32, ...))
    bundle = learn(rows, targets, classes, schema)

The packaged weights are of a small model: `scripts/pretrain_tabdpt.py` makes them, of tables that are drawn and of the sets
that scikit-learn brings along, wine and breast cancer left out.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lightformers.bundle import Bundle
from lightformers.errors import DataError, UserError
from lightformers.files import read_json, replacing, write_json
from lightformers.models.tabular.tabdpt import TASKS, TabDPT, TabDPTConfig
from lightformers.processors.schema import Row, Schema
from lightformers.processors.tabdpt import Encoding, TabDPTProcessor
from lightformers.train.optim import weights
from lightformers.train.schedule_free import ScheduleFreeAdamW
from lightformers.train.state import TrainState
from lightformers.train.tabdpt_batches import Episodes, Source, episodes

#: Weights that come with the package, and beside them a .json of their configuration.
PACKAGED = Path(__file__).parents[1] / "tabular" / "weights" / "tabdpt-small.safetensors"
#: What a configuration says of the network; the rest is about a table.
_SIZES = (
    "features", "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "head_dim", "head_hidden",
    "max_classes",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """How to pre-train. The paper: lr 5e-4, 1000 steps of warm-up, batches of 256, contexts of 50 to 1024, 262,144 updates.

    rows: of all tables of an update together. context: fewest and most labelled rows, drawn uniformly in the logarithm, one
    number per update. queries: rows asked per table. synthetic: share of drawn tables. retrieved: real samples are
    neighbourhoods, else any rows. steps, seconds: training ends with the first that is reached; earlier runs count.
    """

    rows: int = 8192
    context: tuple[int, int] = (32, 256)
    queries: int = 96
    lr: float = 2e-3
    betas: tuple[float, float] = (0.95, 0.999)
    weight_decay: float = 0.05
    warmup: int = 200
    clip: float = 1.0
    label_smoothing: float = 0.1
    synthetic: float = 1.0
    retrieved: bool = True
    steps: int | None = None
    seconds: float | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0


@dataclass(frozen=True)
class Progress:
    """Where training is: updates, seconds (all runs), mean loss since the last report, and the model as it would be used."""

    step: int
    seconds: float
    loss: float
    model: TabDPT


def loss(outputs: Tensor, wanted: Episodes, label_smoothing: float = 0.0) -> Tensor:
    """r MSE + (1 - r) cross-entropy, r the share of regression among the tables.

    outputs: (tables, queries, classes + 1); the classes are compared among themselves, without the output for numbers.
    """
    out = outputs.float()
    labels = wanted.y.clamp(0, out.shape[-1] - 2).long()
    entropy = F.cross_entropy(
        out[..., :-1].transpose(1, 2), labels, reduction="none", label_smoothing=label_smoothing
    )
    square = (out[..., -1] - wanted.y).square()
    return torch.where(wanted.regression[:, None], square, entropy).mean()


def pretrain(
    tables: Sequence[Source],
    settings: Settings,
    config: TabDPTConfig,
    checkpoint: str | Path | None = None,
    report: Callable[[Progress], None] | None = None,
    every: float = 60.0,
) -> TabDPT:
    """A model that has learnt from `tables` and from drawn ones.

    checkpoint: a folder in which training goes on where it stopped, saved with every report and at the end. report: called
    every so many seconds. Raises UserError where no end is set or the checkpoint belongs to another model.
    """
    _check(tables, settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = TabDPT(config).train()
    used = copy.deepcopy(model).eval()
    with weights(model, dict(model.named_parameters()), settings.precision == "bf16") as held:
        optimizer = ScheduleFreeAdamW(
            held.masters, settings.lr, settings.betas, settings.weight_decay, settings.warmup
        )
        spent = 0.0
        if checkpoint is not None and (Path(checkpoint) / "state.json").is_file():
            state = TrainState.load(checkpoint)
            optimizer.restore(state.tensors)
            held.scatter()
            spent = state.seconds
        began, last = time.monotonic() - spent, time.monotonic()
        losses: list[float] = []

        def note() -> None:
            used.load_state_dict(optimizer.averages())
            seconds = time.monotonic() - began
            if checkpoint is not None:
                TrainState(optimizer.state(), optimizer.steps, optimizer.steps, 0, seconds).save(checkpoint)
            if report is not None:
                mean = sum(losses) / len(losses) if losses else math.nan
                report(Progress(optimizer.steps, seconds, mean, used))

        while not _over(settings, optimizer.steps, time.monotonic() - began):
            losses.append(_update(model, held, optimizer, tables, settings))
            if time.monotonic() - last >= every:
                note()
                last, losses = time.monotonic(), []
        note()
    return used


def _update(
    model: TabDPT, held: Any, optimizer: ScheduleFreeAdamW, tables: Sequence[Source], settings: Settings
) -> float:
    """One step. What is drawn follows from the seed and the number of the step, so that a resumed run draws the same."""
    seed = int(np.random.SeedSequence([settings.seed, optimizer.steps]).generate_state(1)[0])
    low, high = map(math.log, settings.context)
    context = round(math.exp(np.random.default_rng(seed).uniform(low, high)))
    config = model.config
    drawn = episodes(
        tables, max(1, settings.rows // (context + settings.queries)), context, settings.queries, config.features,
        seed % 2**31, settings.synthetic, settings.retrieved, config.max_classes,
    )  # fmt: skip
    value = loss(model.answers(drawn.context_x, drawn.context_y, drawn.x), drawn, settings.label_smoothing)
    value.backward()
    held.gather()
    torch.nn.utils.clip_grad_norm_(list(held.masters.values()), settings.clip)
    optimizer.step()
    held.scatter()
    for p in held.masters.values():
        p.grad = None
    return float(value.detach())


def _over(settings: Settings, steps: int, seconds: float) -> bool:
    return (settings.steps is not None and steps >= settings.steps) or (
        settings.seconds is not None and seconds >= settings.seconds
    )


def _check(tables: Sequence[Source], settings: Settings) -> None:
    if settings.steps is None and settings.seconds is None:
        raise UserError("pre-training needs an end: give steps or seconds")
    if not 0 <= settings.synthetic <= 1 or (settings.synthetic < 1 and not tables):
        raise UserError("without tables to learn from, the synthetic share is 1")
    if not 1 <= settings.context[0] <= settings.context[1] or settings.queries < 1:
        raise UserError("a context has at least one row, and there is at least one query")


def save_weights(model: TabDPT, path: str | Path, facts: Mapping[str, Any] | None = None) -> Path:
    """Half-precision weights and, beside them, a .json with configuration and facts; both appear whole."""
    from safetensors.torch import save_file

    target = Path(path)
    with replacing(target) as temporary:
        save_file({k: v.detach().half().contiguous() for k, v in model.state_dict().items()}, temporary)
    write_json(
        target.with_suffix(".json"),
        {**{k: getattr(model.config, k) for k in _SIZES}, "training": dict(facts or {})},
    )
    return target


def pretrained(path: str | Path | None = None, **fields: Any) -> TabDPT:
    """The model of a file that `save_weights` wrote, None: the packaged one. fields: of the configuration, changed.

    Raises UserError where there is no such file.
    """
    from safetensors.torch import load_file

    file = Path(path) if path is not None else PACKAGED
    if not file.is_file() or not file.with_suffix(".json").is_file():
        raise UserError(f"no weights of TabDPT: {file.name} and its .json are not in {file.parent}")
    sizes = {k: v for k, v in read_json(file.with_suffix(".json")).items() if k != "training"}
    model = TabDPT(TabDPTConfig(**{**sizes, **fields}))
    model.load_state_dict({k: v.float() for k, v in load_file(file).items()})
    return model.eval()


def learn(
    rows: Sequence[Row],
    targets: NDArray[Any],
    classes: int | None,
    schema: Schema,
    *,
    seed: int = 0,
    seconds: float | None = None,
    weights: str | Path | TabDPT | None = None,
    context: int = 1024,
    neighbours: int | None = 256,
    permutations: int = 8,
    temperature: float = 0.8,
    encoding: Encoding = "auto",
    pca: bool = True,
) -> Bundle:
    """A bundle that answers for rows of this table. Nothing is trained: the labelled rows become its context.

    targets: class numbers, or with `classes` None numbers. seconds is not needed. weights: a file of `save_weights` or a
    model; None: the packaged ones. context: the most rows that answer for all; of a greater table each query is answered by
    its nearest `neighbours` (None: as many as context, the paper's way, which takes long on a CPU). permutations: orders of
    the columns that answers are averaged over. Raises DataError for no rows, one class, targets that are no numbers, and
    more columns than the model has without `pca`.
    """
    targets = np.asarray(targets)
    if not len(rows):
        raise DataError("there are no labelled rows: without a context there is nothing to answer from")
    if not np.isfinite(targets.astype(np.float64)).all():
        raise DataError("targets hold missing or infinite values: leave these rows out")
    if classes is not None and len(np.unique(targets)) < 2:
        raise DataError("all rows are of one class: there is nothing to tell apart")
    fields: dict[str, Any] = {"task": TASKS[0], "classes": classes}
    if classes is None:
        mean, deviation = float(targets.mean(dtype=np.float64)), float(targets.std(dtype=np.float64))
        deviation = deviation if deviation > 0 else 1.0
        targets = (targets - mean) / deviation
        fields = {"task": TASKS[1], "target_mean": mean, "target_deviation": deviation}
    base = weights if isinstance(weights, TabDPT) else pretrained(weights)
    processor = TabDPTProcessor.fit(
        rows, targets, schema, base.config.features, context, neighbours, encoding, pca
    )
    width = min(len(processor.mean), base.config.features)
    fields |= {
        "softmax_temperature": temperature,
        "permutations": orders(width, base.config.features, permutations, seed),
    }
    model = TabDPT(TabDPTConfig(**{k: getattr(base.config, k) for k in _SIZES}, **fields))
    model.load_state_dict(base.state_dict())
    return Bundle(model.eval(), processor, fields["task"])


def orders(width: int, features: int, count: int, seed: int) -> list[list[int]] | None:
    """`count` orders of the first `width` of `features` columns, the first as they come; None for one alone."""
    if count < 1:
        raise UserError(f"at least one order of the columns is needed, not {count}")
    rng = np.random.default_rng(seed)
    rest = list(range(width, features))
    drawn = [list(range(width)), *(rng.permutation(width).tolist() for _ in range(count - 1))]
    different = list(dict.fromkeys(map(tuple, drawn)))
    return [[*order, *rest] for order in different] if len(different) > 1 else None
