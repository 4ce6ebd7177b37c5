"""Compare: every compression method on one model at one size or speed, in one table and one plot.

from lightformers.compare import compare
result = compare(bundle, task, ratio=0.5, seconds=20, out="compared")
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "compare": "lightformers.compare.run",
    "Result": "lightformers.compare.run",
    "Settings": "lightformers.compare.settings",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lightformers.compare' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
