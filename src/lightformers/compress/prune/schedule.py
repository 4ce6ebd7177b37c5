"""Pruning in time: how sparse a model is when, and masks that stay in force while it trains and is scored anew.

What every sparsifying paper fills in: a score per unit, a structure (single weights, blocks of inputs), a scope
(all layers together, each on its own) and a schedule (`targets`, `between`). `gradually` runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightformers.bundle import Bundle
from lightformers.compress.distill import Recover, common
from lightformers.compress.prune import masks
from lightformers.compress.prune.masks import Masks
from lightformers.errors import UserError
from lightformers.steps import Run

Scope = Literal["global", "layer"]


def check_sparsity(sparsity: float, name: str = "sparsity") -> None:
    """Raises UserError outside [0, 1), also for NaN."""
    if not 0 <= sparsity < 1:
        raise UserError(f"{name} is a share in [0, 1), got {sparsity}")


def cubic(t: float, initial: float, final: float) -> float:
    """`s_i + (s_f - s_i)(1 - (1 - t)^3)`, t in [0, 1]: much early, little late (Zhu & Gupta, 2017, arXiv 1710.01878)."""
    return initial + (final - initial) * (1.0 - (1.0 - min(max(t, 0.0), 1.0)) ** 3)


def targets(initial: float, final: float, rounds: int) -> list[float]:
    """Sparsity of each of `rounds` prunings, cubic, the first at `initial` and the last at `final`.

    One round goes straight to `final`. Raises UserError for falling sparsities and for no rounds.
    """
    if rounds < 1:
        raise UserError(f"pruning needs at least one round, got {rounds}")
    if rounds == 1:
        return [final]
    if initial > final:
        raise UserError(f"sparsity cannot fall from {initial} to {final}: set initial to at most {final}")
    return [cubic(i / (rounds - 1), initial, final) for i in range(rounds)]


def between(before: float, after: float, parts: int) -> list[float]:
    """`parts` sparsities that lead from `before` to `after` in equal steps; the last is `after`."""
    return [before + (after - before) * (i + 1) / parts for i in range(parts)]


def choose(
    scores: Mapping[str, Tensor],
    sparsity: float,
    block: int = 1,
    scope: Scope = "global",
    before: Mapping[str, Tensor] | None = None,
) -> Masks:
    """Masks that remove the lowest scores, exactly as many as the sparsity says, however many are equal.

    scores: path -> (out, in // block), one score per unit of `block` consecutive inputs of a row; more is more important.
    before: masks in force (out, in): what they remove stays removed and counts, so masks only ever tighten.
    """
    if scope not in get_args(Scope):
        raise UserError(f"scope {scope!r} is not one of {', '.join(get_args(Scope))}")
    units = {p: s.detach().float() for p, s in scores.items()}
    if before is not None:
        for p, s in units.items():
            alive = before[p].reshape(s.shape[0], -1, block).any(-1)
            if not bool(alive.all()):  # no copy of all scores where nothing was removed yet
                units[p] = s.masked_fill(~alive, -torch.inf)
    gone = [int(torch.isneginf(s).sum()) for s in units.values()]
    sizes = [s.numel() for s in units.values()]
    if scope == "global":
        kept = masks.smallest(units, max(round(sparsity * sum(sizes)), sum(gone)))
    else:
        kept = masks.per_layer(units, [max(round(sparsity * n), g) for n, g in zip(sizes, gone)])
    out = {p: m.repeat_interleave(block, dim=1) for p, m in kept.items()}
    return out if before is None else {p: m & before[p] for p, m in out.items()}


class Held:
    """Masks in force on a model: gradients stop at them, and they can be replaced while training goes on.

    What is masked is exactly zero after every `set` and `enforce`; in between, optimizers that start after `set`
    leave it there (see `masks.hold`). Other optimizers: `masks.guard`.
    """

    def __init__(self, model: nn.Module, start: Mapping[str, Tensor]) -> None:
        self.model = model
        self.masks: Masks = {}
        self._release: Callable[[], None] = lambda: None
        self.set(start)

    def set(self, new: Mapping[str, Tensor]) -> None:
        """Put these masks in force instead of the present ones."""
        self._release()
        self.masks = dict(new)
        self._release = masks.hold(self.model, self.masks)

    def enforce(self) -> None:
        """Zero again what is masked, whatever happened to it (a loaded state, an optimizer with momentum)."""
        masks.apply(self.model, self.masks)

    def release(self) -> None:
        """Let go: the weights stay as they are, zeros may learn again."""
        self._release()
        self._release = lambda: None

    @property
    def sparsity(self) -> float:
        """Share of the masked weights."""
        return masks.sparsity(self.masks)


def gradually(
    held: Held,
    sparsities: Sequence[float],
    prune: Callable[[Held, float], None],
    train: Callable[[int], None] | None = None,
    recompute: int = 1,
) -> None:
    """Prune to each sparsity in turn and train in between and at the end.

    prune: brings `held` (and, if it likes, the surviving weights) to a sparsity. It is called `recompute` times per round,
    on sparsities in equal steps, so that scores which depend on the weights are taken anew. train: number of the
    round -> None.
    """
    reached = held.sparsity
    for number, sparsity in enumerate(sparsities):
        for part in between(min(reached, sparsity), sparsity, recompute):
            prune(held, part)
        held.enforce()
        if train is not None:
            train(number)
            held.enforce()
        reached = sparsity


def retraining(
    bundle: Bundle, task: Any, run: Run, *, lr: float, epochs: float, temperature: float, rounds: int
) -> Callable[[int], None] | None:
    """Distillation from the run's teacher after each round, as `Recover` does it; None for 0 epochs.

    The run's budget is divided equally among the rounds; without one, each trains `epochs`. The learning rate starts
    anew and comes down in each. Raises what `Recover` raises, before anything is trained.
    """
    if epochs < 0 or lr <= 0:
        raise UserError(f"epochs must not be negative and lr must be positive, got {epochs} and {lr}")
    if not epochs:
        return None
    step = Recover(lr=lr, epochs=epochs, temperature=temperature, share=1 / rounds)
    common.teacher_of(bundle, run)
    step._validate(bundle, task)

    def train(number: int) -> None:
        step.apply(bundle, task, run)

    return train
