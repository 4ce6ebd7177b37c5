"""A budget as people write it: params=10M, latency=5ms."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from lightformers.errors import UserError

_UNITS = {
    "params": {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9},
    "latency": {"ms": 1.0, "s": 1e3, "us": 1e-3},
}


@dataclass(frozen=True)
class Budget:
    """kind: what is limited. limit: the most weights ("params") or milliseconds of one example ("latency")."""

    kind: Literal["params", "latency"]
    limit: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """ "params=10M" (k, M, B) or "latency=5ms" (us, ms, s). Raises UserError for anything else."""
        kind, _, amount = text.strip().partition("=")
        found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([a-z]*)\s*", amount.lower())
        units = _UNITS.get(kind.strip().lower(), {})
        if not found or found[2] not in units or float(found[1]) <= 0:
            raise UserError(f"{text!r} is no budget: write params=10M (k, M, B) or latency=5ms (us, ms, s)")
        return cls(kind.strip().lower(), float(found[1]) * units[found[2]])  # type: ignore[arg-type]

    def said(self, value: float) -> str:
        """A value of this kind, in words."""
        return f"{value:,.0f} weights" if self.kind == "params" else f"{value:.3g} ms"

    def __str__(self) -> str:
        return self.said(self.limit)
