"""What a comparison is asked to do."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass

from lightformers.errors import UserError


@dataclass(frozen=True)
class Settings:
    """ratio: share of the blocks' bytes that every method shall leave, as stored, in (0, 1).

    speedup: instead, how many times as fast as the original every method shall run in torch; the size is then stepped
        until it does.
    seconds: training that each method gets, as recovery afterwards or inside, where it trains itself. 0: none.
    examples: how many of the search split methods are scored on (None: all). batch: examples in a batch of the load
        that is timed. rounds: how often original and method are timed in turn.
    use_labels: whether all training may learn from labels. Methods that cannot do without them get them in any case.
    only, exclude: names of methods.
    """

    ratio: float = 0.5
    speedup: float | None = None
    seconds: float = 20.0
    examples: int | None = 400
    batch: int = 32
    rounds: int = 7
    use_labels: bool = False
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise UserError(
                f"--ratio is the share of the blocks' bytes that is left, in (0, 1); got {self.ratio}"
            )
        if self.speedup is not None and not self.speedup > 1:
            raise UserError(
                f"--latency is how many times as fast as the original, above 1; got {self.speedup}"
            )
        if not self.seconds >= 0:
            raise UserError(f"--seconds of training must not be negative; got {self.seconds}")
        if self.batch < 1 or self.rounds < 3 or (self.examples is not None and self.examples < 20):
            raise UserError("--batch is at least 1, --rounds at least 3, --examples at least 20")

    def fingerprint(self) -> str:
        """Everything that changes a row. Which methods are asked for does not: rows that are there stay good."""
        fields = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("only", "exclude")}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
