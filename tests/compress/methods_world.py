"""Tiny bundles with real tasks, for whatever tries all methods on all kinds of model."""

from __future__ import annotations

from typing import Any

import numpy as np
import steps_world as world

from lightformers import tasks
from lightformers.bundle import Bundle

FAMILIES = ("bert", "bert-classifier", "gpt2", "llama", "t5", "vit")


def task(family: str, made: Bundle) -> Any:
    """A task for a bundle of `steps_world`, over real texts or random images."""
    random = np.random.default_rng(0)
    words = " ".join(world.TEXTS).split()
    texts = [" ".join(random.choice(words, random.integers(3, 12))) for _ in range(900)]
    if family == "vit":
        rows: list[dict[str, Any]] = [
            {"image": random.integers(0, 255, (16, 16, 3), dtype=np.uint8), "label": f"LABEL_{i % 3}"}
            for i in range(900)
        ]
    elif family == "bert-classifier":
        rows = [{"text": t, "label": f"LABEL_{i % 3}"} for i, t in enumerate(texts)]
    else:
        rows = [{"text": t} for t in texts]
    return tasks.from_data(made.task or "", rows, bundle=made)
