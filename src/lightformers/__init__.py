"""lightformers: the toolkit that makes transformers light.

Everything public is reached from here and loaded on first use, so that `import lightformers` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lightformers.models import registry as _registry

__version__ = "0.1.0"

# name -> (module, attribute); None as attribute means the module itself.
_PUBLIC: dict[str, tuple[str, str | None]] = {
    "Bundle": ("lightformers.bundle", "Bundle"),
    "load": ("lightformers.bundle", "load"),
    "create_model": ("lightformers.models", "create_model"),
    "list_models": ("lightformers.models", "list_models"),
    "Recipe": ("lightformers.steps", "Recipe"),
    "Deploy": ("lightformers.steps", "Deploy"),
    "Run": ("lightformers.steps", "Run"),
    "Stage": ("lightformers.steps", "Stage"),
    "Elastic": ("lightformers.elastic", "Elastic"),
    "slim": ("lightformers.slim", None),
    "elastic": ("lightformers.elastic", None),
    "anatomy": ("lightformers.anatomy", None),
    "compress": ("lightformers.compress", None),
    "export": ("lightformers.export", None),
    "forecast": ("lightformers.forecast", None),
    "measure": ("lightformers.measure", None),
    "models": ("lightformers.models", None),
    "papers": ("lightformers.papers", None),
    "reproduce": ("lightformers.reproduce", None),
    "runners": ("lightformers.runners", None),
    "stats": ("lightformers.stats", None),
    "tabular": ("lightformers.tabular", None),
    "tasks": ("lightformers.tasks", None),
    "train": ("lightformers.train", None),
}
__all__ = ["__version__", *sorted(_PUBLIC)]

if TYPE_CHECKING:
    from lightformers import (
        anatomy,
        compress,
        elastic,
        export,
        forecast,
        measure,
        models,
        papers,
        reproduce,
        runners,
        stats,
        tabular,
        tasks,
        train,
    )
    from lightformers.bundle import Bundle, load
    from lightformers.elastic import Elastic
    from lightformers.models import create_model, list_models
    from lightformers.steps import Deploy, Recipe, Run, Stage


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lightformers' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    loaded = importlib.import_module(module)
    return loaded if attribute is None else getattr(loaded, attribute)


def __dir__() -> list[str]:
    return sorted(__all__)


_registry.register_in_time()
