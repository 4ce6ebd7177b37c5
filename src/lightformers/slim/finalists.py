"""Finalists: the candidates worth verifying, each made whole as it would be delivered."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lightformers.bundle import Bundle
from lightformers.compress import Cascade, TrimVocabulary
from lightformers.errors import UserError, reason
from lightformers.slim import candidates, cascading
from lightformers.slim.session import Session
from lightformers.slim.space import Cut
from lightformers.steps import Deploy, Recipe, fields_of

FINALISTS = 3
#: What is done to the vocabulary of a result.
TRIM = TrimVocabulary()
UNCUT = "no cut"


@dataclass
class Finalist:
    """A candidate as it would be delivered: recipe, bundle, how it is run, and what is known of it."""

    name: str
    recipe: Recipe
    bundle: Bundle
    record: dict[str, Any]


def gather(
    session: Session, trials: list[dict[str, Any]], order: tuple[int, ...], deploy: Deploy
) -> list[Finalist]:
    """The candidates worth verifying, each with its vocabulary trimmed: the fastest that look able, by themselves or in
    front of the original, and the original."""
    goal = session.target(trials)
    ways = [(t["cost"], t, None) for t in trials if t["ratio"] >= goal]
    ways += [(t["cascade"]["cost"], t, t["cascade"]) for t in trials if t.get("cascade")]
    able = [(t, cascade) for _, t, cascade in sorted(ways, key=lambda way: way[0])]
    near = [(t, None) for t in sorted(trials, key=lambda t: -t["ratio"]) if t["ratio"] < goal]
    if session.brief:  # each takes as long to score as an able one
        near = [] if able else near[:1]
    found = []
    for trial, cascade in [*able, *near][:FINALISTS]:
        cut = Cut(**trial["cut"])
        bundle = candidates.restored(
            session, cut, order, candidates.checkpoint(session, trial["name"], trial["rung"])
        )
        before, packing = candidates.split(candidates.steps_of(cut, session.bundle, order))
        learnt = candidates.recovered(session, cut, trial["seconds"])
        size = bundle.parameters
        for step in learnt:
            given = fields_of(step)
            done = {"step": type(step).__name__, "parameters": given, "seconds": given["seconds"]}
            bundle.history.append(done | {"size_before": size, "size_after": size})
        if packing:
            bundle = Recipe(packing).apply(bundle, session.task, session.run())
        recipe = Recipe([*before, *learnt, *packing], candidates.deployed(cut, deploy))
        record = trial | {"trained_ratio": trial["ratio"], "trains": candidates.trains(cut)}
        finalist = _trimmed(session, Finalist(trial["name"], recipe, bundle, record))
        found.append(_in_front(session, finalist, cascade) if cascade else finalist)
    found.append(
        _trimmed(session, Finalist(UNCUT, Recipe([], deploy), session.bundle.copy(), {"seconds": 0.0}))
    )
    return found


def _trimmed(session: Session, finalist: Finalist) -> Finalist:
    """With unused vocabulary rows gone, where the tokenizer and the task allow it and it costs next to nothing."""
    if not session.store.once("trims", lambda: _trims(session)):
        return finalist
    bundle = Recipe([TRIM]).apply(finalist.bundle, session.task, session.run())
    recipe = Recipe(candidates.placed(finalist.recipe.steps, TRIM), finalist.recipe.deploy)
    return dataclasses.replace(finalist, recipe=recipe, bundle=bundle)


def _trims(session: Session) -> bool:
    """Whether the vocabulary goes: new texts have words that the training texts had not, and are then read in pieces.

    Measured on the original: on SST-2 it took 0.5 % of the accuracy, half of what a floor of 0.99 leaves.
    """
    settings, task = session.settings, session.task
    if not settings.trim or not settings.allows("TrimVocabulary") or task.name not in TRIMMABLE:
        return False
    try:
        bundle = Recipe([TRIM]).apply(session.bundle, task, session.run())
    except UserError as error:
        session.warn(f"vocabulary not trimmed: {reason(error)}")
        return False
    session.progress.trying("what a trimmed vocabulary costs")
    found = session.compare(session.score(bundle, session.brisk, "search", "trimmed"), "search").estimate
    whole, allowed = (0.0, settings.max_drop) if settings.max_drop is not None else (1.0, 1 - settings.floor)
    share = TRIM_SHARE["size" if settings.goal == "size" else "speed"]
    if found >= whole - share * allowed:
        return True
    session.warn(
        f"vocabulary not trimmed: that alone would cost {whole - found:.2g} of the {allowed:.2g} that may be lost"
    )
    return False


#: Fewer classes in the softmax would flatter a language model's perplexity, so those keep their vocabulary.
TRIMMABLE = ("embedding", "text-classification", "token-classification")
#: Of the loss that the floor allows, what trimming may take; it makes nothing faster, only smaller.
TRIM_SHARE = {"speed": 0.2, "size": 0.5}


def _in_front(session: Session, finalist: Finalist, cascade: dict[str, Any]) -> Finalist:
    """With the original behind it, which answers what it is not sure of."""
    step = Cascade(sure=cascade["sure"])
    bundle = Recipe([step]).apply(
        finalist.bundle, session.task, dataclasses.replace(session.run(), teacher=session.bundle)
    )
    recipe = Recipe([*finalist.recipe.steps, step], cascading.deployed(finalist.recipe.deploy))
    return Finalist(f"{finalist.name}, then the original", recipe, bundle, finalist.record)
