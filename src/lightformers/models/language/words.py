"""Text as words of bytes, without a vocabulary (Neitemeier et al., 2025, arXiv 2501.10322; the rule of `hat-splitter`).

Unicode's word boundaries (UAX 29), further cuts behind every punctuation mark and between a small and a capital letter;
then a single space joins the word behind it, and punctuation what is before it. Runs of spaces and other white space stand
alone. Joined, the words are the text. Words of a beginning of the text are those of the text, but for the last.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightformers.errors import UserError

#: Symbols besides the 256 bytes: where a word begins and ends, and the word that ends a text.
WORD, END = 256, 257
SYMBOLS = 258
#: Fills the places behind a word's bytes, and words behind a text's last.
PAD = -1


def split(text: str) -> list[str]:
    """The words of a text; none of an empty one."""
    import regex  # comes with transformers; Python's own `re` knows no Unicode word boundaries

    pieces: list[str] = []
    for piece in regex.split(r"(?V1w)\b", text):
        for part in regex.split(r"(?V1)(?<=\p{P})|(?<=\p{Ll})(?=\p{Lu})", piece):
            if part == " " and pieces and not pieces[-1].strip(" "):
                pieces[-1] += part
            elif part:
                pieces.append(part)
    words: list[str] = []
    before = ""  # what kind of piece the last word ends with
    for piece in pieces:
        kind = _kind(piece, bool(regex.fullmatch(r"\p{P}", piece)))
        joins = (kind == "word" and before == "space") or (
            kind == "mark" and before in ("space", "word", "mark")
        )
        if joins:
            words[-1] += piece
        else:
            words.append(piece)
        before = kind
    return words


def _kind(piece: str, mark: bool) -> str:
    if piece == " ":
        return "space"
    if piece.isspace():
        return "white"
    return "mark" if mark else "word"


def cut(word: str, longest: int) -> list[bytes]:
    """The bytes of a word in pieces of at most `longest`, between characters where that is possible."""
    if longest < 1:
        raise UserError(f"a word holds at least one byte, not {longest}")
    rest, pieces = word.encode(), []
    while len(rest) > longest:
        end = longest
        while end > 0 and rest[end] & 0xC0 == 0x80:  # a continuation byte: step back to a character's start
            end -= 1
        pieces.append(rest[: end or longest])
        rest = rest[end or longest :]
    return [*pieces, rest] if rest else pieces


def words_of(text: str, longest: int) -> list[bytes]:
    """The words of a text as bytes, long ones cut."""
    return [piece for word in split(text) for piece in cut(word, longest)]


def unfinished(word: bytes) -> bool:
    """Whether the bytes stop within a character, so that the word cannot end here."""
    for back in range(1, min(4, len(word)) + 1):
        byte = word[-back]
        if byte & 0xC0 != 0x80:
            needs = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
            return back < needs
    return False


def stack(texts: Sequence[Sequence[bytes]], end: bool = False) -> Tensor:
    """Words of several texts -> (batch, words, bytes), filled with `PAD`. end: every text gets the word `END` behind it."""
    rows = [[list(w) for w in text] + ([[END]] if end else []) for text in texts]
    if any(not word for row in rows for word in row):
        raise UserError("a word without bytes cannot be read")
    most = max((len(row) for row in rows), default=0)
    wide = max((len(word) for row in rows for word in row), default=1)
    full = [
        [word + [PAD] * (wide - len(word)) for word in row] + [[PAD] * wide] * (most - len(row))
        for row in rows
    ]
    return torch.tensor(full, dtype=torch.long).view(len(rows), most, wide)
