"""What an arena is asked to do."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from lightformers.errors import UserError
from lightformers.tasks.arena import SCALES

#: Seconds of training below which a cell says nothing.
LEAST = 1.0
#: Share of a budget that training gets; the rest is data, scoring, timing and pages.
TRAINING = 0.75


@dataclass(frozen=True)
class Settings:
    """scale: "small" (two cores) or "paper": sizes of tasks and models.

    steps: training steps of every model; seconds: instead, how long every model is trained; None of both: the row's
    steps. budget: seconds for everything, shared equally among the models that are to be trained.
    seeds: how many trainings of each mixer on each task. rounds: how often all mixers are timed, in turn. examples: most
    training examples (a fifth as many are tested on), None: as many as the scale says. equal: the feed-forwards are made
    so wide that all models have the parameters of the one with plain attention.
    data: task -> file or folder. device: "cpu" or "cuda".
    """

    scale: str = "small"
    steps: int | None = None
    seconds: float | None = None
    budget: float | None = None
    seeds: int = 1
    seed: int = 0
    rounds: int = 5
    examples: int | None = None
    equal: bool = True
    data: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise UserError(f"--scale is one of {', '.join(SCALES)}, not {self.scale!r}")
        given = [n for n in ("steps", "seconds", "budget") if getattr(self, n) is not None]
        if len(given) > 1:
            raise UserError(f"--{' and --'.join(given)} say twice how long to train: give one of them")
        for name in given:
            if not getattr(self, name) > 0:
                raise UserError(f"--{name} must be more than 0, not {getattr(self, name)}")
        if self.seeds < 1 or self.rounds < 3:
            raise UserError("--seeds is at least 1, --rounds at least 3")
        if self.examples is not None and self.examples < 50:
            raise UserError("--examples is at least 50")
        if self.device not in ("cpu", "cuda"):
            raise UserError(f"--device is cpu or cuda, not {self.device!r}")

    def share(self, cells: int) -> float | None:
        """Seconds of training of each of so many models, None where steps are counted. Raises UserError where the budget
        is too small for them."""
        if self.budget is None:
            return self.seconds
        each = TRAINING * self.budget / max(cells, 1)
        if each < LEAST:
            raise UserError(
                f"--budget {self.budget:g} leaves {each:.2g} s of training for each of {cells} models: give at least "
                f"{cells * LEAST / TRAINING:.0f} s, or fewer tasks, mixers or seeds"
            )
        return each

    def fingerprint(self) -> str:
        """Everything that changes a model's training. More seeds do not: what is there stays good."""
        fields = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("seeds", "rounds")}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
