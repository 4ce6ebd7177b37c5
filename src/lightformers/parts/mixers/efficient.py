"""Any attention core with its projections: the mixer that Long Range Arena (arXiv 2011.04006) exchanges in one encoder."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.attention.heads import run
from lightformers.parts.attention.table import CORES, core_class, make_core, options_of
from lightformers.parts.mixers.relative import join, split
from lightformers.parts.recording import refuse


class EfficientAttention(nn.Module):
    """Attention of a two-way encoder. (batch, n, width) -> the same; padding (mask 0) may stand anywhere.

    core: a name of `parts.attention.table.CORES`; options: what that core takes. bias: of the projections (the
    benchmark has none). head_size: None: width / heads. Projections that a core does not read are not made, and begin
    Xavier-uniform. layer: moves the seed of a core that draws something, so that every layer gets its own.
    Raises UserError for heads that do not divide the width, unknown cores and options, and causal ones: a decoder asks
    for states and documents, which these do not keep.
    """

    def __init__(
        self, width: int, heads: int = 4, core: str = "performer", bias: bool = False, layer: int = 0,
        head_size: int | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        if heads < 1 or (head_size is None and width % heads):
            raise UserError(f"{heads} heads do not divide a width of {width}; give head_size")
        size = width // heads if head_size is None else head_size
        if options.get("causal"):
            raise UserError(f"the {core} mixer looks both ways; a decoder's mixers are others")
        if "seed" in options_of(core):
            options["seed"] = options.get("seed", 0) + layer
        self.heads = heads
        self.core = make_core(core, heads, size, **options)

        def projections() -> nn.ModuleDict:
            made = {name: nn.Linear(width, heads * size, bias=bias) for name in self.core.reads}
            return nn.ModuleDict(made)

        self.projections = projections()
        self.second = projections() if self.core.second else None
        self.out = nn.Linear(heads * size, width, bias=bias)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if not getattr(self.core, "anywhere", False):
            refuse(f"{type(self.core).__name__}", "take linear or performer")
        q, k, v = self._project(self.projections, x)
        assert v is not None
        again: Any = None if self.second is None else self._project(self.second, x)
        return self.out(join(run(self.core, q, k, v, mask, again)))

    def _project(self, projections: nn.ModuleDict, x: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(
            split(projections[name](x), self.heads) if name in projections else None for name in "qkv"
        )


def _mixer(core: str) -> Callable[..., EfficientAttention]:
    """A row of the table of mixers: it shows the options of its core, so that a configuration is checked against them."""

    def made(width: int, **options: Any) -> EfficientAttention:
        return EfficientAttention(width, core=core, **options)

    own = inspect.signature(EfficientAttention).parameters
    kept = [own[name] for name in ("width", "heads", "bias", "layer", "head_size")]
    extra = [p for name, p in options_of(core).items() if name != "causal"]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*kept[1:], *extra)]
    made.__signature__ = inspect.Signature([kept[0], *parameters])  # type: ignore[attr-defined]
    made.__name__, made.__doc__ = core, core_class(core).__doc__
    return made


_ROWS = {core: _mixer(core) for core in CORES}


def __getattr__(name: str) -> Callable[..., EfficientAttention]:
    if name not in _ROWS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _ROWS[name]
