"""AxFormer: remove every part of a fine-tuned model whose removal the loss does not mind."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Batch, Bundle
from lightformers.compress import calibration
from lightformers.compress.distill import common
from lightformers.compress.prune import gates, hard_attention
from lightformers.compress.prune.gates import Sites
from lightformers.compress.prune.vtrans import cut
from lightformers.errors import DataError, UserError
from lightformers.runners.named import named, plain_arguments
from lightformers.steps import Run, Stage


@dataclass(frozen=True)
class Element:
    """Units of a gate that are tried together. gate, units: what is closed. size: weights in it."""

    gate: str
    units: tuple[int, ...]
    place: int
    size: int


@dataclass(frozen=True)
class AxFormer:
    """Greedy removal by the loss on held-out examples (Nagarajan et al., 2020, arXiv 2010.03688).

    Whole attentions and feed-forwards are tried first, those of the last block first; where one stays, its heads (groups
    that share keys and values) or groups of channels are tried, largest first. What raises the loss by no more than
    `tolerance` goes for good. Decisions are made on the task's search split, never on what is verified on, and need
    labels unless the task is a language model's. To be followed by fine-tuning or `Recover`.

    tolerance: how much the loss (nats) may rise by one removal; 0: only what is harmless or harmful goes.
    skip: where a whole raises the loss by more than this, its parts are not tried.
    groups: into how many groups of channels a feed-forward is cut, in stored order.
    examples: how many of the search split decide (each removal that is tried runs the model over them).
    hard: try hard attention afterwards, from the last block on, with half, a quarter, ... of the keys of the longest
        example down to one; the fewest keys within `tolerance` stay. It is how the model is run and is not saved.
    weights, match: see `hard_attention`.

    Deviations: blocks are removed by their loss even where the paper orders by other statistics (order and the two
    thresholds are choices of the card). An attention or feed-forward that goes while the other stays is cut to one head
    or channel group of zeros, because no family runs without. A post-norm block of which nothing is left keeps its norms.
    """

    tolerance: float = 0.0
    skip: float = 0.1
    groups: int = 8
    examples: int = 256
    hard: bool = False
    weights: hard_attention.Weights = "soft"
    match: hard_attention.Match = "score"
    stage: ClassVar[Stage] = Stage.DEPTH

    def __post_init__(self) -> None:
        if not self.tolerance >= 0 or not self.skip >= self.tolerance:
            raise UserError(
                f"tolerance must not be negative, skip not below it; got {self.tolerance} and {self.skip}"
            )
        if self.groups < 1 or self.examples < 1:
            raise UserError("groups and examples are at least 1")

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises UserError without a task, DataError without labels or examples to decide on."""
        batches = decision_batches(bundle, task, run, self.examples)
        if self.hard:
            hard_attention.install(bundle.model, {})()  # refuses what cannot be hard before anything is cut
        where = gates.sites(bundle.model, False)
        switches = nn.ModuleDict({name: Switch(len(g.mean)) for name, g in gates.make(where, 1.0, 0).items()})  # type: ignore[arg-type]
        with gates.installed(bundle.model, where, switches), _quiet(bundle):
            level = greedy(self, where, switches, lambda: mean_loss(bundle, task, batches), run)
        found = anatomy.of(bundle.model)
        cut(bundle, task, run, where, switches, 1, drop=found.final_norm is not None)
        if self.hard:
            self._harden(bundle, task, batches, level, run)
        return bundle

    def _harden(self, bundle: Bundle, task: Any, batches: list[Batch], level: float, run: Run) -> None:
        lengths = [b.inputs["input_ids"].shape[1] for b in batches if "input_ids" in b.inputs]
        longest = max(lengths, default=anatomy.sequence_length(bundle.model))
        chosen: dict[int, int] = {}
        for place in reversed(range(len(anatomy.of(bundle.model).blocks))):
            keys = longest
            while keys > 1:
                keys //= 2
                undo = hard_attention.install(bundle.model, chosen | {place: keys}, self.weights, self.match)
                with _quiet(bundle):
                    loss = mean_loss(bundle, task, batches)
                undo()
                if not loss <= level + self.tolerance:
                    break
                chosen[place], level = keys, loss
            run.progress({"block": place, "keys": chosen.get(place), "loss": level})
        if chosen:
            hard_attention.install(bundle.model, chosen, self.weights, self.match)


