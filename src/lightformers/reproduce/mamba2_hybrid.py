"""Mamba-2 hybrids (arXiv 2406.07887): does a little attention give a state-space model its recall back?

    lightformers reproduce mamba2-hybrid

Hardware: two cores, five minutes. Decoders of eight single-function layers, width 32, of equal parameters: Mamba-2 and
MLPs; the same with one of four mixers attention; attention and MLPs. They learn associative recall and a phone book,
each tested with more and more to hold, and characters of Tiny Shakespeare. Expected: characters within noise of each
other; pure Mamba-2 falls off first as pairs grow, the hybrid stays with the transformer at a fraction of its cache.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

from lightformers import reproduce
from lightformers.bundle import Bundle
from lightformers.models.language import patterns
from lightformers.reproduce import characters, common, recall
from lightformers.reproduce.finding import Finding
from lightformers.tasks.probes import PROBES, Probe

CLAIM = (
    "With one mixer in four made attention, a Mamba-2 decoder recalls more pairs than a pure one at equal parameters and steps, "
    "at no loss of more than 2 % in predicting characters against a transformer."
)
TOLERANCE = 0.02
_WIDTH, _STATE, _LR = 32, 8, 5e-3
_PURE, _HYBRID, _ATTENTION = "Mamba-2", "hybrid", "transformer"
_PATTERNS = {_PURE: "M-M-M-M-", _HYBRID: "M-M-*-M-", _ATTENTION: "*-*-*-*-"}
_RECALL = dataclasses.replace(PROBES["mqar"], options={"length": 48, "pairs": 12, "vocab": 32})
_BOOK = dataclasses.replace(PROBES["phonebook"], options={"entries": 6, "letters": 1, "digits": 2})
_PAIRS = (4, 8, 12)
_ENTRIES = (2, 4, 6)
_LETTERS = "bits per character"


@functools.cache
def arms(vocab: int) -> dict[str, recall.Layers]:
    """Layers of equal parameters: MLPs are as wide as they must be. Only the pure transformer knows positions."""
    mixer = {"kind": "mamba2", "state": _STATE, "head": 16}

    def write(arm: str) -> Any:
        attention = {"kind": "attention", "heads": 2, "rotary": arm == _ATTENTION}

        def sized(hidden: int) -> recall.Layers:
            mlp = {"kind": "mlp", "hidden": hidden}
            return patterns.layers(_PATTERNS[arm], mixer, attention, mlp)

        return sized

    wanted = recall.parameters(write(_PURE)(2 * _WIDTH), vocab, _WIDTH)
    return {arm: recall.fitted(write(arm), wanted, vocab, _WIDTH) for arm in _PATTERNS}


def run(budget: float = common.FULL) -> Finding:
    """Train every arm on every task once per seed, with equal steps within a task."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    count = clock.size(256, 16)

    def probes(probe: Probe, tests: dict[str, dict[str, Any]]) -> list[recall.Trial]:
        return [
            recall.on_probe(
                arm, functools.partial(recall.decoder, layers, probe.vocab, _WIDTH), probe, tests, _LR, count
            )
            for arm, layers in arms(probe.vocab).items()
        ]  # fmt: skip

    tasks = {
        "recall": (0.5, probes(_RECALL, {pairs(n): {"pairs": n} for n in _PAIRS})),
        "phone book": (0.25, probes(_BOOK, {entries(n): {"entries": n} for n in _ENTRIES})),
        "characters": (0.25, _characters(clock)),
    }
    return _conclude(clock, seeds, recall.contest(clock, seeds, tasks))


def pairs(n: int) -> str:
    """The cell of recall from so many pairs."""
    return f"recall of {n} pairs"


def entries(n: int) -> str:
    """The cell of a phone book of so many lines."""
    return f"phone book of {n}"


