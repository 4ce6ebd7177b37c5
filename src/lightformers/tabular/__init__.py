"""Tables for users of scikit-learn: `Classifier` and `Regressor`, estimators over this library's table models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightformers.errors import MissingExtra

__all__ = ["MODELS", "Classifier", "Regressor", "TableError"]

if TYPE_CHECKING:
    from lightformers.tabular.estimators import Classifier, Regressor
    from lightformers.tabular.learners import MODELS
    from lightformers.tabular.rows import TableError


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'lightformers.tabular' has no attribute {name!r}")
    try:
        from lightformers.tabular import estimators, learners, rows
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "sklearn":
            raise
        raise MissingExtra("tabular", "scikit-learn") from error
    for module in (estimators, learners, rows):
        if hasattr(module, name):
            return getattr(module, name)


def __dir__() -> list[str]:
    return list(__all__)
