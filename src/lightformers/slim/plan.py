"""How the time of a run is shared out, and who goes on to the next rung. Pure functions over trial records."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

#: How the loss that is left falls with training time: as time to minus this power. An assumption, not measured; it only
#: decides which candidates are trained on, never what is claimed of them.
SHRINK = 0.4
#: How far untrained outputs may have moved, as a share of the farthest that any cut moves them, for a cut to be tried:
#: NEAR where all training has time for SHORT passes of the original over a batch or fewer, no limit from LONG on.
#: Measured on MiniLM at the short end (with time for 90 passes 0.11 came back to 0.987, with 250 0.16 to 1.0 and 0.2 to
#: 0.98 and 0.4 to 0.95), assumed in between.
NEAR, SHORT, LONG = 0.1, 100.0, 6000.0
#: NEAR where recovery has labels: they teach what the task wants, which a small model can, not what the original says
#: (MiniLM on labels: 4 of 6 blocks, 0.4 away, at 1.03 after 100 passes).
NEAR_LABELS = 0.4
#: What is still lost after the time of 250 passes, per share that the outputs were moved; falls as SHRINK says. From
#: the same measurements (0.2 away: 0.98, 0.4 away: 0.95). A cut is tried up to HOPE times the loss that is allowed.
LOST, HOPE = 0.12, 1.5
#: A first round tells nothing under the time of so many passes of the original over a batch, at most and at least so many
#: seconds: small models learn in less.
TELLING, LEAST, FEWEST = 250.0, 45.0, 5.0
#: Share of the confidence that each verification may spend, first to last: stepping back is a repeated test.
SPENDING = (0.8, 0.1, 0.05, 0.05)


@dataclass(frozen=True)
class Rung:
    """A round of recoveries: `count` candidates get `seconds` of training each, on top of what they had."""

    count: int
    seconds: float


def rungs(left: float, candidates: int, overhead: float = 0.0, batch: float | None = None) -> list[Rung]:
    """Share `left` seconds over rounds of successive halving: many get a little, the best get the most.

    overhead: seconds that every recovery takes beside its training (building and scoring it). batch: seconds of a pass
    of the original over a batch; None: of a large model. A round is worth nothing under TELLING of these a candidate, so
    short budgets try fewer.
    """
    if left < 20 + overhead or candidates == 0:
        return []
    least = LEAST if batch is None else min(max(TELLING * batch, FEWEST, overhead), LEAST)
    first = max(1, min(candidates, int(left * 0.4 // (least + overhead)), 9))
    if first == 1:
        return [Rung(1, left - overhead)]
    rounds = [(first, 0.35)] + ([(3, 0.26)] if first > 3 else [])
    last = 2 if 0.4 * left > 1200 else 1
    rounds.append((last, 1 - sum(share for _, share in rounds)))
    return [
        Rung(count, max(left * share / count - overhead, min(10.0, least / 2))) for count, share in rounds
    ]


def foreseen(ratio: float, trained: float, total: float) -> float:
    """The ratio that a candidate with `ratio` after `trained` seconds will have after `total` seconds."""
    if ratio >= 1 or trained <= 0:
        return ratio
    return 1 - (1 - ratio) * (trained / max(total, trained)) ** SHRINK


def promote(trials: list[dict[str, Any]], count: int, target: float, seconds: float) -> list[dict[str, Any]]:
    """The `count` trials to train for `seconds` more: the fastest that will reach `target`, then the best.

    trials: records with "ratio", "seconds" (trained so far) and "cost"; "cascade" where the original behind the trial
    would reach the target already, at a cost of its own.
    """

    def outlook(trial: dict[str, Any]) -> float:
        return foreseen(trial["ratio"], trial["seconds"], trial["seconds"] + seconds)

    def cost(trial: dict[str, Any]) -> float:
        behind = (trial.get("cascade") or {}).get("cost", math.inf)
        return float(trial["cost"] if outlook(trial) >= target else behind)

    able = sorted((t for t in trials if cost(t) < math.inf), key=cost)
    rest = sorted((t for t in trials if cost(t) == math.inf), key=outlook, reverse=True)
    return (able + rest)[:count]


def recoverable(
    points: list[dict[str, Any]], passes: float, floor: float = 0.0, labels: bool = False
) -> list[dict[str, Any]]:
    """The points whose outputs have not moved too far to be brought back in the time of `passes` passes over a batch.

    floor: the ratio to come back to. With labels it bounds nothing: a student may pass the original.
    """
    share = min(max(math.log(max(passes, 1.0) / SHORT) / math.log(LONG / SHORT), 0.0), 1.0)
    limit = float((NEAR_LABELS if labels else NEAR) ** (1 - share))
    if not labels:
        limit = min(limit, HOPE * (1 - floor) / LOST * (max(passes, 1.0) / 250) ** SHRINK)
    farthest = max((p["distance"] for p in points), default=0.0)
    return [p for p in points if p["distance"] <= limit * farthest]


def blind(points: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """`count` points of which nothing is known before training: one of each method, cut in half, before any other."""
    return sorted(points, key=lambda p: abs(p["cut"]["ratio"] - 0.5))[:count]


def spread(points: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """`count` points of the (cost, distance) frontier from the cheapest on, evenly in the logarithm of their cost."""
    frontier = pareto(points)
    if len(frontier) <= max(count, 0):
        return frontier
    low, high = math.log(frontier[0]["cost"]), math.log(frontier[-1]["cost"])
    chosen: list[dict[str, Any]] = []
    for i in range(count):
        wanted = low + (high - low) * i / count
        rest = [p for p in frontier if p not in chosen]
        chosen.append(min(rest, key=lambda p: abs(math.log(p["cost"]) - wanted)))
    return chosen


def pareto(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Points that no other beats in both predicted cost and distance, cheapest first."""
    best = float("inf")
    kept = []
    for point in sorted(points, key=lambda p: (p["cost"], p["distance"])):
        if point["distance"] < best:
            best = point["distance"]
            kept.append(point)
    return kept


def confidences(overall: float, tests: int) -> list[float]:
    """The confidence of each of up to `tests` verifications, so that all together they err as one at `overall`.

    Most of it goes to the first; stepping back spends what is left (a Bonferroni split with unequal shares).
    """
    if tests <= 1:
        return [overall]
    shares = list(SPENDING[:tests]) + [0.0] * max(0, tests - len(SPENDING))
    used = [s for s in shares if s > 0]
    used[-1] += 1 - sum(used)
    return [1 - (1 - overall) * share for share in used]
