"""A teacher's attention put into a student's forward pass, and the losses that are taken on the way."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.anatomy.find import host
from lightformers.errors import ModelError
from lightformers.parts.attention.interface import AttentionSettings, check, use, watched

Kind = Literal["none", "map", "context", "output"]
Order = Literal["gradual", "inverted", "stochastic", "output", "context", "map", "none"]


def kind_at(fraction: float, order: Order, draw: float = 0.0) -> Kind:
    """What is replaced when `fraction` of stage 1 is spent.

    gradual: the output until 1/6, the context until 1/3, then the map (TI-G). inverted: map, context, output in
    thirds. stochastic: any of the three, by `draw` in [0, 1). Other orders: always that.
    """
    if order == "gradual":
        return "output" if fraction < 1 / 6 else "context" if fraction < 1 / 3 else "map"
    three: tuple[Kind, Kind, Kind] = ("map", "context", "output")
    if order == "inverted":
        return three[min(int(3 * fraction), 2)]
    if order == "stochastic":
        return three[min(int(3 * draw), 2)]
    return order


@dataclass
class Trace:
    """What one forward left, block by block; `hidden` has one more: what enters the first block."""

    scores: list[Tensor]
    hidden_keys: list[Tensor | None]
    probabilities: list[Tensor]
    context: list[Tensor]
    raw: list[Tensor]  # of the output projection
    after: list[Tensor]  # of the attention sublayer, residual and normalisation: what the feed-forward reads
    hidden: list[Tensor]


class Watch:
    """While the block runs, `forward` of this watch gives a model's outputs and its `Trace`.

    Raises ModelError for attention that is fused, crosses to another stack or bypasses transformers' interface.
    """

    def __init__(
        self, model: nn.Module, module: nn.Module, settings: AttentionSettings | None = None
    ) -> None:
        self.model, self.module, self.settings = model, module, settings
        self.found = anatomy.of(model)
        self._kept: dict[tuple[str, int], Tensor] = {}
        self._put: dict[int, Tensor] = {}
        self._detached: frozenset[str] = frozenset()
        self._stack = ExitStack()
        for block in self.found.blocks:
            if block.attention is None or block.feed_forward is None or block.cross_attention is not None:
                raise ModelError(f"{block.path} is not a block of one self-attention and one feed-forward")
            if block.attention.qkv is not None:
                raise ModelError(
                    f"{block.attention.path} projects queries, keys and values in one: a teacher cannot intervene "
                    "in one of them alone"
                )
        self.owner: Any = host(model)[1]
        check(self.owner, {a.path: anatomy.get(model, a.path) for a in self._attentions()})

    def _attentions(self) -> list[Any]:
        return [b.attention for b in self.found.blocks]

    def __enter__(self) -> Watch:
        old = self.owner.config._attn_implementation
        use(self.owner, self.settings)
        if self.settings is None:
            self._stack.callback(self.owner.set_attn_implementation, old)
        modules = [anatomy.get(self.model, a.path) for a in self._attentions()]
        self.taps = self._stack.enter_context(watched(*modules))
        for i, block in enumerate(self.found.blocks):
            attention, forward = block.attention, block.feed_forward
            assert attention is not None and forward is not None
            self._before(forward.gate or forward.up, self._keep(("after", i)))
            if i == 0:
                self._before(block.path, self._keep(("hidden", 0)))
            self._after(block.path, self._keep_output(("hidden", i + 1)))
            self._after(attention.o, self._projected(i))
            for piece in ("q", "k", "v"):
                self._before(getattr(attention, piece), self._maybe_detach(piece))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _before(self, path: str, hook: Any) -> None:
        handle = anatomy.get(self.model, path).register_forward_pre_hook(hook, with_kwargs=True)
        self._stack.callback(handle.remove)

    def _after(self, path: str, hook: Any) -> None:
        self._stack.callback(anatomy.get(self.model, path).register_forward_hook(hook).remove)

    def _keep(self, key: tuple[str, int]) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._kept[key] = anatomy.entering(args, kwargs)

        return hook

    def _keep_output(self, key: tuple[str, int]) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._kept[key] = output if isinstance(output, Tensor) else output[0]

        return hook

    def _projected(self, index: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            self._kept["raw", index] = output
            put = self._put.get(index)
            return None if put is None else put.to(output.dtype)

        return hook

    def _maybe_detach(self, piece: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return ((args[0].detach(), *args[1:]), kwargs) if piece in self._detached else None

        return hook

    def forward(
        self, inputs: Mapping[str, Any], kind: Kind = "none", teacher: Trace | None = None
    ) -> tuple[Any, Trace]:
        """Run the model with the teacher's tensors of the same batch in place of its own."""
        if kind != "none" and teacher is None:
            raise ValueError("an intervention needs the teacher's trace of the same batch")
        count = range(len(self.taps))
        for i in count:
            tap = self.taps[i]
            tap.put_probabilities = teacher.probabilities[i] if teacher and kind == "map" else None
            tap.put_context = teacher.context[i] if teacher and kind == "context" else None
        self._put = dict(enumerate(teacher.raw)) if teacher and kind == "output" else {}
        self._detached = frozenset({"none": "", "map": "qk"}.get(kind, "qkv"))
        outputs = self.module(**inputs)
        trace = Trace(
            [_there(t.scores) for t in self.taps], [t.hidden for t in self.taps],
            [_there(t.probabilities) for t in self.taps], [_there(t.context) for t in self.taps],
            [self._kept["raw", i] for i in count], [self._kept["after", i] for i in count],
            [self._kept["hidden", i] for i in range(len(self.taps) + 1)],
        )  # fmt: skip
        self._kept.clear()
        return outputs, trace


def _there(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise ModelError(
            "an attention was never reached: the model bypasses transformers' attention interface"
        )
    return tensor


def layer_losses(student: Trace, teacher: Trace, kind: Kind = "none") -> dict[str, Tensor]:
    """Sums over layers of mean squared differences: "hidden", "scores" (hidden keys count as 0), "attention".

    attention: after residual and normalisation; while the output is replaced, of the projection's own output, which
    would else get no gradient.
    """
    scores = []
    for own, theirs, hidden in zip(student.scores, teacher.scores, student.hidden_keys):
        gap = own.float() - theirs.float()
        scores.append((gap if hidden is None else gap.masked_fill(hidden, 0)).square().mean())
    pairs = zip(student.raw, teacher.raw) if kind == "output" else zip(student.after, teacher.after)
    return {
        "hidden": _total(zip(student.hidden, teacher.hidden)),
        "scores": torch.stack(scores).sum(),
        "attention": _total(pairs),
    }


def _total(pairs: Any) -> Tensor:
    return torch.stack([(a.float() - b.float()).square().mean() for a, b in pairs]).sum()
