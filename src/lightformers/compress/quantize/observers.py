"""What quantizers look at before they round: maxima, ranges and samples of what enters layers, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.compress import calibration
from lightformers.compress.layers import input_of
from lightformers.errors import UserError
from lightformers.steps import Run


class Observer(Protocol):
    """tokens: how many were seen."""

    tokens: int

    def see(self, x: Tensor) -> None:
        """x (tokens, features), without padding."""


Kind = TypeVar("Kind", bound=Observer)


@dataclass
class Rows:
    """At most `most` tokens, every one that was seen with equal chance; `peak` (features,) over all that were seen."""

    most: int = 512
    seed: int = 0
    tokens: int = 0
    rows: Tensor | None = None
    peak: Tensor | None = None
    _lots: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    _generator: Any = field(default=None, repr=False)

    def see(self, x: Tensor) -> None:
        if not len(x):
            return
        x = x.detach().float()
        self.tokens += len(x)
        if self._generator is None:
            self._generator = torch.Generator().manual_seed(self.seed)
        top = x.abs().amax(0)
        self.peak = top if self.peak is None else torch.maximum(self.peak, top)
        lots = torch.cat([self._lots, torch.rand(len(x), generator=self._generator)])
        rows = x if self.rows is None else torch.cat([self.rows, x])
        if len(lots) > self.most:
            kept = lots.topk(self.most).indices
            lots, rows = lots[kept], rows[kept.to(rows.device)]
        self._lots, self.rows = lots, rows.clone()


@dataclass
class Range:
    """Least and largest value over the whole tensor.

    momentum: weight of the range so far when a new batch comes (running min-max); 0 keeps the extremes of all.
    """

    momentum: float = 0.0
    tokens: int = 0
    low: float | None = None
    high: float | None = None

    def see(self, x: Tensor) -> None:
        if not x.numel():
            return
        low, high = float(x.min()), float(x.max())
        self.tokens += len(x)
        if self.low is None or self.high is None:
            self.low, self.high = low, high
        elif self.momentum:
            self.low += (1 - self.momentum) * (low - self.low)
            self.high += (1 - self.momentum) * (high - self.high)
        else:
            self.low, self.high = min(self.low, low), max(self.high, high)


@dataclass(frozen=True)
class Seen(Generic[Kind]):
    """Observers by path; layers that read the same input share one."""

    observers: dict[str, Kind]
    source: dict[str, str]

    def __getitem__(self, path: str) -> Kind:
        return self.observers[self.source.get(path, path)]


def observe(
    bundle: Bundle, task: Any, paths: Sequence[str], make: Callable[[], Kind], examples: int, run: Run
) -> Seen[Kind]:
    """Run calibration examples through the model once, an observer at the input of every layer in `paths`.

    Raises UserError without a task, or if a layer is never reached, or sees NaN or infinity.
    """
    chosen = calibration.examples_of(task, examples, run.seed)
    source = {p: s for p, s in input_of(anatomy.of(bundle.model)).items() if s in paths or p in paths}
    observers = {p: make() for p in dict.fromkeys(source.get(p, p) for p in paths)}
    current: list[Tensor | None] = [None]
    with ExitStack() as stack:
        for path, observer in observers.items():
            handle = anatomy.get(bundle.model, path).register_forward_pre_hook(_hook(path, observer, current))
            stack.callback(handle.remove)
        stack.enter_context(calibration.evaluating(bundle.model))
        stack.enter_context(calibration.fast_precision(next(bundle.model.parameters()).device, run.dtype))
        module = bundle.module().eval()
        for batch in calibration.batches(bundle, chosen):
            current[0] = batch.inputs.get("attention_mask")
            module(**batch.inputs)
    unseen = [p for p, o in observers.items() if not o.tokens]
    if unseen:
        raise UserError(
            f"the calibration examples never reach {', '.join(unseen[:3])}: is it part of the model?"
        )
    return Seen(observers, source)


def _hook(path: str, observer: Observer, current: list[Tensor | None]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        x = calibration.real_tokens(args[0].detach(), current[0])
        if not bool(torch.isfinite(x).all()):
            raise UserError(f"what enters {path} holds NaN or infinity: it cannot be quantized")
        observer.see(x)

    return hook
