"""What calibration and pruning hold in memory, step by step, each in a process of its own.

The claim: a model of N bytes is calibrated and cut within 3 N plus one layer's statistics, the original, the copy that
is edited and what the libraries take apart. Used by `compression.py`; a child process imports this module by name.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lightformers import measure
from lightformers.bundle import Bundle
from lightformers.compress.methods import named
from lightformers.errors import reason
from lightformers.steps import Recipe, Run

#: Methods that look at data and train nothing themselves.
METHODS = (
    "drop-blocks", "prune-channels", "prune-heads", "prune-width", "minitron", "low-rank", "obert", "llm-fp4",
)  # fmt: skip
#: Shares of the blocks that are left; heads alone cannot come to one half.
RATIO, RATIOS = 0.5, {"prune-heads": 0.8}
BASE = {"blocks": 12, "width": 768, "heads": 12, "vocabulary": 30522, "length": 128}
EXAMPLES = 128


class Numbers:
    """A tokenizer for texts of numbers: each is a token."""

    pad_token_id = 0
    padding_side = "right"
    is_fast = False

    def __call__(self, texts: Any, pairs: Any = None, **options: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[int(w) for w in t.split()] for t in texts]}


@dataclass
class Random:
    """Random texts of full length: as much of a task as calibration looks at."""

    vocabulary: int
    length: int
    fingerprint: str = "random"
    splits: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        drawn = np.random.default_rng(0).integers(1, self.vocabulary, (EXAMPLES, self.length))
        rows = [{"text": " ".join(map(str, row))} for row in drawn]
        self.splits = {"train": rows, "search": rows[:64], "verify": []}

    def calibration(self, n: int, seed: int = 0) -> list[dict[str, Any]]:
        return self.splits["train"][:n]

    def training_examples(self, use_labels: bool) -> list[dict[str, Any]]:
        return self.splits["train"]

    def collate(self, bundle: Bundle, examples: Any, seed: int = 0) -> Any:
        return bundle.collate(examples)


def model(shape: dict[str, int]) -> Bundle:
    """A BERT classifier of this shape with random weights."""
    import torch
    import transformers as tf

    torch.manual_seed(0)
    config = tf.BertConfig(
        vocab_size=shape["vocabulary"], hidden_size=shape["width"], num_hidden_layers=shape["blocks"],
        num_attention_heads=shape["heads"], intermediate_size=4 * shape["width"], num_labels=2,
    )  # fmt: skip
    made = tf.BertForSequenceClassification(config).eval()
    return Bundle(made, Numbers(), "text-classification", max_length=shape["length"])


def child(name: str, shape: dict[str, int]) -> None:
    """What a process does: "imports" what any model needs, "model" builds it, a method is applied as a recipe applies it."""
    import torch  # noqa: F401
    import transformers  # noqa: F401

    if name == "imports":
        model(
            {**shape, "blocks": 1, "width": shape["heads"], "vocabulary": 8}
        )  # its modules come with the first one
        return
    bundle = model(shape)
    if name == "model":
        return
    (method,) = named([name])
    steps = list(method.make(RATIOS.get(name, RATIO), bundle))
    if name == "obert":
        # as many gradients as show what is held, and inverse Fisher blocks of a third of the largest layer at a time
        steps[0] = dataclasses.replace(steps[0], gradients=2, batch=2, memory=statistics(name, shape) / 3e9)  # type: ignore[type-var]
    Recipe(steps).apply(bundle, Random(shape["vocabulary"], shape["length"]), Run(dtype="fp32"))


def statistics(name: str, shape: dict[str, int]) -> int:
    """Bytes of one layer's statistics, of the layer that has most: second moments of the inputs of `down`, or more."""
    inner = 4 * shape["width"]
    if name == "obert":  # inverse Fisher blocks of 50 for each weight, in float32
        return 4 * 50 * inner * shape["width"]
    if name == "llm-fp4":  # rows that are kept, and the layer's output for them
        return 4 * 256 * (inner + shape["width"])
    return 0 if name == "drop-blocks" else 4 * inner * inner


def claim(
    shape: dict[str, int] | None = None, names: tuple[str, ...] = METHODS, say: Any = print
) -> dict[str, Any]:
    """Peak memory of each method in a fresh process, less what imports take, beside 3 N plus one layer's statistics."""
    shape = shape or BASE
    imports = measure.peak_memory(child, "imports", shape)
    size = 4 * model(shape).parameters
    built = measure.peak_memory(child, "model", shape)
    rows = []
    for name in names:
        limit = 3 * size + statistics(name, shape)
        row: dict[str, Any] = {"name": name, "limit": limit, "error": None}
        try:
            row["peak"] = measure.peak_memory(child, name, shape) - imports
            row["sizes"] = row["peak"] / size
            row["reached"] = row["peak"] <= limit
        except Exception as error:  # one step that fails does not end the others
            row |= {"peak": None, "reached": False, "error": reason(error)}
        say(_line(row, size))
        rows.append(row)
    return {"shape": shape, "bytes": size, "imports": imports, "model": built - imports, "rows": rows}


def _line(row: dict[str, Any], size: int) -> str:
    if row["error"]:
        return f"memory, {row['name']}: failed: {row['error']}"
    return (
        f"memory, {row['name']}: {row['peak'] / 1e6:,.0f} MB, {row['peak'] / size:.2f} N; allowed "
        f"{row['limit'] / 1e6:,.0f} MB{'' if row['reached'] else ': NOT reached'}"
    )
