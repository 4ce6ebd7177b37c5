"""Texts made up from those that are there, for a teacher to answer where data is scarce.

Only the teacher's answers give such texts a meaning, so they need not be good sentences; that they help students of little
data is from Tang et al. (2019, arXiv 1903.12136) and TinyBERT (Jiao et al., 2020, arXiv 1909.10351). Here three things happen
to the words of a text, none of which needs another model: it is cut to a part, or joined with a part of another text, and some
of its words are exchanged for words of any text, common ones more often.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from lightformers.bundle import Example
from lightformers.tasks.classify import UNLABELLED

#: Chance that a text is joined with another; that one which is not is cut. Shares of words that may be exchanged.
JOINED, CUT, EXCHANGED = 0.3, 0.3, (0.05, 0.15, 0.3)


def examples(source: Sequence[Example], times: int, seed: int = 0) -> list[Example]:
    """`times` made-up examples for each of `source`, which hold "text"; a "label" becomes `UNLABELLED`."""
    drawn = random.Random(seed)
    spaced = 2 * sum(" " in e["text"].strip() for e in source) >= len(source)
    gap = " " if spaced else ""  # where no spaces separate words, characters are exchanged
    words = [e["text"].split() if spaced else list(e["text"]) for e in source]
    pool = [word for text in words for word in text]
    made: list[Example] = []
    for _ in range(times if pool else 0):
        for example, text in zip(source, words):
            new = {**example, "text": gap.join(_changed(text, words, pool, drawn))}
            made.append(new | {"label": UNLABELLED} if "label" in example else new)
    return made


def _changed(
    text: Sequence[str], words: Sequence[Sequence[str]], pool: Sequence[str], drawn: random.Random
) -> list[str]:
    if drawn.random() < JOINED:
        out = [*_part(text, drawn), *_part(drawn.choice(words), drawn)]
    elif drawn.random() < CUT:
        out = _part(text, drawn)
    else:
        out = list(text)
    share = drawn.choice(EXCHANGED)
    return [drawn.choice(pool) if drawn.random() < share else word for word in out]


def _part(text: Sequence[str], drawn: random.Random) -> list[str]:
    """A third of the words at least, in one piece."""
    if len(text) < 3:
        return list(text)
    size = drawn.randint(max(len(text) // 3, 1), len(text))
    start = drawn.randint(0, len(text) - size)
    return list(text[start : start + size])
