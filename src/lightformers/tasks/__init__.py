"""Tasks: what "good" means for a user. Data, loss and metric; nothing here knows how a model is run.

`from_data("text-classification", "reviews.csv", text="text", label="label")` is the one door; the classes can be
used directly as well. Everything is loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "Task": "base",
    "NAMES": "base",
    "from_data": "base",
    "Embedding": "embedding",
    "TextClassification": "text_classification",
    "TokenClassification": "token_classification",
    "CausalLM": "causal_lm",
    "MaskedLM": "masked_lm",
    "ImageClassification": "image_classification",
    "Forecasting": "forecasting",
    "TabularClassification": "tabular",
    "TabularRegression": "tabular",
    "forecast_baselines": None,
    "python_docs": None,
}
__all__ = sorted(_PUBLIC)

if TYPE_CHECKING:
    from lightformers.tasks import forecast_baselines, python_docs
    from lightformers.tasks.base import NAMES, Task, from_data
    from lightformers.tasks.causal_lm import CausalLM
    from lightformers.tasks.embedding import Embedding
    from lightformers.tasks.forecasting import Forecasting
    from lightformers.tasks.image_classification import ImageClassification
    from lightformers.tasks.masked_lm import MaskedLM
    from lightformers.tasks.tabular import TabularClassification, TabularRegression
    from lightformers.tasks.text_classification import TextClassification
    from lightformers.tasks.token_classification import TokenClassification


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lightformers.tasks' has no attribute {name!r}")
    module = importlib.import_module(f"lightformers.tasks.{_PUBLIC[name] or name}")
    return getattr(module, name) if _PUBLIC[name] else module


def __dir__() -> list[str]:
    return list(__all__)
