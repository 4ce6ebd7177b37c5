"""What `language.py` runs: a row per form of a sequence mixer, beside what is run without it. New ones add theirs here.

A child process imports this module by name, to measure memory.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Call = Callable[[], object]
#: name -> a call; the first is ours, the others are what it is compared with.
Calls = dict[str, Call]
OURS = "lightformers"
ORACLE = "transformers"
LITERAL = "the literal recurrence"


@dataclass(frozen=True)
class Row:
    """One comparison. calls: length -> what is timed, forward and backward over a sequence of it.

    wanted: how many times as fast as its rivals ours should be, 0 where nothing is asked. what: in a sentence.
    """

    calls: Callable[[int], Calls]
    what: str
    wanted: float = 0.0


@dataclass(frozen=True)
class Speaker:
    """A decoder whose decoding is timed. layer: of its configuration; a list of them is repeated from the bottom."""

    layers: tuple[Mapping[str, Any], ...]
    recurrent: bool = True


def leaves(seed: int = 0, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """Random tensors that want a gradient."""
    drawn = torch.Generator().manual_seed(seed)
    return {k: torch.randn(*s, generator=drawn).requires_grad_() for k, s in shapes.items()}


def both_ways(fn: Callable[[], Tensor], held: Mapping[str, Tensor], shape: tuple[int, ...]) -> Call:
    """A call that runs forward and backward and leaves no gradient behind. shape: of what `fn` gives."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def call() -> None:
        fn().backward(weight)
        for x in held.values():
            x.grad = None

    return call


def selective(n: int, inner: int = 512, state: int = 16) -> Calls:
    """Mamba's scan alone: 512 channels, as in a model of width 256."""
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    from lightformers.kernels.selective_scan import selective_scan

    x = leaves(u=(1, n, inner), step=(1, n, inner), b=(1, n, state), c=(1, n, state))
    a = -torch.arange(1.0, state + 1).repeat(inner, 1)

    def step() -> Tensor:
        return nn.functional.softplus(x["step"] - 4)

    def theirs() -> Tensor:
        u, b, c = (x[k].transpose(1, 2) for k in "ubc")
        return mamba_selective_scan(u, step().transpose(1, 2), a, b, c)

    def mine() -> Tensor:
        return selective_scan(x["u"], step(), a, x["b"], x["c"])[0]

    return {OURS: both_ways(mine, x, (1, n, inner)), ORACLE: both_ways(theirs, x, (1, inner, n))}


def dual(n: int, heads: int = 8, size: int = 64, state: int = 128) -> Calls:
    """Mamba-2's scan alone: 8 heads of 64, as in a model of width 256; transformers' own chunk of 256."""
    from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

    from lightformers.kernels.ssd import ssd

    x = leaves(x=(1, n, heads, size), step=(1, n, heads), b=(1, n, 1, state), c=(1, n, 1, state))
    a = -torch.linspace(1, 16, heads)

    def mine() -> Tensor:
        step = nn.functional.softplus(x["step"] - 4)
        return ssd(x["x"], step * a, x["b"], x["c"], step)[0]

    def theirs() -> Tensor:
        step = nn.functional.softplus(x["step"] - 4)
        return mamba2_chunk_scan(x["x"], step, a, x["b"], x["c"], chunk_size=256)

    shape = (1, n, heads, size)
    return {OURS: both_ways(mine, x, shape), ORACLE: both_ways(theirs, x, shape)}


def mixers(kind: str, oracle: str, config: str, **options: Any) -> Callable[[int], Calls]:
    """A whole mixer of width 256, its projections counted, beside transformers' with the same weights."""

    def calls(n: int) -> Calls:
        from lightformers.parts.mixers.table import MIXERS, make

        modules = importlib.import_module(oracle.rsplit(":", 1)[0])
        transformers = importlib.import_module("transformers")
        torch.manual_seed(0)
        mine = make(MIXERS, kind, 256)
        settings = getattr(transformers, config)(
            hidden_size=256, num_hidden_layers=1, vocab_size=8, **options
        )
        theirs = getattr(modules, oracle.rsplit(":", 1)[1])(settings, 0)
        theirs.load_state_dict(mine.state_dict())
        x = torch.randn(1, n, 256)
        return {OURS: _through(mine, x), ORACLE: _through(theirs, x)}

    return calls


def _through(module: nn.Module, x: Tensor) -> Call:
    def call() -> None:
        module(x).sum().backward()
        module.zero_grad()

    return call


def lanes(n: int, width: int = 256) -> Calls:
    """The elementwise recurrence of S4D, HGRN and MLGRU: 256 channels."""
    from lightformers.kernels.linear_scan import linear_scan, reference

    x = leaves(a=(1, n, width), b=(1, n, width))
    mine, theirs = (lambda f=f: f(torch.sigmoid(x["a"]), x["b"])[0] for f in (linear_scan, reference))
    return {OURS: both_ways(mine, x, (1, n, width)), LITERAL: both_ways(theirs, x, (1, n, width))}


