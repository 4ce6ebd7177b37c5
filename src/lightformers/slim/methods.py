"""Methods of the catalogue in the search: which of them take part beside the grid of cuts, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightformers.bundle import Bundle
from lightformers.compress.methods import METHODS, Method, applicable
from lightformers.errors import UserError
from lightformers.slim.settings import Settings, plain

#: Shares of the blocks' bytes that a method is tried at; one that comes to a size of its own is tried once.
RATIOS = (0.75, 0.5, 0.375, 0.25)
#: The most and the fewest bytes that a quantizer is asked for: eight and four bits of a weight of 32, with room for scales.
BITS = {8: 0.3, 4: 0.2}
#: Names that the grid of cuts, recovery and trimming answer to.
GRID = ("drop-blocks", "prune-channels", "prune-heads", "prune-width", "low-rank")
ELSEWHERE = (*GRID, "minilm", "trim-vocabulary")
RECOVERIES = ("recover", "minilm")


@dataclass(frozen=True)
class Menu:
    """What the search may use beside the grid.

    points: (method, ratio of the blocks' bytes) that are tried like a cut. finishes: quantizers that finalists are tried
    with. relations: whether recovery begins with MiniLM's relations. closed: why others are left out.
    """

    points: tuple[tuple[str, float], ...] = ()
    finishes: tuple[str, ...] = ()
    relations: bool = False
    closed: tuple[str, ...] = ()


def method(name: str) -> Method:
    """The method of this name."""
    return next(m for m in METHODS if m.name == name)


def draw(bundle: Bundle, task: Any, settings: Settings, runtime: str, brief: bool) -> Menu:
    """The methods that take part: those that the user names, or those that can pay under the goal.

    Unnamed, a method takes part if it costs seconds, not training, and makes the model faster (smaller, where that
    is the goal); a run of minutes has no time for them. Raises UserError for names that are unknown, that the model
    refuses, or that need `allow_custom`.
    """
    check_names(settings)
    fit, reasons = applicable(bundle, task if settings.use_labels else None)
    named = {m.name for m in METHODS if settings.names(m.name)}
    for name in sorted(named):
        if name in reasons:
            raise UserError(f"--steps names {name}, which this model refuses: {reasons[name]}")
        if not method(name).native and not settings.allow_custom:
            raise UserError(
                f"--steps names {name}: plain transformers cannot load its results. Add --allow-custom (they load with "
                "lightformers.load), or leave it out"
            )
    closed = []
    points: list[tuple[str, float]] = []
    finishes: list[str] = []
    for one in fit:
        if one.name in ELSEWHERE or not settings.allows(one.name):
            continue
        if one.needs_labels and not settings.use_labels:
            closed.append(f"{one.name}: it needs labels (--use-labels)")
        elif one.kind == "quantize" and not one.needs_training:
            if one.name in named or (
                settings.allow_custom and (settings.goal == "size" or runtime == "torch")
            ):
                finishes.append(one.name)
        elif one.name in named or _pays(one, settings, brief):
            points += [(one.name, ratio) for ratio in _ratios(one)]
    closed += [f"{name}: {reason}" for name, reason in reasons.items() if settings.names(name)]
    return Menu(tuple(points), tuple(finishes), "minilm" in named, tuple(closed))


def _pays(one: Method, settings: Settings, brief: bool) -> bool:
    wanted = one.faster or settings.goal == "size"
    return not brief and wanted and not one.needs_training and (one.native or settings.allow_custom)


def _ratios(one: Method) -> tuple[float, ...]:
    if one.kind == "quantize":
        return tuple(BITS.values())
    return RATIOS if one.sized else (0.5,)


def check_names(settings: Settings) -> None:
    """Raises UserError for names of steps that do not exist."""
    known = [m.name for m in METHODS] + ["recover", "cascade"]
    for option, names in (("--steps", settings.only), ("--exclude", settings.exclude)):
        strange = [n for n in names if plain(n) not in map(plain, known)]
        if strange:
            raise UserError(f"{option} names {', '.join(strange)}; known are {', '.join(known)}")
