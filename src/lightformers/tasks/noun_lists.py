"""Texts in which a list of nouns comes twice, and how much less the second one surprises (Armeni et al., 2022, arXiv 2210.13569).

    made = stimuli("repeat", seed=0, count=100, length=5, delay=40, filler=words)
    percent(nats, made)       # nats (count, longest) of surprise, one percentage per text

A text is a preface, the list, `delay` words ending in a prompt, and the second list: the same (repeat), the same nouns in
another order (permute) or others (control). Words are tokens; lists have commas between nouns and a full stop at the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lightformers.errors import UserError

Condition = Literal["repeat", "permute", "control"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
PREFACE = [
    "Before",
    "the",
    "meeting",
    ",",
    "Mary",
    "wrote",
    "down",
    "the",
    "following",
    "list",
    "of",
    "words",
    ":",
]
PROMPT = ["When", "she", "got", "back", ",", "she", "read", "the", "list", "again", ":"]
#: Frequent nouns of English encyclopaedia text, by what they have to do with.
GROUPS: dict[str, tuple[str, ...]] = {
    "war": (
        "guns", "troops", "soldiers", "battle", "attack", "aircraft", "tank", "ships", "army", "force", "command", "division",
    ),
    "weather": ("storm", "winds", "damage", "river", "water", "typhoon", "cyclone", "rainfall", "depression", "intensity", "hurricane", "fire"),
    "arts": ("film", "album", "music", "band", "song", "episode", "scene", "poetry", "book", "style", "image", "studio"),
    "places": ("city", "town", "road", "building", "school", "home", "country", "land", "area", "region", "route", "section"),
    "sport": ("game", "team", "season", "match", "coach", "player", "career", "record", "basketball", "pitcher", "innings", "play"),
}  # fmt: skip
NOUNS: tuple[str, ...] = tuple(noun for group in GROUPS.values() for noun in group)


@dataclass(frozen=True)
class Stimulus:
    """words: the whole text. first, second: places of the nouns of both lists."""

    words: tuple[str, ...]
    first: tuple[int, ...]
    second: tuple[int, ...]


def stimuli(
    condition: Condition, seed: int, count: int, length: int, delay: int, filler: Sequence[str], coherent: bool = False,
    groups: Mapping[str, Sequence[str]] | None = None, preface: Sequence[str] = PREFACE, prompt: Sequence[str] = PROMPT,
) -> list[Stimulus]:  # fmt: skip
    """`count` texts; the first lists are the same in all conditions and at all delays of a seed.

    Lists come in runs of circular shifts, so that every noun stands in every place. length: nouns of a list, 3 or more.
    delay: words between the lists, the prompt included. filler: what the other words between them are taken from, in
    order, from another beginning for every text. coherent: the nouns of a list are of one group, else from all. Raises
    UserError where there are too few nouns, or a delay is shorter than the prompt.
    """
    groups = GROUPS if groups is None else groups
    if condition not in CONDITIONS:
        raise UserError(f"{condition!r} is not one of {', '.join(CONDITIONS)}")
    if length < 3 or count < 1:
        raise UserError(f"{count} lists of {length} nouns: at least one of at least 3")
    pools = [list(g) for g in groups.values()] if coherent else [[n for g in groups.values() for n in g]]
    if min(map(len, pools)) < 2 * length:
        raise UserError(
            f"lists of {length} nouns and others for control need {2 * length} nouns, not {min(map(len, pools))}"
        )
    between = delay - len(prompt)
    if between < 0 or len(filler) < between:
        raise UserError(f"a delay of {delay} words: the prompt has {len(prompt)}, the filler {len(filler)}")
    rng = np.random.default_rng((seed, length))
    out: list[Stimulus] = []
    while len(out) < count:
        pool = pools[int(rng.integers(len(pools)))]
        drawn = [pool[i] for i in rng.permutation(len(pool))[: 2 * length]]
        order = _other_order(rng, length)
        starts = rng.integers(0, len(filler) - between + 1, length)
        for shift in range(min(length, count - len(out))):
            first = [*drawn[shift:length], *drawn[:shift]]
            if condition == "repeat":
                second = first
            elif condition == "permute":
                second = [first[i] for i in order]
            else:
                second = [*drawn[length + shift :], *drawn[length : length + shift]]
            begin = int(starts[shift])
            out.append(_text(first, second, preface, [*filler[begin : begin + between], *prompt]))
    return out


def _text(
    first: Sequence[str], second: Sequence[str], preface: Sequence[str], between: Sequence[str]
) -> Stimulus:
    words, places = list(preface), []
    for nouns, after in ((first, between), (second, ())):
        places.append(tuple(len(words) + 2 * i for i in range(len(nouns))))
        words += listed(nouns)
        words += after
    return Stimulus(tuple(words), *places)


def listed(nouns: Sequence[str]) -> list[str]:
    """With commas between, and a full stop."""
    return [*[word for noun in nouns for word in (noun, ",")][:-1], "."]


def _other_order(rng: np.random.Generator, length: int) -> list[int]:
    """No noun keeps its slot, and no two neighbours stay neighbours in that order, from 4 on: of 3 every order without old
    slots keeps a pair."""
    while True:
        order = rng.permutation(length).tolist()
        if any(i == o for i, o in enumerate(order)):
            continue
        if length == 3 or all(b != a + 1 for a, b in itertools.pairwise(order)):
            return order


def percent(nats: NDArray[np.floating], made: Sequence[Stimulus]) -> NDArray[np.float64]:
    """Repeat surprisal: 100 x mean surprisal of the second list's nouns / that of the first's, one for each text.

    nats: (count, longest), -log p of every word given those before it; what stands at other places is not read. The first
    noun of either list is left out, since it depends on the prompt and not on memory; commas and full stops do not count.
    Raises UserError where the first list surprises nobody: then nothing can be compared.
    """
    if len(nats) != len(made):
        raise UserError(f"{len(nats)} rows of surprisal do not belong to {len(made)} texts")
    out = np.empty(len(made))
    for i, text in enumerate(made):
        first, second = (float(nats[i, list(at[1:])].mean()) for at in (text.first, text.second))
        if not first > 0:
            raise UserError(
                f"the first list of text {i} has a surprisal of {first}: there is nothing to compare with"
            )
        out[i] = 100 * second / first
    return out


def by_place(nats: NDArray[np.floating], made: Sequence[Stimulus]) -> NDArray[np.float64]:
    """The same for each noun of lists of one length, over all texts: (length - 1) ratios of means, from the second noun."""
    rows = np.arange(len(made))[:, None]
    first, second = (
        nats[rows, np.array([getattr(t, side) for t in made])[:, 1:]].mean(0) for side in ("first", "second")
    )
    return np.asarray(100 * second / first)
