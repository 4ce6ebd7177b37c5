"""Tasks for elastic models: enough of one for training without labels, and a classification that can be learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import steps_world as world
import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Batch, Bundle
from lightformers.tasks.text_classification import TextClassification
from lightformers.train import Feed, Settings, fit

FAMILIES = ("bert", "bert-classifier", "gpt2", "llama", "vit", "t5")


@dataclass
class Lessons(world.World):
    """What label-free training asks of a task."""

    def training_examples(self, use_labels: bool) -> list[dict[str, Any]]:
        return self.splits["train"][:16]

    def collate(self, bundle: Bundle, examples: list[dict[str, Any]], seed: int = 0) -> Batch:
        return bundle.collate(examples)


def lessons(family: str) -> Lessons:
    return Lessons(images=family == "vit", fingerprint=f"lessons-{family == 'vit'}")


def classification(size: int = 96) -> TextClassification:
    """Which of three words stands somewhere in the text?"""
    rng = np.random.default_rng(0)
    marks, rest = ("json", "string", "object"), ("the", "of", "a", "is", "and", "to")

    def row(i: int) -> dict[str, Any]:
        words = [str(w) for w in rng.choice(rest, 5)]
        words[int(rng.integers(5))] = marks[i % 3]
        return {"text": " ".join([*words, str(rest[i % 6]), str(i)]), "label": i % 3}

    rows = [row(i) for i in range(2 * size)]
    return TextClassification.from_examples(
        {"train": rows[:size], "valid": rows[size : size + size // 2], "test": rows[size + size // 2 :]}
    )


def two_blocks(feed_forward: float = 1.0) -> Bundle:
    """A classifier of two blocks whose feed-forwards write so many times as much as usual."""
    bundle = world.bundle("bert-classifier")
    anatomy.surgery.keep_blocks(bundle.model, [0, 1])
    with torch.no_grad():
        for layer in bundle.model.bert.encoder.layer:
            layer.output.dense.weight.mul_(feed_forward)
    return bundle


def plainly(bundle: Bundle, task: TextClassification, tokens: int) -> None:
    """Learn the labels as ever: only the whole model."""

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        return task.loss(module(**batch.inputs), batch)

    feed = Feed.of(bundle, task.training_examples(True), max_tokens=400)
    fit(bundle.module(), feed, loss, Settings(tokens=tokens, lr=3e-3, precision="fp32"))
