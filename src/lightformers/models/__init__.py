"""Architectures, one file each, built from `lightformers.parts`. Presets are rows with the papers' parameter counts."""

from __future__ import annotations

from typing import Any

__all__ = ["create_model", "list_models"]


def create_model(name: str, **overrides: Any) -> Any:
    """A model with random weights by its name in `list_models()`; see `models.presets.create_model`."""
    from lightformers.models import presets, registry

    registry.register()
    return presets.create_model(name, **overrides)


def list_models(start: str = "") -> list[str]:
    """Names that `create_model` knows, those that begin with `start`."""
    from lightformers.models import presets

    return presets.list_models(start)
