"""Steps that make a model smaller. Each is a frozen dataclass; `Recipe` strings them together.

Loaded on first use. `__all__` is the closed list of steps that a recipe file may name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_STEPS = {
    "DropBlocks": "lightformers.compress.prune.blocks",
    "PruneChannels": "lightformers.compress.prune.channels",
    "PruneHeads": "lightformers.compress.prune.heads",
    "PruneWidth": "lightformers.compress.prune.width",
    "EssentialSparsity": "lightformers.compress.prune.essential_sparsity",
    "FuseBlocks": "lightformers.compress.fold.fusegpt",
    "ToRMSNorm": "lightformers.compress.fold.pre_crmsnorm",
    "DenseSparse": "lightformers.compress.factorize.dsformer",
    "Greenformers": "lightformers.compress.factorize.greenformers",
    "Pela": "lightformers.compress.factorize.pela",
    "LowRank": "lightformers.compress.factorize.low_rank",
    "LLMInt8": "lightformers.compress.quantize.llm_int8",
    "TrimVocabulary": "lightformers.compress.vocabulary",
    "ZeroShotTokenizer": "lightformers.compress.zett",
    "MiniLM": "lightformers.compress.distill",
    "Recover": "lightformers.compress.distill",
}
__all__ = sorted(_STEPS)

if TYPE_CHECKING:
    from lightformers.compress.distill import MiniLM, Recover
    from lightformers.compress.factorize.dsformer import DenseSparse
    from lightformers.compress.factorize.greenformers import Greenformers
    from lightformers.compress.factorize.low_rank import LowRank
    from lightformers.compress.factorize.pela import Pela
    from lightformers.compress.fold.fusegpt import FuseBlocks
    from lightformers.compress.fold.pre_crmsnorm import ToRMSNorm
    from lightformers.compress.prune.blocks import DropBlocks
    from lightformers.compress.prune.channels import PruneChannels
    from lightformers.compress.prune.essential_sparsity import EssentialSparsity
    from lightformers.compress.prune.heads import PruneHeads
    from lightformers.compress.prune.width import PruneWidth
    from lightformers.compress.quantize.llm_int8 import LLMInt8
    from lightformers.compress.vocabulary import TrimVocabulary
    from lightformers.compress.zett import ZeroShotTokenizer


def __getattr__(name: str) -> Any:
    if name not in _STEPS:
        raise AttributeError(f"module 'lightformers.compress' has no attribute {name!r}")
    return getattr(importlib.import_module(_STEPS[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
