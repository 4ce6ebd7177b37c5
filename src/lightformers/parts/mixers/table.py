"""The mixers that a model's configuration may name. A new one adds its row here."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from torch import nn

from lightformers.errors import UserError

MIXERS: dict[str, str] = {
    "aaren": "lightformers.parts.mixers.aaren:Aaren",
    "deltanet": "lightformers.parts.mixers.deltanet:DeltaNet",
    "fourier": "lightformers.parts.mixers.spectral:SpectralMixer",
    "linear_attention": "lightformers.parts.mixers.linear_attention:LinearAttention",
    "mamba": "lightformers.parts.mixers.mamba:Mamba",
    "mamba2": "lightformers.parts.mixers.mamba2:Mamba2",
    "mixed": "lightformers.parts.mixers.mixed:MixedAttention",
    "mlgru": "lightformers.parts.mixers.mlgru:MLGRU",
    "multiplicative": "lightformers.parts.mixers.multiplicative:MultiplicativeAttention",
    "primer": "lightformers.parts.mixers.primer:PrimerAttention",
}


def make(
    table: dict[str, str], kind: str, width: int, layer: int = 0, layers: int = 1, **options: Any
) -> nn.Module:
    """The part that `table` calls `kind`, of this width. A part that depends on its depth takes `layer` (from 0) and
    `layers`. Raises UserError for an unknown kind or option, naming the known ones."""
    if kind not in table:
        raise UserError(f"{kind!r} is not one of {', '.join(sorted(table))}")
    module, name = table[kind].split(":")
    found = getattr(importlib.import_module(module), name)
    known = inspect.signature(found).parameters
    if unknown := [o for o in options if o not in known]:
        takes = ", ".join(k for k in known if k not in ("width", "layer", "layers"))
        raise UserError(f"{kind} has no option {', '.join(unknown)}; it takes {takes or 'none'}")
    depth = {k: v for k, v in (("layer", layer), ("layers", layers)) if k in known}
    return found(width, **options, **depth)
