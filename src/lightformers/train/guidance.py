"""Self-guided training of structured layers (Wei et al., 2024, arXiv 2406.16450): a dense matrix assists, then goes.

guide(model)
fit(model, feed, SelfGuided(objective, steps=500), Settings(steps=1000))
release(model)
"""

from __future__ import annotations

import dataclasses
import math
import random
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from lightformers.bundle import Batch
from lightformers.errors import ModelError, UserError
from lightformers.parts.ffn.guided import Guided
from lightformers.parts.ffn.structured import STRUCTURED
from lightformers.train.loop import Objective
from lightformers.train.state import TrainState

Fade = Literal["cosine", "linear"]


def share(step: int, steps: int, fade: Fade = "cosine") -> float:
    """What the dense matrix contributes after `step` updates: from 1 to 0 over `steps`, then 0."""
    done = min(step / steps, 1.0)
    return 0.5 * (1 + math.cos(math.pi * done)) if fade == "cosine" else 1 - done


def guide(model: nn.Module) -> list[str]:
    """Give every structured layer of `model` its dense guide, in place; returns their paths. Raises ModelError where
    there is none, or one is guided already."""
    found = [name for name, m in model.named_modules() if isinstance(m, STRUCTURED)]
    if not found or any(isinstance(m, Guided) for m in model.modules()):
        raise ModelError("there is no structured layer to guide" if not found else "it is guided already")
    for path in found:
        layer = model.get_submodule(path)
        _put(model, path, Guided(layer).train(layer.training))  # type: ignore[arg-type]
    return found


def release(model: nn.Module, state: TrainState | None = None) -> TrainState | None:
    """Take the guides away, in place: what is left is the structured layers and nothing else.

    state: of a training with guides; returned as one of the model without, to go on from. Raises ModelError where
    nothing is guided.
    """
    found = [name for name, m in model.named_modules() if isinstance(m, Guided)]
    if not found:
        raise ModelError("no layer is guided")
    for path in found:
        _put(model, path, model.get_submodule(path).layer)  # type: ignore[arg-type]
    if state is None:
        return None
    tensors = {}
    for key, value in state.tensors.items():
        kind, _, name = key.partition("/")
        path = next((p for p in found if name.startswith(f"{p}.")), None)
        rest = name if path is None else name.removeprefix(f"{path}.")
        if path is None:
            tensors[key] = value
        elif rest != "guide":
            tensors[f"{kind}/{path}.{rest.removeprefix('layer.')}"] = value
    return dataclasses.replace(state, tensors=tensors)


@dataclass(frozen=True)
class SelfGuided:
    """An objective that fades the guides while it trains: the share follows the update, not the call, so accumulation,
    resuming and evaluation change nothing.

    objective: the loss itself. steps: updates until the dense part is gone (the paper: half of the training).
    sparing: compute a layer's dense product only with probability share, else the structured one alone, drawn anew per
        update and layer; saves the guides' arithmetic in proportion. fade: "cosine" or "linear".
    calls: batches of one update over all processes (`accumulate` times processes). Needs a `Feed`, whose batches know
    their position. Raises UserError otherwise.
    """

    objective: Objective
    steps: int
    sparing: bool = False
    fade: Fade = "cosine"
    calls: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.calls < 1:
            raise UserError("steps and calls are at least 1")
        if self.fade not in ("cosine", "linear"):
            raise UserError(f"fade {self.fade!r} is not one of cosine, linear")

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        if "position" not in batch.targets:
            raise UserError("self-guided training needs batches that know their position: take a Feed")
        update = int(batch.targets["position"]) // self.calls
        now = share(update, self.steps, self.fade)
        draw = random.Random(self.seed * 1_000_003 + update)
        for layer in (m for m in module.modules() if isinstance(m, Guided)):
            drawn = draw.random() < now if self.sparing else now > 0
            layer.share.fill_(now)
            layer.active = drawn
        return self.objective(module, batch)


def _put(model: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)