class Switch(nn.Module):
    """A gate that is open or closed, unit by unit."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.kept: Tensor
        self.register_buffer("kept", torch.ones(size, dtype=torch.bool))

    @property
    def mean(self) -> Tensor:
        return torch.ones(len(self.kept), device=self.kept.device)

    @property
    def log_alpha(self) -> Tensor:
        return torch.where(self.kept, -1.0, 1.0)

    def forward(self, batch: int) -> Tensor:
        """(batch, size) of zeros and ones."""
        return self.kept.float().expand(batch, -1)


def wholes(where: Sites) -> list[Element]:
    """Attentions and feed-forwards: the last block first, in it the larger first."""
    found = [Element(f"attention/{i}", (0,), i, n * each) for i, (_, n, each) in where.heads.items()]
    found += [Element(f"ffn/{i}", (0,), i, n * each) for i, (n, each) in where.neurons.items()]
    return sorted(found, key=lambda e: (-e.place, -e.size, e.gate))


def parts(where: Sites, element: Element, groups: int) -> list[Element]:
    """The heads of an attention, or groups of a feed-forward's channels; none of heads that all blocks share."""
    if element.gate.startswith("attention/"):
        name, count, each = where.heads[element.place]
        if name != f"heads/{element.place}":
            return []
        return [Element(name, (h,), element.place, each) for h in range(count)]
    count, each = where.neurons[element.place]
    edges = [round(count * g / groups) for g in range(groups + 1)]
    pieces = [tuple(range(a, b)) for a, b in zip(edges, edges[1:]) if b > a]  # noqa: RUF007
    return [Element(f"neurons/{element.place}", p, element.place, each * len(p)) for p in pieces]


def greedy(
    step: AxFormer, where: Sites, switches: nn.ModuleDict, loss: Callable[[], float], run: Run
) -> float:
    """Close what may go, in place; returns the loss reached. The last part of a whole that stays is never closed alone."""
    level = loss()
    queue = deque(wholes(where))
    while queue:
        element = queue.popleft()
        kept: Tensor = switches[element.gate].kept  # type: ignore[assignment]
        index = torch.tensor(element.units)
        if int(kept.sum()) <= len(index) and element.gate.startswith(("heads/", "neurons/")):
            continue  # all that is left of it: the whole was tried, and stays
        kept[index] = False
        tried = loss()
        if tried <= level + step.tolerance:
            level = tried
            run.progress({"removed": element.gate, "units": list(element.units), "loss": level})
            continue
        kept[index] = True
        if element.gate.startswith(("attention/", "ffn/")) and tried <= level + step.skip:
            queue.extend(parts(where, element, step.groups))
    return level


def decision_batches(bundle: Bundle, task: Any, run: Run, examples: int) -> list[Batch]:
    """The first `examples` of the search split, as the task collates them for training, of similar lengths."""
    if task is None:
        raise UserError("this step looks at the loss: give a task (Recipe.apply(bundle, task))")
    if bundle.task not in common.LANGUAGE_MODELS and not run.use_labels:
        raise DataError(
            "what the loss does not mind is judged with labels: allow them with Run(use_labels=True)"
        )
    rows = list(task.splits["search"][:examples])
    if not rows:
        raise DataError("the search split is empty: there is nothing to decide on")
    lengths = [bundle.length(e) for e in bundle.encode(rows)]
    order = sorted(range(len(rows)), key=lambda i: (lengths[i], i))
    device = next(bundle.model.parameters()).device
    return [
        task.collate(bundle, [rows[i] for i in order[start : start + 32]], seed=run.seed).to(device)
        for start in range(0, len(order), 32)
    ]


@torch.no_grad()
def mean_loss(bundle: Bundle, task: Any, batches: list[Batch]) -> float:
    """The task's loss, averaged over batches by their examples."""
    module = bundle.module()
    arguments = plain_arguments(module)
    total = count = 0.0
    for batch in batches:
        size = len(next(iter(batch.inputs.values())))
        total += size * float(task.loss(named(module(**batch.inputs, **arguments)), batch))
        count += size
    return total / count


@contextmanager
def _quiet(bundle: Bundle) -> Iterator[None]:
    with calibration.evaluating(bundle.model):
        yield
