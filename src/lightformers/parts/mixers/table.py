"""The mixers that a model's configuration may name. A new one adds its row here."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from torch import nn

from lightformers.errors import UserError

MIXERS: dict[str, str] = {
    "aaren": "lightformers.parts.mixers.aaren:Aaren",
    "attention": "lightformers.parts.mixers.attention:Attention",
    "block-attention": "lightformers.parts.mixers.block_attention:BlockAttention",
    "combiner": "lightformers.parts.mixers.combiner:Combiner",
    "combiner-axial": "lightformers.parts.mixers.combiner:CombinerAxial",
    "combiner-logsparse": "lightformers.parts.mixers.combiner:CombinerLogsparse",
    "ecoformer": "lightformers.parts.mixers.ecoformer:EcoFormer",
    "deltanet": "lightformers.parts.mixers.deltanet:DeltaNet",
    "fourier": "lightformers.parts.mixers.spectral:SpectralMixer",
    "linear-attention": "lightformers.parts.mixers.linear_attention:LinearAttention",
    "mamba": "lightformers.parts.mixers.mamba:Mamba",
    "mamba2": "lightformers.parts.mixers.mamba2:Mamba2",
    "memory": "lightformers.parts.mixers.memory:MemoryAttention",
    "mixed": "lightformers.parts.mixers.mixed:MixedAttention",
    "mlgru": "lightformers.parts.mixers.mlgru:MLGRU",
    "multiplicative": "lightformers.parts.mixers.multiplicative:MultiplicativeAttention",
    # two-way attentions of the Long Range Arena: projections around a core of parts.attention
    "bigbird": "lightformers.parts.mixers.efficient:bigbird",
    "linear": "lightformers.parts.mixers.efficient:linear",
    "linformer": "lightformers.parts.mixers.efficient:linformer",
    "local": "lightformers.parts.mixers.efficient:local",
    "longformer": "lightformers.parts.mixers.efficient:longformer",
    "performer": "lightformers.parts.mixers.efficient:performer",
    "reformer": "lightformers.parts.mixers.efficient:reformer",
    "sinkhorn": "lightformers.parts.mixers.efficient:sinkhorn",
    "softmax": "lightformers.parts.mixers.efficient:softmax",
    "sparse": "lightformers.parts.mixers.efficient:sparse",
    "synthesizer": "lightformers.parts.mixers.efficient:synthesizer",
    "primer": "lightformers.parts.mixers.primer:PrimerAttention",
    "quantizable": "lightformers.parts.mixers.quantizable:QuantizableMixer",
    "tokenformer": "lightformers.parts.mixers.tokenformer:TokenformerAttention",
}
#: What the model gives to a part; a configuration does not name it.
_GIVEN = ("width", "layer", "layers")


def make(
    table: dict[str, str], kind: str, width: int, layer: int = 0, layers: int = 1, **options: Any
) -> nn.Module:
    """The part that `table` calls `kind`, of this width. A part that depends on its depth takes `layer` (from 0) and
    `layers`. Raises UserError for what `check` refuses."""
    found = check(table, kind, **options)
    known = inspect.signature(found).parameters
    depth = {k: v for k, v in (("layer", layer), ("layers", layers)) if k in known}
    return found(width, **options, **depth)


def check(table: dict[str, str], kind: str, **options: Any) -> type[nn.Module]:
    """The class that `table` calls `kind`. Raises UserError for an unknown kind, an unknown option and a missing one."""
    if kind not in table:
        raise UserError(f"{kind!r} is not one of {', '.join(sorted(table))}")
    module, name = table[kind].split(":")
    found: type[nn.Module] = getattr(importlib.import_module(module), name)
    plain = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    takes = inspect.signature(found).parameters
    known = {k: v for k, v in takes.items() if v.kind in plain and k not in _GIVEN}
    if unknown := [o for o in options if o not in known]:
        raise UserError(f"{kind} has no option {', '.join(unknown)}; it takes {', '.join(known) or 'none'}")
    if missing := [k for k, v in known.items() if v.default is v.empty and k not in options]:
        raise UserError(f"{kind} needs {', '.join(missing)}")
    return found
