"""Tagged words: CoNLL columns and character spans, both as IOB2."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from lightformers.errors import DataError
from lightformers.tasks.data import Rows

Span = tuple[int, int, str]

_TAG = re.compile(r"(?:O|[BIESLU]-\S+)\Z")
_WORD = re.compile(r"\w+|[^\w\s]")
_SCHEMES = {"S": "B", "U": "B", "E": "I", "L": "I"}  # BIOES and BILOU -> IOB2


def read_conll(text: str, source: str) -> Rows:
    """One word a line, its tag in the last column (tabs or blanks), an empty line between sentences.

    Lines that start with -DOCSTART-, and comments (a # without a tag behind it), are skipped.
    Returns rows {"tokens", "tags"}; raises DataError naming the line that has no tag.
    """
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    tokens: list[str] = []
    tags: list[str] = []
    for number, line in enumerate([*text.replace("\r\n", "\n").split("\n"), ""], 1):
        columns = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or columns[0] == "-DOCSTART-":
            if tokens:
                rows.append({"tokens": tokens, "tags": tags})
                tokens, tags = [], []
            continue
        if line.startswith("#") and not _TAG.match(columns[-1]):
            continue
        if len(columns) < 2 or not columns[0] or not columns[-1].strip():
            raise DataError(
                f"{source}, line {number}: a word and its tag are needed, found {line.strip()[:60]!r}"
            )
        if not tokens:
            lines.append(number)
        tokens.append(columns[0])
        tags.append(columns[-1].strip())
    return Rows(rows, source, lines)


def words_and_tags(text: str, spans: Iterable[Any], where: str) -> tuple[list[str], list[str], int]:
    """A text with [{"start", "end", "label"}] -> words, IOB2 tags, and how many spans cut through a word.

    start and end count characters, end is exclusive. Words are runs of letters and digits, and single other
    characters; a span that cuts through a word takes all of it. Raises DataError for spans that are out of the
    text, empty, or overlap.
    """
    words = [(m.start(), m.end()) for m in _WORD.finditer(text)]
    tags = ["O"] * len(words)
    torn = 0
    for span in spans:
        try:
            start, end, label = int(span["start"]), int(span["end"]), str(span["label"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f'{where}: a span needs "start", "end" and "label", got {span!r}') from error
        if not 0 <= start < end <= len(text):
            raise DataError(f"{where}: span {start}:{end} does not lie in a text of {len(text)} characters")
        inside = [i for i, (a, b) in enumerate(words) if a < end and b > start]
        if not inside:
            raise DataError(f"{where}: span {start}:{end} holds no word ({text[start:end]!r})")
        if any(tags[i] != "O" for i in inside):
            raise DataError(f"{where}: span {start}:{end} overlaps another one; one label a word is possible")
        torn += words[inside[0]][0] < start or words[inside[-1]][1] > end
        for i in inside:
            tags[i] = f"{'B' if i == inside[0] else 'I'}-{label}"
    return [text[a:b] for a, b in words], tags, torn


def iob2(tags: Sequence[str]) -> tuple[list[str], bool]:
    """BIOES, BILOU and IOB1 tags as IOB2, and whether an I- had to become the beginning of an entity."""
    out: list[str] = []
    repaired = False
    for tag in tags:
        prefix, dash, kind = tag.partition("-")
        if dash and prefix in _SCHEMES:
            tag = f"{_SCHEMES[prefix]}-{kind}"
        if tag.startswith("I-") and (not out or out[-1][1:] != tag[1:]):
            tag, repaired = f"B{tag[1:]}", True
        out.append(tag)
    return out, repaired


def entities(tags: Sequence[str]) -> set[Span]:
    """Strict IOB2: (first word, end, type). An I- that continues nothing of its type is no entity.

    Tags without any prefix (PER instead of B-PER) make an entity of every run of equal tags.
    """
    found: set[Span] = set()
    start, kind = 0, ""
    for i, tag in enumerate([*tags, "O"]):
        prefix, dash, name = tag.partition("-")
        bare = tag != "O" and not (dash and prefix in ("B", "I"))
        if bare:
            name, prefix = tag, "I" if kind == tag else "B"
        if prefix == "I" and name == kind:
            continue
        if kind:
            found.add((start, i, kind))
        start, kind = i, name if prefix == "B" else ""
    return found
