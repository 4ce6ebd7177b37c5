"""Small algorithmic tasks on sequences, after RASP (Weiss et al., 2021, arXiv 2106.06981; Friedman et al., 2023).

A task gives texts (lists of words, the first is `<s>`) and a label per word; the label `<pad>` asks nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lightformers.errors import UserError

PAD, START, END = "<pad>", "<s>", "</s>"
Words = list[str]


@dataclass(frozen=True)
class Examples:
    """texts and labels of equal lengths, no text twice; words and labels that may occur, `<pad>` first."""

    texts: list[Words]
    labels: list[Words]

    def __len__(self) -> int:
        return len(self.texts)

    def part(self, start: int, stop: int) -> Examples:
        return Examples(self.texts[start:stop], self.labels[start:stop])

    @property
    def words(self) -> tuple[str, ...]:
        return (PAD, *sorted({w for text in self.texts for w in text} - {PAD}))

    @property
    def said(self) -> tuple[str, ...]:
        return (PAD, *sorted({w for row in self.labels for w in row} - {PAD}))


def reverse(body: Words) -> tuple[Words, Words]:
    """The words backwards."""
    return [START, *body, END], [PAD, *body[::-1], PAD]


def histogram(body: Words) -> tuple[Words, Words]:
    """For each word how often it occurs."""
    counts = Counter(body)
    return [START, *body], [PAD, *(str(counts[w]) for w in body)]


def double_histogram(body: Words) -> tuple[Words, Words]:
    """For each word how many words occur as often as it does."""
    counts = Counter(body)
    again = Counter(counts.values())
    return [START, *body], [PAD, *(str(again[counts[w]]) for w in body)]


def ordered(body: Words) -> tuple[Words, Words]:
    """The words sorted."""
    return [START, *body, END], [PAD, *sorted(body), PAD]


def most_frequent(body: Words) -> tuple[Words, Words]:
    """The different words by falling frequency, earlier ones first among equals; then `<s>`."""
    first = {w: i for i, w in reversed(list(enumerate(body)))}
    counts = Counter(body)
    found = sorted(counts, key=lambda w: (-counts[w], first[w]))
    return [START, *body], [PAD, *found, *[START] * (len(body) - len(found))]


def dyck(body: Words) -> tuple[Words, Words]:
    """Of every prefix: T balanced, P may become so, F never."""
    opening = {")": "(", "}": "{"}
    open_: Words = []
    said: Words = []
    broken = False
    for bracket in body:
        if bracket not in opening:
            open_.append(bracket)
        elif not open_ or open_.pop() != opening[bracket]:
            broken = True
        said.append("F" if broken else "P" if open_ else "T")
    return [START, *body], [PAD, *said]


#: name -> (function of the body, how many of `length` and of `vocabulary` are not the body's)
TASKS: dict[str, tuple[Callable[[Words], tuple[Words, Words]], int, int]] = {
    "reverse": (reverse, 2, 3),
    "hist": (histogram, 1, 2),
    "double_hist": (double_histogram, 1, 2),
    "sort": (ordered, 2, 3),
    "most_freq": (most_frequent, 1, 2),
    "dyck1": (dyck, 1, 0),
    "dyck2": (dyck, 1, 0),
}


def make(name: str, count: int, vocabulary: int = 8, length: int = 8, seed: int = 0) -> Examples:
    """At most `count` different examples of a task; fewer where there are no more.

    vocabulary: words with `<pad>` and the marks; length: most words, with the marks. Brackets have two or four words
    whatever the vocabulary, half of their texts well nested at the start. Raises UserError for an unknown task.
    """
    if name not in TASKS:
        raise UserError(f"{name!r} is not one of {', '.join(TASKS)}")
    function, marks, others = TASKS[name]
    brackets = {"dyck1": "()", "dyck2": "(){}"}.get(name)
    symbols = list(brackets) if brackets else [str(i) for i in range(vocabulary - others)]
    if length <= marks + 1 or not symbols:
        raise UserError(f"{name} needs a length above {marks + 1} and a vocabulary above {others}")
    rng = np.random.default_rng(seed)
    seen: set[tuple[str, ...]] = set()
    made = Examples([], [])
    for _ in range(20 * count):
        size = length - marks if brackets else int(rng.integers(1, length - marks + 1))
        body = [symbols[i] for i in rng.integers(len(symbols), size=size)]
        if brackets and rng.integers(2):
            body = (_nested(rng, brackets, size) + body)[:size]
        if tuple(body) in seen:
            continue
        seen.add(tuple(body))
        text, said = function(body)
        made.texts.append(text)
        made.labels.append(said)
        if len(made) == count:
            break
    return made


def _nested(rng: np.random.Generator, brackets: str, size: int) -> Words:
    """A balanced text of at most about `size` brackets."""
    body: Words = []
    for _ in range(int(rng.integers(1, size // 2 + 1))):
        kind = 2 * int(rng.integers(len(brackets) // 2))
        left, right = brackets[kind], brackets[kind + 1]
        body = [*body, left, right] if rng.integers(2) else [left, *body, right]
    return body
