"""What is trained on each task, how large and how long: at a scale for two cores, and as in the papers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lightformers.errors import UserError
from lightformers.tasks.arena import ARENA
from lightformers.tasks.probes import PROBES


@dataclass(frozen=True)
class Row:
    """Model and training of one task.

    width, heads, layers, hidden (of the feed-forward with the baseline's mixer): the model. batch, steps, lr, warmup
    (share of the steps), schedule, weight_decay: the training. probe: options of the probe (`tasks.probes`).
    """

    width: int = 64
    heads: int = 4
    layers: int = 2
    hidden: int = 128
    batch: int = 32
    steps: int = 600
    lr: float = 1e-3
    warmup: float = 0.1
    schedule: Literal["linear", "cosine"] = "linear"
    weight_decay: float = 0.01
    probe: Mapping[str, Any] = field(default_factory=dict)


#: Long Range Arena's table: Adam with betas 0.9 and 0.98; its rate base * min(1, t / w) / sqrt(max(t, w)) has the peak
#: base / sqrt(w), which is given here, and falls linearly to zero instead of with the root. Where its warm-up outlasts
#: the steps (retrieval), the rate that is reached in the end is the peak. Its model for images differs from mixer to
#: mixer; one is taken for all. Heads of 2 and 4 channels are its own.
_PAPER: dict[str, Row] = {
    "listops": Row(512, 8, 4, 1024, 32, 5000, 1.6e-3, 0.2, weight_decay=0.1),
    "text": Row(256, 4, 4, 1024, 32, 20_000, 5.6e-4, 0.4, weight_decay=0.1),
    "retrieval": Row(128, 4, 4, 512, 32, 5000, 3.5e-4, 0.9, weight_decay=0.1),
    "image": Row(128, 8, 1, 128, 256, 35_000, 5e-4, 0.05, "cosine"),
    "pathfinder": Row(32, 4, 4, 32, 512, 62_500, 1e-3, 0.05, "cosine"),
    "path-x": Row(32, 2, 1, 32, 64, 100_000, 1e-3, 0.05, "cosine"),
    # Zoology (arXiv 2312.04927): two layers; its largest length and number of pairs
    "mqar": Row(128, 2, 2, 512, 64, 30_000, 1e-3, probe={"length": 512, "pairs": 64, "vocab": 8192}),
    "overwriting": Row(128, 2, 2, 512, 64, 30_000, 1e-3, probe={"length": 512, "pairs": 32, "vocab": 8192, "writes": 3}),
    # Repeat After Me (arXiv 2402.01032): strings of up to 300
    "copying": Row(256, 8, 4, 1024, 64, 50_000, 1e-3, probe={"symbols": 300, "vocab": 28}),
    # Mamba (arXiv 2312.00752), section 4.1: two layers of width 64
    "selective-copying": Row(64, 4, 2, 256, 64, 400_000, 1e-4, probe={"length": 4112, "symbols": 16, "vocab": 16}),
    "induction": Row(64, 4, 2, 256, 8, 200_000, 1e-3, probe={"length": 256, "vocab": 16}),
    # The Illusion of State (arXiv 2404.08819)
    "state-tracking": Row(512, 8, 4, 2048, 64, 30_000, 1e-4, probe={"length": 25, "kind": "s5"}),
    "parity": Row(128, 4, 4, 512, 64, 30_000, 1e-3, probe={"length": 40, "kind": "parity"}),
    "modular-addition": Row(128, 4, 4, 512, 64, 30_000, 1e-3, probe={"length": 40, "kind": "z7"}),
    "phonebook": Row(256, 8, 4, 1024, 64, 50_000, 1e-3, probe={"entries": 20, "letters": 5, "digits": 7}),
}  # fmt: skip
_SMALL: dict[str, Row] = {
    **{name: Row() for name in ARENA},
    **{name: Row(steps=1000, lr=2e-3) for name in PROBES},
    "path-x": Row(batch=16),
}
ROWS: dict[str, dict[str, Row]] = {"small": _SMALL, "paper": _PAPER}
#: Tasks that are tried unless others are named.
FIRST = ("listops", "text", "retrieval", "image", "pathfinder")


def tasks() -> tuple[str, ...]:
    """All names: those of Long Range Arena, then the probes."""
    return (*ARENA, *PROBES)


def row(task: str, scale: str) -> Row:
    """Raises UserError for an unknown task, naming the known ones."""
    if task not in tasks():
        raise UserError(f"{task!r} is not one of {', '.join(tasks())}")
    return ROWS[scale][task]


def is_probe(task: str) -> bool:
    """Whether it asks a decoder at places, instead of an encoder for a class."""
    return task in PROBES
