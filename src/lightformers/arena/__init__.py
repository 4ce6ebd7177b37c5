"""Arena: which mixer for which need? Attentions and recurrences in one model, on the tasks of Long Range Arena and on probes.

from lightformers.arena import arena
result = arena(["listops", "mqar"], ["attention", "performer", "mamba"], out="arena")
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "arena": "lightformers.arena.run",
    "Result": "lightformers.arena.run",
    "Settings": "lightformers.arena.settings",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lightformers.arena' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
