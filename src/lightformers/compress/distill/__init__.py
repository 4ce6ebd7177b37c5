"""Distillation: the original teaches what was cut out of it."""

from __future__ import annotations

from lightformers.compress.distill.minilm import MiniLM
from lightformers.compress.distill.recover import Recover

__all__ = ["MiniLM", "Recover"]
