"""What a forecast is asked to do."""

from __future__ import annotations

from dataclasses import dataclass

from lightformers.errors import UserError


@dataclass(frozen=True)
class Settings:
    """horizon: steps to forecast; None: as many as the model in `model` forecasts.

    model: a family ("tsmixer"), a preset, a baseline ("ets"), or a folder that an earlier run saved; None: the best of
    several. target, known: columns to forecast, and columns whose future is given; none: all, and none. timestamp: its
    column, None: found. context: steps that a model looks back, None: chosen by the data's length. interval: share of the
    values that the intervals shall cover. budget: seconds for everything. pretrain: make a model that forecasts series it has
    not seen. adapt: train the model of a folder further. refit: train the chosen model again on all rows, after it was judged.
    """

    horizon: int | None = None
    model: str | None = None
    target: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    timestamp: str | None = None
    context: int | None = None
    interval: float = 0.9
    budget: float = 120.0
    pretrain: bool = False
    adapt: bool = False
    refit: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("target", "known"):  # a single name is as good as a tuple of it
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given))
        if self.horizon is not None and self.horizon < 1:
            raise UserError(f"--horizon is at least 1 step, not {self.horizon}")
        if self.context is not None and self.context < 2:
            raise UserError(f"--context is at least 2 steps, not {self.context}")
        if not 0 < self.interval < 1:
            raise UserError(f"--interval is a share between 0 and 1, such as 0.9, not {self.interval}")
        if not self.budget > 0:
            raise UserError(f"--budget must be more than 0 seconds, not {self.budget}")
        if both := set(self.target) & set(self.known):
            raise UserError(f"{', '.join(sorted(both))} cannot be both --target and --known")