def delta(n: int, heads: int = 4, size: int = 64) -> Calls:
    """The delta rule of 4 heads of 64, as in a model of width 256; transformers' is that of Qwen3-Next at no decay."""
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    from lightformers.kernels.delta_rule import delta_rule, reference

    x = leaves(q=(1, heads, n, size), k=(1, heads, n, size), v=(1, heads, n, size), beta=(1, heads, n))

    def given() -> tuple[Tensor, ...]:
        return x["q"], nn.functional.normalize(x["k"], dim=-1), x["v"], x["beta"].sigmoid()

    def theirs() -> Tensor:
        q, k, v, beta = (y.transpose(1, 2) for y in given())
        return torch_chunk_gated_delta_rule(q, k, v, torch.zeros_like(beta), beta)[0].transpose(1, 2)

    shape = (1, heads, n, size)
    return {
        OURS: both_ways(lambda: delta_rule(*given())[0], x, shape),
        LITERAL: both_ways(lambda: reference(*given())[0], x, shape),
        ORACLE: both_ways(theirs, x, shape),
    }


def additive(n: int, heads: int = 4, size: int = 64) -> Calls:
    """Linear attention of 4 heads of 64."""
    from lightformers.kernels.linear_attention import linear_attention, reference

    x = leaves(q=(1, heads, n, size), k=(1, heads, n, size), v=(1, heads, n, size))
    mine, theirs = (lambda f=f: f(x["q"], x["k"] / n, x["v"])[0] for f in (linear_attention, reference))
    shape = (1, heads, n, size)
    return {OURS: both_ways(mine, x, shape), LITERAL: both_ways(theirs, x, shape)}


def prefixes(n: int, heads: int = 4, size: int = 64) -> Calls:
    """Softmax means of all prefixes, 4 heads of 64."""
    from lightformers.kernels.prefix_softmax import prefix_softmax, reference

    x = leaves(scores=(1, heads, n), values=(1, heads, n, size))
    mine, theirs = (lambda f=f: f(x["scores"], x["values"])[0] for f in (prefix_softmax, reference))
    shape = (1, heads, n, size)
    return {OURS: both_ways(mine, x, shape), LITERAL: both_ways(theirs, x, shape)}


_MAMBA = "transformers.models.mamba.modeling_mamba:MambaMixer"
_MAMBA2 = "transformers.models.mamba2.modeling_mamba2:Mamba2Mixer"

#: "family:form" -> its row; `--only` names families.
ROWS: dict[str, Row] = {
    "mamba:scan": Row(selective, "the selective scan of 512 channels with a state of 16", 10),
    "mamba:mixer": Row(mixers("mamba", _MAMBA, "MambaConfig"), "the whole mixer at width 256", 10),
    "mamba2:scan": Row(dual, "the scan of 8 heads of 64 with a state of 128", 10),
    "mamba2:mixer": Row(
        mixers("mamba2", _MAMBA2, "Mamba2Config", num_heads=8, head_dim=64, n_groups=1),
        "the whole mixer at width 256",
    ),
    "deltanet:scan": Row(delta, "the delta rule of 4 heads of 64, in chunks", 20),
    "linear-attention:scan": Row(additive, "linear attention of 4 heads of 64, in chunks", 20),
    "aaren:scan": Row(prefixes, "softmax of all prefixes, 4 heads of 64, in blocks", 20),
    "linear-scan:scan": Row(lanes, "h = a * h + b over 256 channels", 10),
}

_MLP = {"kind": "mlp", "hidden": 1024}

#: Family -> the model whose decoding is timed: width 256, layers repeated to four. The first is what others race.
SPEAKERS: dict[str, Speaker] = {
    "transformer": Speaker(({"mixer": {"kind": "attention", "heads": 4}, "ffn": _MLP},), recurrent=False),
    "mamba": Speaker(({"mixer": {"kind": "mamba"}}, {"mixer": {"kind": "mamba"}})),
    "deltanet": Speaker(({"mixer": {"kind": "deltanet", "heads": 4}, "ffn": _MLP},)),
    "linear-attention": Speaker(({"mixer": {"kind": "linear-attention", "heads": 4}, "ffn": _MLP},)),
    "aaren": Speaker(({"mixer": {"kind": "aaren", "heads": 4}, "ffn": _MLP},)),
    "mlgru": Speaker(({"mixer": {"kind": "mlgru"}, "ffn": {"kind": "bit-swiglu", "hidden": 768}},)),
    "primer": Speaker(({"mixer": {"kind": "primer", "heads": 4}, "ffn": _MLP},), recurrent=False),
    "mamba2": Speaker(({"mixer": {"kind": "mamba2"}}, {"mixer": {"kind": "mamba2"}})),
}


def one_pass(name: str, n: int) -> None:
    """Forward and backward of ours, once: what a child process does to have its memory measured."""
    ROWS[name].calls(n)[OURS]()
