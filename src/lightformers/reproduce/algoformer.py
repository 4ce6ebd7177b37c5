"""AlgoFormer (arXiv 2402.13572): does a loop between two transformers learn algorithms better than layers in a row?

    lightformers reproduce algoformer

Hardware: two cores, five minutes. Regression in context on a representation: y = <w, phi(x)>, phi a fixed random network
from 2 numbers to 2 features, w new in every prompt of 9 points. Models of width 32, 4 heads, trained for equal seconds on
fresh prompts: AlgoFormer (1 + 1 + 1 layers, 6 iterations, window 3), the looped transformer (1 layer, 8 iterations,
window 4), a standard one of 3 layers (equal parameters) and of 8 layers (about equal compute). Against them least squares
on x and on phi(x). Expected: the first layer finds phi, the loop descends: AlgoFormer below the looped one, and not above
the standard one of 3 layers; errors stay finite for more iterations than were trained.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightformers import reproduce
from lightformers.bundle import Batch
from lightformers.models.language.algoformer import AlgoFormer, AlgoFormerConfig, prompt, window_error
from lightformers.reproduce import common
from lightformers.reproduce.finding import Finding
from lightformers.reproduce.in_context import Representation, least_squares
from lightformers.train import Settings, fit

CLAIM = (
    "Trained for the same time on regression in context with a hidden representation, AlgoFormer predicts with a lower error "
    "than a looped transformer and than standard transformers of equal parameters and of equal compute."
)
POINTS, INPUTS, WIDTH, BATCH, LR = 9, 2, 32, 64, 3e-3
_ALGO, _LOOPED = "AlgoFormer", "looped transformer, 1 layer"
_EQUAL, _DEEP = "standard, 3 layers (equal parameters)", "standard, 8 layers (equal compute)"
_ON_X, _ON_PHI, _ZERO = "least squares on x", "least squares on phi(x)", "always 0"
#: pre, loop, post, iterations, window
ARMS = {_ALGO: (1, 1, 1, 6, 3), _LOOPED: (0, 1, 0, 8, 4), _EQUAL: (3, 0, 0, 1, 1), _DEEP: (8, 0, 0, 1, 1)}
_LONGER = (1, 2, 4, 6, 8, 12, 16, 24, 40)


class Prompts:
    """Fresh prompts without end, the same for every arm: the batch at a position depends on the seed and the position."""

    def __init__(self, task: Representation, seed: int) -> None:
        self.task, self.seed = task, seed

    def batch(self, position: int) -> Batch:
        x, y = self.task.draw(BATCH, POINTS, torch.Generator().manual_seed(self.seed * 1_000_003 + position))
        return Batch({"inputs": prompt(x, y)}, {"y": y})


def made(arm: str, seed: int, width: int = WIDTH) -> AlgoFormer:
    """An arm's model with random weights."""
    pre, loop, post, iterations, window = ARMS[arm]
    config = AlgoFormerConfig(INPUTS, 1, width, 4, pre, loop, post, iterations, window, 2 * POINTS)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AlgoFormer(config)


