"""A candidate in front of the original: it answers what it is sure of. How sure it must be is found on the search split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lightformers import runners
from lightformers.bundle import Example
from lightformers.models.cascade import CASCADES
from lightformers.slim.session import Session, interval_dict
from lightformers.stats import Scores
from lightformers.steps import Deploy

#: Shares of the examples that may go to the original. Above the last, a cascade saves too little to be worth two models.
SHARES = (0.02, 0.04, 0.06, 0.08, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6)


def allowed(session: Session) -> bool:
    """Whether a result may be a cascade: it has classes, is for batches, and plain transformers need not open it.

    A single example is answered by one model or by both, so it has no latency to speak of; and two models are no
    smaller than one. ONNX graphs are traced, which a cascade cannot be.
    """
    settings = session.settings
    fits = settings.goal == "throughput" and not settings.onnx and session.task.name in CASCADES
    return fits and settings.allow_custom and settings.allows("Cascade")


class Watched:
    """Stands before a runner and keeps the probability of each example's likeliest class in `sureness`."""

    def __init__(self) -> None:
        self.sureness = np.zeros(0)

    def __call__(self, runner: runners.Runner) -> Any:
        def run(examples: Sequence[Example], reduce: runners.Reduce) -> list[Any]:
            def both(outputs: Any, batch: Any) -> list[tuple[Any, float]]:
                likeliest = outputs["logits"].float().softmax(-1).amax(-1).tolist()
                return list(zip(reduce(outputs, batch), likeliest))

            items = runner(examples, both)
            self.sureness = np.array([p for _, p in items])
            return [item for item, _ in items]

        return run


def found(
    session: Session, scores: Scores, sureness: np.ndarray, cost: float, whole: float
) -> dict[str, Any] | None:
    """The cheapest cascade of a candidate that keeps the floor on the search split, or None.

    scores, sureness: the candidate's on that split. cost, whole: milliseconds an example of it and of the original.
    From the largest share down, as long as every one of them keeps the floor: one that does by chance counts for nothing.
    """
    old, order = session.original("search"), np.argsort(sureness, kind="stable")
    best: dict[str, Any] | None = None
    for share in reversed(SHARES):
        asked = order[: math.ceil(share * len(order))]
        stats = scores.stats.copy()
        stats[asked] = old.stats[asked]
        ratio = session.compare(replace(scores, stats=stats), "search")
        known = {"ratio": ratio.estimate, "ratio_interval": interval_dict(ratio)}
        if ratio.estimate < session.target([known]):
            break
        sure = float(np.nextafter(np.float32(sureness[asked[-1]]), np.float32(2)))
        best = known | {"sure": min(sure, 1.0), "share": share, "cost": cost + share * whole}
    return best


def closed(session: Session) -> list[str]:
    """The reason why no cascade is tried, where the user can change it."""
    settings = session.settings
    if (
        allowed(session)
        or session.task.name not in CASCADES
        or settings.goal != "throughput"
        or settings.onnx
    ):
        return []
    if not settings.allows("Cascade"):
        return ["Cascade: left out as asked"]
    return ["Cascade: plain transformers cannot open two models as one (--allow-custom opens it)"]


def deployed(deploy: Deploy) -> Deploy:
    """How a cascade is run: as the candidate, but its batches are whole texts, never packed."""
    return replace(deploy, batching="sorted") if deploy.batching == "packed" else deploy
