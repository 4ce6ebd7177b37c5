"""Forecasting: from a series to its next steps with intervals, beside the baselines that a model has to beat.

The room can be called: `lightformers.forecast("data.csv", horizon=96)` is `lightformers.forecast.run.forecast`.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightformers.forecast.run import Result


class _Callable(types.ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Result:
        from lightformers.forecast.run import forecast

        return forecast(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
