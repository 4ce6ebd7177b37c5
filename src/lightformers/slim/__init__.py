"""Slimming: from a model, a task and a floor to a smaller, faster, proven model.

The room can be called: `lightformers.slim(model, task, floor=0.99, out="small")` is `lightformers.slim.run.slim`.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightformers.slim.run import Result


class _Callable(types.ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Result:
        from lightformers.slim.run import slim

        return slim(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
