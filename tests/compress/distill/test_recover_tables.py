"""Recovery on rows of tables: what a cut took away is learned back from the original's outputs, without labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightformers.bundle import Bundle
from lightformers.compress import DropBlocks, PruneChannels, PruneHeads, Recover
from lightformers.compress.distill import targets
from lightformers.models.tabular.rows import RowTransformer, RowTransformerConfig, layers
from lightformers.processors.table import TableProcessor
from lightformers.steps import Recipe, Run
from lightformers.tasks import TabularClassification, TabularRegression


def _world(regression: bool):
    """A task and a random model of three layers: what it says is what is to be met."""
    drawn = np.random.default_rng(0)
    rows = [
        {"a": float(drawn.normal()), "b": float(drawn.normal()), "c": "xyz"[i % 3]} for i in range(100)
    ]  # fewer than a runtime is compiled for
    kind = TabularRegression if regression else TabularClassification
    label = (lambda i, r: 5 * r["a"]) if regression else (lambda i, r: i % 2)
    task = kind.from_examples([{"row": r, "label": label(i, r)} for i, r in enumerate(rows)])
    processor = TableProcessor.of([e["row"] for e in task.splits["train"]], task.schema)
    torch.manual_seed(0)
    config = RowTransformerConfig(
        2, processor.sizes, 16, layers(16, 3, 2, 0.0), task.name, initializer_range=0.5, num_labels=1 if regression else 2
    )  # fmt: skip
    bundle = Bundle(RowTransformer(config).eval(), processor, task.name)
    task.check(bundle)
    return task, bundle


def _outputs(bundle: Bundle, task) -> torch.Tensor:
    with torch.no_grad():
        out = bundle.model(**bundle.collate(task.splits["verify"]).inputs)
    return out["prediction"] if "prediction" in out else out["logits"].softmax(-1)


@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize("labels", [False, True])
def test_recovery_comes_nearer_to_the_original(regression, labels) -> None:
    task, bundle = _world(regression)
    goal = _outputs(bundle, task)
    cut = Recipe([DropBlocks(keep=2)]).apply(bundle, task, Run(dtype="fp32"))
    run = Run(dtype="fp32", tokens=8000, use_labels=labels)
    found = Recipe([DropBlocks(keep=2), Recover(lr=3e-3, labels=0.0)]).apply(bundle, task, run)
    before, after = ((_outputs(b, task) - goal).abs().mean() for b in (cut, found))
    assert after < 0.6 * before and found.task == task.name


def test_steps_that_look_at_rows() -> None:
    task, bundle = _world(False)
    cut = Recipe([PruneHeads(keep=0.5), PruneChannels(keep=0.5)]).apply(bundle, task, Run(dtype="fp32"))
    assert cut.parameters < bundle.parameters and torch.isfinite(_outputs(cut, task)).all()


def test_rows_are_told_apart() -> None:
    """The teacher's outputs are kept by what goes in; rows hold no tokens to be known by."""
    task, bundle = _world(False)
    encoded = bundle.encode(task.splits["train"])
    assert len({targets.key(e) for e in encoded}) == len(encoded)
