"""Training a language model from text: `lightformers train`."""

from __future__ import annotations

from lightformers.pretrain.corpus import Corpus, Windows, prepare
from lightformers.pretrain.run import Plan, train

__all__ = ["Corpus", "Plan", "Windows", "prepare", "train"]
