"""The one training loop (on accelerate): a budget of seconds, steps or tokens, and a schedule that ends with it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from lightformers import memory
from lightformers.bundle import Batch
from lightformers.errors import UserError
from lightformers.train import optim
from lightformers.train.attention import quick_attention
from lightformers.train.schedules import Schedule, factor
from lightformers.train.state import TrainState

Objective = Callable[[nn.Module, Batch], Tensor]
Progress = Callable[[dict[str, Any]], None]
Halt = Callable[[], bool]


class Diverged(UserError):
    """The loss is no longer a finite number."""


class Batches(Protocol):
    """Where batches come from: one for every position 0, 1, 2, ... without end (`Feed` is one)."""

    def batch(self, position: int) -> Batch: ...


@dataclass(frozen=True)
class Settings:
    """How to train.

    seconds, steps, tokens: the budget; whichever is spent first ends training (at least one is needed). It counts
        from the beginning of a resumed training. tokens are real ones; an image counts as one.
    until: stop at this fraction of the budget, with a state to go on from: the schedule is that of the whole.
    lr: peak learning rate; warmup: fraction of the budget; schedule: see `schedules.factor`.
    weight_decay: on matrices only. clip: largest gradient norm, 0 for none. accumulate: batches of one update.
    precision: "bf16" (autocast), "bf16-weights" (computes with bf16 copies of the weights, updates in fp32) or "fp32".
    frozen: patterns (`fnmatch`) of parameter names that get neither gradient nor optimizer state.
    dropout: leave dropout on. Off by default: a teacher's outputs are to be met, not a noisy version of them.
    """

    seconds: float | None = None
    steps: int | None = None
    tokens: int | None = None
    until: float = 1.0
    lr: float = 3e-4
    warmup: float = 0.05
    schedule: Schedule = "linear"
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    accumulate: int = 1
    precision: Literal["bf16", "bf16-weights", "fp32"] = "bf16"
    frozen: Sequence[str] = ()
    dropout: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        budgets = [b for b in (self.seconds, self.steps, self.tokens) if b is not None]
        if not budgets or min(budgets) <= 0:
            raise UserError("training needs a positive budget: give seconds, steps or tokens")
        if self.precision not in ("bf16", "bf16-weights", "fp32"):
            raise UserError(f"precision {self.precision!r} is not one of bf16, bf16-weights, fp32")
        if self.lr <= 0 or self.accumulate < 1 or not 0 < self.until <= 1:
            raise UserError("lr must be positive, accumulate at least 1, until in (0, 1]")
        factor(0.5, self.warmup, self.schedule)


@dataclass
class TrainResult:
    """steps, tokens, seconds: of the whole training, earlier parts included. loss: mean over the last tenth of the
    updates made here. losses: one per update made here. state: to go on from. stopped: by `halt`."""

    steps: int
    tokens: int
    seconds: float
    loss: float
    losses: list[float] = field(repr=False)
    state: TrainState = field(repr=False)
    stopped: bool = False


def fit(
    module: nn.Module,
    batches: Batches | Sequence[Batch],
    objective: Objective,
    settings: Settings,
    progress: Progress | None = None,
    state: TrainState | None = None,
    device: str | torch.device = "cpu",
    halt: Halt | None = None,
) -> TrainResult:
    """Train `module` in place; returns it in the mode (train or eval) in which it came.
    batches: a `Feed`, or a sequence of batches that is gone through again and again.
    objective: `(module, batch) -> scalar loss`; if it is an `nn.Module`, its parameters are trained too.
    progress: called about twice a second with {"step", "loss", "tokens_per_second", "seconds_left", "fraction",
        "seconds"}; seconds_left is to `until`, seconds and fraction are of the whole budget.
    halt: asked after every update, ends training there. state: of an earlier part of the same training.
    Raises Diverged where the loss is not finite (the weights are then those of the last good update), UserError where
    nothing is left to train; out of memory stays RuntimeError.
    """
    source: Batches = batches if hasattr(batches, "batch") else _Cycle(batches)
    accelerator = _accelerator(device)
    module.to(accelerator.device)
    if isinstance(objective, nn.Module):
        objective.to(accelerator.device)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(enabled=settings.dropout))
        stack.enter_context(_mode(module, settings.dropout))
        stack.enter_context(quick_attention(module, accelerator.device))
        parameters = stack.enter_context(optim.trainable(module, objective, settings.frozen))
        if state:
            optim.restore_weights(parameters, state)
        weights = stack.enter_context(optim.weights(module, parameters, settings.precision == "bf16-weights"))
        optimizer = optim.adamw(weights.masters, settings.lr, settings.weight_decay, settings.betas)
        if state:
            optim.restore_moments(optimizer, weights.masters, state)
        update = _Update(accelerator, module, optimizer, weights, source, objective, settings)
        result = _train(update, settings, progress, state, halt)
        result.state.tensors = optim.snapshot(optimizer, weights.masters)
    return result


def _train(
    update: _Update,
    settings: Settings,
    progress: Progress | None,
    state: TrainState | None,
    halt: Halt | None,
) -> TrainResult:
    done = (
        TrainState(step=state.step, batches=state.batches, tokens=state.tokens, seconds=state.seconds)
        if state
        else TrainState()
    )
    before, start = dataclasses.replace(done), time.monotonic()
    losses: list[float] = []
    told = released = start
    stopped, ahead = False, 0.0  # half an update: stopping is nearest to the budget, not always after it
    while not stopped and (fraction := _fraction(done, settings, ahead)) < settings.until:
        losses.append(update(done, settings.lr * factor(fraction, settings.warmup, settings.schedule)))
        now = time.monotonic()
        done.seconds = before.seconds + update.agreed(now - start)
        ahead = 0.5 * (done.seconds - before.seconds) / len(losses)
        if now - released > memory.EVERY:
            released = now
            memory.release()
        if progress and now - told > 0.5:
            told = now
            progress(_event(done, before, settings, losses))
        stopped = halt is not None and halt()
    if progress and losses:
        progress(_event(done, before, settings, losses))
    tail = losses[-max(len(losses) // 10, 1) :]
    return TrainResult(
        done.step,
        done.tokens,
        done.seconds,
        sum(tail) / len(tail) if tail else math.nan,
        losses,
        done,
        stopped,
    )


class _Update:
    """One optimizer step: forward and backward of `accumulate` batches, clipping, AdamW."""

    def __init__(
        self, accelerator: Any, module: nn.Module, optimizer: Any, weights: optim.Weights, source: Batches,
        objective: Objective, settings: Settings,
    ) -> None:  # fmt: skip
        self.accelerator, self.weights, self.source = accelerator, weights, source
        self.objective, self.settings = objective, settings
        self.module, self.optimizer = accelerator.prepare(module, optimizer)

    def __call__(self, done: TrainState, rate: float) -> float:
        """Makes one update at learning rate `rate`, notes it in `done`, returns the loss."""
        settings, total = self.settings, 0.0
        if settings.dropout:  # a resumed training draws what an uninterrupted one would have drawn
            torch.manual_seed(settings.seed * 1_000_003 + done.step)
        for micro in range(settings.accumulate):
            place = done.batches * self.accelerator.num_processes + self.accelerator.process_index
            batch = self.source.batch(place).to(self.accelerator.device)
            last = micro == settings.accumulate - 1
            with nullcontext() if last else self.accelerator.no_sync(self.module):
                with _autocast(self.accelerator.device.type, settings.precision):
                    loss = self.objective(self.module, batch) / settings.accumulate
                total += float(loss.detach())
                if not math.isfinite(total):
                    raise Diverged(
                        f"the loss became {total} at step {done.step} (learning rate {rate:.2g}): "
                        "take a lower learning rate, or precision fp32"
                    )
                self.accelerator.backward(loss)
            done.batches += 1
            done.tokens += count(batch) * self.accelerator.num_processes
        if self.accelerator.num_processes > 1:
            total = float(
                self.accelerator.reduce(torch.tensor(total, device=self.accelerator.device), "mean")
            )
        self.weights.gather()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if settings.clip:
            nn.utils.clip_grad_norm_(list(self.weights.masters.values()), settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.weights.scatter()
        done.step += 1
        return total

    def agreed(self, seconds: float) -> float:
        """The seconds of the first process for all: processes that saw different clocks would stop at different steps."""
        if self.accelerator.num_processes == 1:
            return seconds
        from accelerate.utils import broadcast

        return float(broadcast(torch.tensor(seconds, dtype=torch.float64, device=self.accelerator.device)))


def count(batch: Batch) -> int:
    """Real tokens of a batch; images count as one each."""
    if (mask := batch.inputs.get("attention_mask")) is not None:
        return int((mask != 0).sum())
    first = batch.inputs.get("input_ids", next(iter(batch.inputs.values())))
    return first.numel() if "input_ids" in batch.inputs else len(first)


def _fraction(done: TrainState, settings: Settings, ahead: float = 0.0) -> float:
    """Share of the budget that is spent, by the measure that is nearest to its end."""
    spent = [
        (done.seconds + ahead, settings.seconds),
        (done.step, settings.steps),
        (done.tokens, settings.tokens),
    ]
    return max(a / b for a, b in spent if b is not None) + 1e-12


def _event(done: TrainState, before: TrainState, settings: Settings, losses: list[float]) -> dict[str, Any]:
    fraction = min(_fraction(done, settings), 1.0)
    recent = losses[-20:]
    return {
        "step": done.step,
        "loss": sum(recent) / len(recent),
        "tokens_per_second": (done.tokens - before.tokens) / max(done.seconds - before.seconds, 1e-9),
        "seconds_left": max(done.seconds * (settings.until - fraction) / max(fraction, 1e-9), 0.0),
        "fraction": fraction,
        "seconds": done.seconds,
    }


class _Cycle:
    def __init__(self, batches: Sequence[Batch]) -> None:
        if not len(batches):
            raise UserError("there are no batches to train on")
        self.batches = batches

    def batch(self, position: int) -> Batch:
        return self.batches[position % len(self.batches)]


@contextmanager
def _mode(module: nn.Module, dropout: bool) -> Iterator[None]:
    """Train mode with dropout, eval mode without; afterwards every submodule is in the mode it had."""
    modes = [(m, m.training) for m in module.modules()]
    module.train(dropout)
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training


def _autocast(device: str, precision: str) -> Any:
    return nullcontext() if precision == "fp32" else torch.autocast(device, torch.bfloat16)


def _accelerator(device: str | torch.device) -> Any:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    wanted = torch.device(device).type
    shared = PartialState._shared_state
    if shared and shared["device"].type != wanted and shared.get("num_processes", 1) == 1:
        AcceleratorState._reset_state(
            reset_partial_state=True
        )  # accelerate keeps the first device of a process
    return Accelerator(cpu=wanted == "cpu")