def run(budget: float = common.FULL) -> Finding:
    """Every arm with every seed, for the same number of seconds."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    arms = tuple(ARMS)[:3] if clock.few else tuple(ARMS)
    seconds = clock.left(0.15) / (len(seeds) * len(arms))
    scores: dict[str, dict[str, list[float]]] = {}
    updates: dict[str, list[int]] = {arm: [] for arm in arms}
    longer: dict[str, list[list[float]]] = {}
    for seed in seeds:
        task = Representation.drawn(INPUTS, 8, INPUTS, seed)
        x, y = task.draw(clock.size(2000, 64), POINTS, torch.Generator().manual_seed(999))
        found = {
            _ZERO: torch.zeros_like(y),
            _ON_X: least_squares(x, y),
            _ON_PHI: least_squares(task.features(x), y),
        }
        for arm in arms:
            model, steps = _trained(made(arm, seed), Prompts(task, seed), seconds, seed)
            updates[arm].append(steps)
            found[arm] = _predicted(model, x, y)
            if model.loop:
                longer.setdefault(arm, []).append([_error(_predicted(model, x, y, t), y) for t in _LONGER])
        for arm, guess in found.items():
            cells = scores.setdefault(arm, {})
            for cell, value in {
                "error": _error(guess, y),
                "error at the last point": _error(guess[:, -1:], y[:, -1:]),
            }.items():
                cells.setdefault(cell, []).append(value)
    return _conclude(clock, seeds, scores, updates, longer)


def _trained(model: AlgoFormer, prompts: Prompts, seconds: float, seed: int) -> tuple[AlgoFormer, int]:
    def objective(module: nn.Module, batch: Batch) -> Tensor:
        return window_error(module.every(batch.inputs["inputs"]), batch.targets["y"])  # type: ignore[operator]

    settings = Settings(seconds=seconds, lr=LR, warmup=0.05, weight_decay=0.0, betas=(0.9, 0.999), precision="fp32", seed=seed)  # fmt: skip
    return model, fit(model, prompts, objective, settings).steps


@torch.no_grad()
def _predicted(model: AlgoFormer, x: Tensor, y: Tensor, iterations: int | None = None) -> Tensor:
    parts = zip(x.split(256), y.split(256))
    return torch.cat([model(prompt(a, b), iterations=iterations)["prediction"][:, ::2, 0] for a, b in parts])


def _error(guess: Tensor, y: Tensor) -> float:
    return float((guess - y).square().mean())


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], scores: dict[str, dict[str, list[float]]],
    updates: dict[str, list[int]], longer: dict[str, list[list[float]]],
) -> Finding:  # fmt: skip
    mine = scores[_ALGO]["error"]
    against = {arm: common.gain(scores[arm]["error"], mine) for arm in updates if arm != _ALGO}
    verdict = common.together(*(reproduce.judge(gains) for gains in against.values()))
    caution = ""
    if min(mine) > 0.9 * min(scores[_ZERO]["error"]):
        verdict, caution = "inconclusive", " Nothing follows: no model predicts much better than zero."
    counted = {arm: sum(p.numel() for p in made(arm, 0).parameters()) for arm in updates}
    rows = [
        reproduce.row(
            arm, **cells, **({"parameters": counted[arm], "updates": updates[arm]} if arm in updates else {})
        )
        for arm, cells in scores.items()
    ]
    return reproduce.conclude(
        slug="algoformer",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"Mean squared error {common.said(mine, False)}; it saves "
            + ", ".join(f"{common.said(gains)} against {arm}" for arm, gains in against.items())
            + f". Least squares on x leaves {common.said(scores[_ON_X]['error'], False)}.{caution}"
        ),
        table=rows,
        baseline=_EQUAL,
        settings={
            "task": f"y = <w, phi(x)>, {INPUTS} numbers, 8 hidden, {INPUTS} features, {POINTS} points", "width": WIDTH, "heads": 4,
            "batch": BATCH, "lr": LR, "iterations": {arm: ARMS[arm][3] for arm in updates}, "curriculum": "none",
        },
        seeds=seeds,
        limits=(
            "The paper trains 500,000 updates with curricula over dimension, points and iterations; Newton rates, time series, "
            "chains of thought and text were not tried." + clock.note()
        ),
        plots={
            "error by iterations": {"iterations": list(_LONGER), **{arm: [min(t, 1e6) for t in _mean(runs)] for arm, runs in longer.items()}}
        },
        started=clock.started,
    )  # fmt: skip


def _mean(runs: list[list[float]]) -> list[float]:
    """Column by column; what is not finite counts as a million."""
    return [sum(v if v == v and v < 1e6 else 1e6 for v in column) / len(column) for column in zip(*runs)]
