"""What a user asks of a slimming run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lightformers.errors import UserError

Goal = Literal["latency", "throughput", "size"]


@dataclass(frozen=True)
class Settings:
    """The request: how good, how fast on what load, and at what price.

    floor: least quality relative to the original, proven at `confidence` (one-sided).
    max_drop: instead of `floor`: the most the metric may fall in absolute terms, for scores near zero.
    goal: "latency" (one example at a time), "throughput" (batches) or "size" (bytes deployed).
    budget: seconds for the whole run; what verification and export need is set aside first.
    batch: examples in a batch of the load to be fast on. lengths: (least, most) words of it, or None.
    use_labels: whether recovery may learn from labels. allow_custom: whether models may come out that plain
        transformers cannot express. trim: whether unused vocabulary rows may go.
    only, exclude: names of steps to use or to leave out.
    """

    floor: float = 0.99
    max_drop: float | None = None
    goal: Goal = "throughput"
    confidence: float = 0.95
    budget: float = 3600.0
    batch: int = 32
    lengths: tuple[int, int] | None = None
    use_labels: bool = False
    allow_custom: bool = False
    trim: bool = True
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    onnx: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.floor <= 1:
            raise UserError(f"--floor is a share of the original's quality, in (0, 1]; got {self.floor}")
        if self.max_drop is not None and self.max_drop <= 0:
            raise UserError(f"--max-drop is a positive difference of the metric; got {self.max_drop}")
        if self.goal not in get_args(Goal):
            raise UserError(f"--goal is one of {', '.join(get_args(Goal))}; got {self.goal!r}")
        if not 0.5 <= self.confidence < 1:
            raise UserError(f"--confidence is in [0.5, 1); got {self.confidence}")
        if self.budget < 60:
            raise UserError(f"--budget is at least 60 seconds; got {self.budget:g}")
        if self.batch < 1:
            raise UserError(f"--batch is at least 1; got {self.batch}")
        if self.lengths and not 0 < self.lengths[0] <= self.lengths[1]:
            raise UserError(f"--lengths is LEAST:MOST words, both positive; got {self.lengths}")

    def allows(self, step: str) -> bool:
        """Whether the user's choice of steps lets this one in. Names are compared without case or dashes."""
        if plain(step) in map(plain, self.exclude):
            return False
        return not self.only or self.names(step)

    def names(self, step: str) -> bool:
        """Whether the user asks for this step by name."""
        return plain(step) in map(plain, self.only)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def fingerprint(self) -> str:
        """Everything that changes what the search does. The budget does not: a resumed run may be given more time."""
        fields = {k: v for k, v in self.to_dict().items() if k not in {"budget", "onnx"}}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def plain(name: str) -> str:
    """A step's name without case and dashes."""
    return name.lower().replace("-", "").replace("_", "")
