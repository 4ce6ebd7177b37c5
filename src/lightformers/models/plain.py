"""Models of ours that are plain modules, not of transformers: which there are, and the name that their folders bear."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import PyTorchModelHubMixin

from lightformers.files import write_json

#: Class name, as config.json writes it -> where the class is, and what its head is for. Only these are ever looked up.
PLAIN: dict[str, tuple[str, str | None]] = {
    "FlexiBERT": ("lightformers.models.language.flexibert", None),
    "FlexiBERTForMaskedLM": ("lightformers.models.language.flexibert", "masked-lm"),
    "ElasticViTModel": ("lightformers.models.vision.elasticvit", "image-classification"),
}
_KEY = "architectures"


def plain_class(config: Mapping[str, Any]) -> tuple[Any, str | None] | None:
    """The class that a config.json names, and its task; None where it names none of these."""
    name = (config.get(_KEY) or [None])[0]
    if name not in PLAIN:
        return None
    module, task = PLAIN[name]
    return getattr(importlib.import_module(module), name), task


def write(model: Any, folder: Path, config: Mapping[str, Any]) -> None:
    """What a model's `_save_pretrained` does: model.safetensors, and config.json with the class's name in it."""
    PyTorchModelHubMixin._save_pretrained(model, folder)
    write_json(Path(folder) / "config.json", {_KEY: [type(model).__name__], **config})


def fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as `write` put it down, without the name."""
    return {k: v for k, v in config.items() if k != _KEY}
