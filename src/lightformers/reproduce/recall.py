"""Small decoders that learn to recall: what experiments on the memory of mixers share.

Arms of equal parameters learn the same probes (`lightformers.tasks.probes`) in as many steps, the same for all.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lightformers import train
from lightformers.models.language.decoder import Decoder, DecoderConfig
from lightformers.reproduce import common
from lightformers.tasks import probing
from lightformers.tasks.probes import Probe

Layers = list[dict[str, Any]]
#: Examples of a step of training.
SIZE = 32
#: Share of the budget that is kept back for what is not foreseen.
RESERVE = 0.15


def decoder(layers: Sequence[Mapping[str, Any]], vocab: int, width: int, seed: int = 0) -> Decoder:
    """A decoder with random weights; `seed` decides them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Decoder(DecoderConfig(vocab_size=vocab, hidden_size=width, layers=layers)).eval()


def parameters(layers: Sequence[Mapping[str, Any]], vocab: int, width: int) -> int:
    """How many a decoder of these layers has; a tied head is counted once."""
    with torch.device("meta"):
        model = Decoder(DecoderConfig(vocab_size=vocab, hidden_size=width, layers=layers))
    return sum(p.numel() for p in model.parameters())


def fitted(write: Callable[[int], Layers], wanted: int, vocab: int, width: int, most: int = 1024) -> Layers:
    """`write(size)` for the size from 1 to `most` whose decoder comes nearest to `wanted` parameters; more size, more."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if parameters(write(middle), vocab, width) < wanted else (low, middle)
    sizes = [s for s in (low - 1, low) if s >= 1]
    return write(min(sizes, key=lambda s: abs(parameters(write(s), vocab, width) - wanted)))


@dataclass(frozen=True)
class Trial:
    """One arm on one task. learn: (seed, steps) -> a trained model. measure: its scores, cell by cell."""

    arm: str
    learn: Callable[[int, int], Any]
    measure: Callable[[Any], dict[str, float]]


def on_probe(
    arm: str, make: Callable[[int], Decoder], probe: Probe, tests: Mapping[str, Mapping[str, Any]], lr: float, count: int
) -> Trial:  # fmt: skip
    """An arm that learns a probe. make: seed -> model. tests: cell -> what is changed in the probe; `count` examples."""

    def learn(seed: int, steps: int) -> Decoder:
        model = make(seed)
        settings = train.Settings(steps=steps, lr=lr, warmup=0.1, precision="fp32", seed=seed)
        train.fit(model, probing.Fresh(probe, SIZE, seed), probing.asked_loss, settings)
        return model

    def measure(model: Decoder) -> dict[str, float]:
        return {
            cell: float(probing.score(model, probe, 1_000_000, count, **changed).value)
            for cell, changed in tests.items()
        }

    return Trial(arm, learn, measure)


@dataclass
class Contest:
    """What arms reached. scores: arm -> cell -> one value per seed. steps: task -> of each seed. seconds: of one step,
    arm -> task."""

    scores: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    steps: dict[str, list[int]] = field(default_factory=dict)
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)

    def gain(self, arm: str, over: str, cell: str) -> list[float]:
        """How much more the arm has than the other, seed by seed."""
        return common.gain(self.scores[arm][cell], self.scores[over][cell])


def contest(
    clock: common.Clock, seeds: Sequence[int], tasks: Mapping[str, tuple[float, list[Trial]]], probe: int = 3
) -> Contest:
    """Every trial once per seed. tasks: name -> its share of the time, and its trials; trials of a task get the same
    number of steps, as many as there is time for. probe: steps that are timed to know."""
    found, plan = Contest(), {}
    for task, (_, trials) in tasks.items():
        costs, fixed = [], 0.0
        for trial in trials:
            trial.learn(99, 1)  # first calls are slow
            begun = time.monotonic()
            model = trial.learn(99, probe)
            costs.append(max((time.monotonic() - begun) / probe, 1e-4))
            begun = time.monotonic()
            trial.measure(model)
            fixed += time.monotonic() - begun
            found.seconds.setdefault(trial.arm, {})[task] = costs[-1]
        plan[task] = (sum(costs), fixed)
    whole = sum(share for share, _ in tasks.values())
    left = clock.left(RESERVE)
    steps = {
        task: max(int((left * tasks[task][0] / whole / len(seeds) - fixed) / cost), 3)
        for task, (cost, fixed) in plan.items()
    }
    for seed, scale in clock.rounds(seeds, 1000, RESERVE):
        for task, (_, trials) in tasks.items():
            count = max(steps[task] * scale // 1000, 3)
            found.steps.setdefault(task, []).append(count)
            for trial in trials:
                for cell, value in trial.measure(trial.learn(seed, count)).items():
                    found.scores.setdefault(trial.arm, {}).setdefault(cell, []).append(value)
    return found


@torch.no_grad()
def decoding(model: Decoder, context: int, tokens: int = 16, rounds: int = 3) -> dict[str, float]:
    """Milliseconds per token, the best of some rounds, and bytes of state after so many tokens."""
    ids = torch.randint(model.config.vocab_size, (1, context), generator=torch.Generator().manual_seed(0))
    past = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    best = float("inf")
    for _ in range(rounds):
        here = copy.copy(past)
        here.states = list(past.states)
        begun = time.perf_counter()
        for _ in range(tokens):
            model(input_ids=ids[:, :1], past_key_values=here)
        best = min(best, time.perf_counter() - begun)
    held = sum(x.numel() * x.element_size() for state in past.states for x in state.values())
    return {"milliseconds per token": 1000 * best / tokens, "bytes of state": float(held)}
