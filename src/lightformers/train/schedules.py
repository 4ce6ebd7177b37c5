"""Learning-rate schedules over the fraction of the budget that is spent, so that they end when the budget ends."""

from __future__ import annotations

import math
from typing import Literal, get_args

from lightformers.errors import UserError

Schedule = Literal["linear", "cosine", "stable", "constant", "onecycle"]
#: Share of the budget over which the "stable" schedule comes down.
DECAY = 0.3
#: The "onecycle" schedule: share of the budget over which the rate rises, its start as a share of the peak.
RISE, START = 0.3, 0.04


def factor(fraction: float, warmup: float = 0.05, schedule: Schedule = "linear") -> float:
    """What the peak learning rate is multiplied with when `fraction` of the budget (0 to 1) is spent.

    warmup: share of the budget over which the rate rises linearly from near zero. After it "linear" and
    "cosine" fall to zero, "stable" holds and falls to zero over the last 30 %, "constant" holds.
        "onecycle" (Smith and Topin, arXiv 1708.07120, as torch has it) brings its own warmup: up from 4 % and down to
        zero, both along half a cosine; `warmup` is not read.
    """
    if schedule not in get_args(Schedule):
        raise UserError(f"schedule {schedule!r} is not one of {', '.join(get_args(Schedule))}")
    fraction = min(max(fraction, 0.0), 1.0)
    if schedule == "onecycle":
        if fraction < RISE:
            return START + (1.0 - START) * 0.5 * (1.0 - math.cos(math.pi * fraction / RISE))
        return 0.5 * (1.0 + math.cos(math.pi * (fraction - RISE) / (1.0 - RISE)))
    if fraction < warmup:
        return max(fraction / warmup, 0.02)  # a first step of rate zero would be a step for nothing
    left = (1.0 - fraction) / max(1.0 - warmup, 1e-9)
    if schedule == "linear":
        return left
    if schedule == "cosine":
        return 0.5 * (1.0 - math.cos(math.pi * left))
    if schedule == "stable":
        return min(1.0, (1.0 - fraction) / DECAY)
    return 1.0