def _characters(clock: common.Clock) -> list[recall.Trial]:
    text = {part: common.text("tinyshakespeare", part) for part in ("train", "valid")}
    job = characters.task(
        characters.windows(text["train"][: clock.size(len(text["train"]), 20_000)]),
        characters.windows(text["valid"][: clock.size(40_000, 3_000)]),
    )
    letters = characters.alphabet(*text.values())

    def trial(arm: str, layers: recall.Layers) -> recall.Trial:
        def learn(seed: int, steps: int) -> Bundle:
            model = recall.decoder(layers, len(letters.symbols) + 1, _WIDTH, seed)
            bundle = Bundle(model, letters, "causal-lm", max_length=characters.LENGTH)
            characters.train(bundle, job, steps, seed, _LR)
            return bundle

        return recall.Trial(arm, learn, lambda b: {_LETTERS: characters.loss(b, job) / math.log(2)})

    return [trial(arm, layers) for arm, layers in arms(len(letters.symbols) + 1).items()]


def _conclude(clock: common.Clock, seeds: tuple[int, ...], found: recall.Contest) -> Finding:
    most = pairs(_PAIRS[-1])
    more = found.gain(_HYBRID, _PURE, most)
    relative = [
        (theirs - ours) / theirs
        for ours, theirs in zip(found.scores[_HYBRID][_LETTERS], found.scores[_ATTENTION][_LETTERS])
    ]
    verdict = common.together(reproduce.judge(more), reproduce.judge(relative, -TOLERANCE))
    learnt = max(sum(found.scores[arm][most]) for arm in _PATTERNS) / len(seeds)
    chance = 2 / _RECALL.vocab
    if learnt < chance + 0.2:
        verdict = "inconclusive"
    table = [reproduce.row(arm, **cells) for arm, cells in found.scores.items()]
    held = {}
    for row in table:
        cost = recall.decoding(recall.decoder(arms(66)[row["arm"]], 66, _WIDTH), 2048, 8)
        held[row["arm"]] = cost["bytes of state"]
        row["ms per token after 2048"] = round(cost["milliseconds per token"], 3)
        row["kB of state after 2048"] = round(cost["bytes of state"] / 1000, 1)
    books = found.gain(_HYBRID, _PURE, entries(_ENTRIES[-1]))
    return reproduce.conclude(
        slug="mamba2-hybrid",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"Recall of {_PAIRS[-1]} pairs: hybrid over pure Mamba-2 {common.said(more)}, hybrid over the transformer "
            f"{common.said(found.gain(_HYBRID, _ATTENTION, most))}; phone book of {_ENTRIES[-1]}: hybrid over pure "
            f"{common.said(books)}; bits per character, relative to the transformer's, lower by {common.said(relative)}. "
            f"After 2,048 tokens the hybrid's state has {held[_HYBRID] / held[_ATTENTION]:.2f} times the transformer's bytes."
            + (f" The best arm recalls {learnt:.3f}, chance is {chance:.3f}: nothing follows." if learnt < chance + 0.2 else "")
        ),
        table=table,
        baseline=_PURE,
        settings={
            "patterns": dict(_PATTERNS),
            "parameters": {a: recall.parameters(x, _RECALL.vocab, _WIDTH) for a, x in arms(_RECALL.vocab).items()},
            "model": f"eight layers, width {_WIDTH}, state {_STATE}, heads of 16",
            "probes": {"recall": dict(_RECALL.options), "phone book": dict(_BOOK.options)},
            "steps": {task: list(counts) for task, counts in found.steps.items()},
            "milliseconds a step": {a: {t: round(1000 * s, 1) for t, s in c.items()} for a, c in found.seconds.items()},
            "batch": recall.SIZE,
            "learning rate": _LR,
        },
        limits=(
            "Models of tens of thousands of parameters and hundreds of steps; one mixer in four attends, in the paper one in "
            "seven. Twelve-task averages, 3.5 trillion tokens and 8 billion parameters cannot be shown." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )  # fmt: skip
