"""Writing models that others can open: Hugging Face folders, OpenVINO, ONNX; and checking that they do open."""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "save": ("lightformers.export.huggingface", "save"),
    "save_openvino": ("lightformers.export.openvino", "save"),
    "save_onnx": ("lightformers.export.onnx", "save"),
    "Exported": ("lightformers.export.graph", "Exported"),
    "write_card": ("lightformers.export.card", "write"),
    "check": ("lightformers.export.reload", "check"),
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lightformers.export' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__
