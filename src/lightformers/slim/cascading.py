"""A candidate in front of the original: it answers what it is sure of. How sure it must be is found on the search split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lightformers import runners
from lightformers.bundle import Example
from lightformers.errors import UserError
from lightformers.models.cascade import CASCADES
from lightformers.slim.session import Session, interval_dict
from lightformers.stats import Scores
from lightformers.steps import Deploy

#: What its score must be above the target, in margins of its bound on the search split. Were errors normal, a limit that just
#: reaches the target would fail verification every second time, and each further test is a stricter one; one standard error
#: above (0.6 margins at 95 %), one time in six.
SURER = 0.6
#: Shares of the examples that may go to the original. Above the last, a cascade saves too little to be worth two models.
SHARES = (0.02, 0.04, 0.06, 0.08, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6)


def refusal(session: Session) -> str:
    """Why no result can be a cascade, or nothing."""
    settings = session.settings
    if session.task.name not in CASCADES:
        return f"a cascade needs classes to be sure of ({', '.join(CASCADES)})"
    if settings.goal != "throughput":
        return "a cascade is for batches: an example alone takes as long as both models, and two are no smaller than one"
    if settings.onnx:
        return "a cascade has no ONNX graph"
    if not settings.allow_custom:
        return "plain transformers cannot open two models as one (--allow-custom opens it)"
    return ""


def allowed(session: Session) -> bool:
    """Whether results may be cascades: it can be done and the user's choice of steps lets it in."""
    return session.settings.allows("Cascade") and not refusal(session)


def check(session: Session) -> None:
    """Raises UserError where the user names a cascade that cannot be."""
    if not session.settings.names("cascade"):
        return
    if why := refusal(session):
        raise UserError(f"--steps names cascade: {why}")
    if len(session.settings.only) == 1:
        raise UserError(
            "--steps names cascade alone: name what makes the small model too, such as drop-blocks,prune-channels,cascade"
        )


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
        if ratio.estimate < session.target([known]) + SURER * (ratio.estimate - ratio.bound):
            break
        sure = float(np.nextafter(np.float32(sureness[asked[-1]]), np.float32(2)))
        best = known | {"sure": min(sure, 1.0), "share": share, "cost": cost + share * whole}
    return best


def closed(session: Session) -> list[str]:
    """The reason why none is tried, where it would be tried otherwise."""
    if allowed(session) or session.task.name not in CASCADES:
        return []
    return [f"Cascade: {refusal(session) or 'left out as asked'}"]


def deployed(deploy: Deploy) -> Deploy:
    """How a cascade is run: as the candidate, but its batches are whole texts, never packed."""
    return replace(deploy, batching="sorted") if deploy.batching == "packed" else deploy
