"""Steps that make a model smaller. Each is a frozen dataclass; `Recipe` strings them together.

Loaded on first use. `__all__` is the closed list of steps that a recipe file may name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_STEPS = {
    "AdaptiveModules": "lightformers.compress.adaptive.acm",
    "Cascade": "lightformers.compress.adaptive.cascade",
    "AxFormer": "lightformers.compress.prune.axformer",
    "DropBlocks": "lightformers.compress.prune.blocks",
    "PruneChannels": "lightformers.compress.prune.channels",
    "PruneHeads": "lightformers.compress.prune.heads",
    "PruneWidth": "lightformers.compress.prune.width",
    "DSEE": "lightformers.compress.prune.dsee",
    "EssentialSparsity": "lightformers.compress.prune.essential_sparsity",
    "GradualMagnitude": "lightformers.compress.prune.gradual",
    "Minitron": "lightformers.compress.prune.minitron",
    "MinitronRetrain": "lightformers.compress.prune.minitron_retrain",
    "OptimalBertSurgeon": "lightformers.compress.prune.obert",
    "PackSparse": "lightformers.compress.prune.pack",
    "SparsePretraining": "lightformers.compress.prune.spdf",
    "VTrans": "lightformers.compress.prune.vtrans",
    "FuseBlocks": "lightformers.compress.fold.fusegpt",
    "ToRMSNorm": "lightformers.compress.fold.pre_crmsnorm",
    "EcoFormer": "lightformers.compress.ecoformer",
    "DenseSparse": "lightformers.compress.factorize.dsformer",
    "Greenformers": "lightformers.compress.factorize.greenformers",
    "Pela": "lightformers.compress.factorize.pela",
    "LowRank": "lightformers.compress.factorize.low_rank",
    "LLMInt8": "lightformers.compress.quantize.llm_int8",
    "FloatQuantize": "lightformers.compress.quantize.llm_fp4",
    "BlockwiseQuantize": "lightformers.compress.quantize.bct",
    "TeacherIntervention": "lightformers.compress.quantize.teacher_intervention",
    "ToLong": "lightformers.compress.long",
    "LocalToGlobal": "lightformers.compress.long",
    "MixedSpans": "lightformers.compress.spans",
    "SwapAttention": "lightformers.compress.swap_attention",
    "TrimVocabulary": "lightformers.compress.vocabulary",
    "ZeroShotTokenizer": "lightformers.compress.zett",
    "MiniLM": "lightformers.compress.distill",
    "Recover": "lightformers.compress.distill",
}
__all__ = sorted(_STEPS)

if TYPE_CHECKING:
    from lightformers.compress.adaptive.acm import AdaptiveModules
    from lightformers.compress.adaptive.cascade import Cascade
    from lightformers.compress.distill import MiniLM, Recover
    from lightformers.compress.ecoformer import EcoFormer
    from lightformers.compress.factorize.dsformer import DenseSparse
    from lightformers.compress.factorize.greenformers import Greenformers
    from lightformers.compress.factorize.low_rank import LowRank
    from lightformers.compress.factorize.pela import Pela
    from lightformers.compress.fold.fusegpt import FuseBlocks
    from lightformers.compress.fold.pre_crmsnorm import ToRMSNorm
    from lightformers.compress.long import LocalToGlobal, ToLong
    from lightformers.compress.prune.axformer import AxFormer
    from lightformers.compress.prune.blocks import DropBlocks
    from lightformers.compress.prune.channels import PruneChannels
    from lightformers.compress.prune.dsee import DSEE
    from lightformers.compress.prune.essential_sparsity import EssentialSparsity
    from lightformers.compress.prune.gradual import GradualMagnitude
    from lightformers.compress.prune.heads import PruneHeads
    from lightformers.compress.prune.minitron import Minitron
    from lightformers.compress.prune.minitron_retrain import MinitronRetrain
    from lightformers.compress.prune.obert import OptimalBertSurgeon
    from lightformers.compress.prune.pack import PackSparse
    from lightformers.compress.prune.spdf import SparsePretraining
    from lightformers.compress.prune.vtrans import VTrans
    from lightformers.compress.prune.width import PruneWidth
    from lightformers.compress.quantize.bct import BlockwiseQuantize
    from lightformers.compress.quantize.llm_fp4 import FloatQuantize
    from lightformers.compress.quantize.llm_int8 import LLMInt8
    from lightformers.compress.quantize.teacher_intervention import TeacherIntervention
    from lightformers.compress.spans import MixedSpans
    from lightformers.compress.swap_attention import SwapAttention
    from lightformers.compress.vocabulary import TrimVocabulary
    from lightformers.compress.zett import ZeroShotTokenizer


def __getattr__(name: str) -> Any:
    if name not in _STEPS:
        raise AttributeError(f"module 'lightformers.compress' has no attribute {name!r}")
    return getattr(importlib.import_module(_STEPS[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
