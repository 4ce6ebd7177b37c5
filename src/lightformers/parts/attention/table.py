"""The attention cores that a configuration may name. A new one adds its row here."""

from __future__ import annotations

import importlib
import inspect
from typing import Any, Protocol

from torch import Tensor, nn

from lightformers.errors import UserError

_ROOM = "lightformers.parts.attention"
CORES: dict[str, str] = {
    "softmax": f"{_ROOM}.full:FullAttention",
    "local": f"{_ROOM}.local:LocalAttention",
    "sparse": f"{_ROOM}.sparse:SparseAttention",
    "longformer": f"{_ROOM}.longformer:LongformerAttention",
    "linformer": f"{_ROOM}.linformer:LinformerAttention",
    "reformer": f"{_ROOM}.reformer:ReformerAttention",
    "sinkhorn": f"{_ROOM}.sinkhorn:SinkhornAttention",
    "synthesizer": f"{_ROOM}.synthesizer:SynthesizerAttention",
    "bigbird": f"{_ROOM}.bigbird:BigBirdAttention",
    "linear": f"{_ROOM}.linear:LinearAttention",
    "performer": f"{_ROOM}.performer:PerformerAttention",
}
#: Cores that learn from data before they can run; steps of their own swap them in.
FITTED: dict[str, str] = {"ecoformer": f"{_ROOM}.ecoformer:EcoFormerAttention"}


class Core(Protocol):
    """What the package's docstring asks of a core; each is an `nn.Module` made with (heads, size, **options)."""

    reads: str
    second: bool

    def __call__(
        self, q: Tensor | None, k: Tensor | None, v: Tensor, mask: Tensor | None = None
    ) -> Tensor: ...

    def equals_softmax(self, n: int) -> bool: ...


def core_class(kind: str) -> type[nn.Module]:
    """The class of a core. Raises UserError for an unknown name, with the known ones."""
    known = CORES | FITTED
    if kind not in known:
        raise UserError(f"{kind!r} is no attention; there are {', '.join(sorted(known))}")
    module, name = known[kind].split(":")
    found: type[nn.Module] = getattr(importlib.import_module(module), name)
    return found


def options_of(kind: str) -> dict[str, inspect.Parameter]:
    """The options that a core takes."""
    known = inspect.signature(core_class(kind)).parameters
    return {name: p for name, p in known.items() if name not in ("heads", "size")}


def make_core(kind: str, heads: int, size: int, **options: Any) -> Any:
    """A core for heads of this size. Raises UserError for unknown names and options, naming those there are."""
    if unknown := sorted(options.keys() - options_of(kind).keys()):
        takes = ", ".join(options_of(kind)) or "none"
        raise UserError(f"{kind} attention has no option {', '.join(unknown)}; it takes {takes}")
    return core_class(kind)(heads, size, **options)


def positive(**numbers: int) -> None:
    """Raises UserError unless all are whole numbers of at least 1."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name} is a whole number of at least 1, not {value!r}")


def within(n: int, length: int, kind: str) -> None:
    """Raises UserError for more positions than a core was made for."""
    if n > length:
        raise UserError(f"{n} positions are more than the {length} that this {kind} attention was made for")
