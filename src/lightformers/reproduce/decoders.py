"""Small decoders over Tiny Shakespeare, made of the skeleton's layers: what experiments on layers share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightformers.bundle import Batch, Bundle
from lightformers.models.language.decoder import Decoder, DecoderConfig
from lightformers.parts.ffn.memory_layer import operations
from lightformers.parts.mixers.attention import Attention
from lightformers.reproduce import characters, common
from lightformers.reproduce.finding import row
from lightformers.runners.named import named, plain_arguments
from lightformers.train import Feed, Settings, TrainResult, fit
from lightformers.train.loop import Objective

WIDTH, DEPTH, HEADS = 128, 4, 4
DATA = "Tiny Shakespeare, windows of 128 characters, 16 a step; loss in nats per character"


def world(clock: common.Clock) -> tuple[characters.Characters, Any]:
    """The alphabet, and the task with as much text as the budget is for."""
    text = {part: common.text("tinyshakespeare", part) for part in ("train", "valid")}
    job = characters.task(
        characters.windows(text["train"][: clock.size(len(text["train"]), 20_000)]),
        characters.windows(text["valid"][: clock.size(55_000, 3_000)]),
    )
    return characters.alphabet(*text.values()), job


def attention(heads: int = HEADS) -> dict[str, Any]:
    """The plain mixer."""
    return {"kind": "attention", "heads": heads}


def mlp(hidden: int = 4 * WIDTH, activation: str = "gelu") -> dict[str, Any]:
    """The plain feed-forward."""
    return {"kind": "mlp", "hidden": hidden, "activation": activation}


def decoder(
    letters: characters.Characters, seed: int, layers: Sequence[Mapping[str, Any]], width: int = WIDTH
) -> Bundle:
    """A decoder with random weights; `seed` decides them."""
    config = DecoderConfig(
        len(letters.symbols) + 1,
        width,
        layers,
        "layer",
        pad_token_id=0,
        max_position_embeddings=characters.LENGTH,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Decoder(config)
    return Bundle(model.eval(), letters, "causal-lm", max_length=characters.LENGTH)


def train(
    bundle: Bundle, job: Any, steps: int, seed: int, lr: float, wrap: Callable[[Objective], Objective] | None = None,
    dropout: bool = False,
) -> TrainResult:  # fmt: skip
    """Train on the task's loss, in place, a step being 16 windows. wrap: what makes another objective of it."""
    feed = Feed.of(
        bundle, job.training_examples(True), max_tokens=16 * characters.LENGTH, max_examples=16, seed=seed
    )
    arguments = plain_arguments(bundle.module())

    def objective(module: nn.Module, batch: Batch) -> Tensor:
        loss: Tensor = job.loss(named(module(**batch.inputs, **arguments)), batch)
        return loss

    settings = Settings(
        steps=max(steps, 1), lr=lr, warmup=0.1, precision=common.precision(), schedule="cosine", seed=seed,
        dropout=dropout, weight_decay=0.1,
    )  # fmt: skip
    return fit(bundle.module(), feed, wrap(objective) if wrap else objective, settings)


@dataclass
class Contest:
    """What arms reached. scores: arm -> cell -> one value per seed. steps: of each seed. seconds: of one step, per arm."""

    scores: dict[str, dict[str, list[float]]]
    steps: list[int]
    seconds: dict[str, float]

    def cell(self, arm: str, name: str = "loss") -> list[float]:
        return self.scores[arm][name]

    def gain(self, arm: str, over: str, name: str = "loss") -> list[float]:
        """How much lower the arm is, seed by seed."""
        return common.gain(self.cell(over, name), self.cell(arm, name))

    def table(self, timed: bool = True, **facts: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Rows for a finding. facts: name of a column -> arm -> value. timed: with the time of a step."""
        return [
            row(arm, **cells, **{f.replace("_", " "): v[arm] for f, v in facts.items() if arm in v},
                **({"milliseconds a step": round(1000 * self.seconds[arm], 1)} if timed else {}))
            for arm, cells in self.scores.items()
        ]  # fmt: skip


def contest(
    clock: common.Clock, seeds: Sequence[int], arms: Sequence[str], make: Callable[[str, int, int], Bundle],
    measure: Callable[[str, Bundle], dict[str, float]],
) -> Contest:  # fmt: skip
    """Every arm once per seed, with as many steps as the budget has room for. make: (arm, seed, steps) -> trained."""
    seconds, scoring, few = {}, 0.0, 1 if clock.short else 4
    for arm in arms:
        if not clock.short:
            make(arm, 99, 1)  # first calls are slow
        begun = time.monotonic()
        made = make(arm, 99, few)
        seconds[arm] = max((time.monotonic() - begun) / few, 1e-4)
        begun = time.monotonic()
        measure(arm, made)
        scoring += time.monotonic() - begun
    steps = max(int((clock.left() / len(seeds) - scoring) / sum(seconds.values())), 2)
    found = Contest({arm: {} for arm in arms}, [], seconds)
    for seed, count in clock.rounds(seeds, steps):
        found.steps.append(count)
        for arm in arms:
            for name, value in measure(arm, make(arm, seed, count)).items():
                found.scores[arm].setdefault(name, []).append(value)
    return found


def multiply_adds(model: nn.Module, length: int = characters.LENGTH) -> int:
    """Per token: of linear and memory layers, and of attention over half of `length` keys on average."""
    attended = sum(m.heads * m.head_size * length for m in model.modules() if isinstance(m, Attention))
    return operations(model) + attended
