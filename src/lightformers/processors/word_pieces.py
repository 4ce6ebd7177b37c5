"""Word pieces for table cells: vocabularies of BERT's kind, read off a tokenizer of transformers or learned from texts.

A vocabulary is a tuple of pieces, the place of a piece is its number; pieces that continue a word begin with "##".
The pieces of `SPECIAL` stand in every one, under the names that BERT gives them, so that either kind serves.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lightformers.errors import DataError, ModelError

PAD, UNKNOWN, MASK = "[PAD]", "[UNK]", "[MASK]"
#: Begin and end of an answer, as in the released code of UniTabE.
BEGIN, END = "[unused0]", "[unused1]"
#: The first of the tokens that stand for classes: [unused10], [unused11], ...
FIRST_LABEL = 10
SPECIAL = (PAD, BEGIN, END, UNKNOWN, MASK)
#: What numbers are written with.
DIGITS = "0123456789"
NUMERALS = (*DIGITS, ".", "-")


def label(number: int) -> str:
    """The token of a class."""
    return f"[unused{FIRST_LABEL + number}]"


def of_tokenizer(tokenizer: Any) -> tuple[str, ...]:
    """The pieces of a WordPiece tokenizer of transformers (BERT's). Raises ModelError for other kinds."""
    try:
        held = tokenizer.get_vocab()
    except AttributeError as error:
        raise ModelError(
            f"{type(tokenizer).__name__} is no tokenizer: it has no vocabulary to read"
        ) from error
    pieces = tuple(sorted(held, key=held.__getitem__))
    if [held[p] for p in pieces] != list(range(len(pieces))):
        raise ModelError("the numbers of this tokenizer's pieces have gaps: give one without added tokens")
    check(pieces)
    return pieces


def check(pieces: Sequence[str]) -> None:
    """Raises ModelError where a special token or a numeral is absent or a piece stands there twice."""
    held = set(pieces)
    if len(held) != len(pieces):
        raise ModelError("a piece stands in the vocabulary twice")
    if missing := [p for p in (*SPECIAL, *NUMERALS, label(0)) if p not in held]:
        raise ModelError(
            f"the vocabulary lacks {', '.join(missing)}: a WordPiece vocabulary of BERT's kind is needed"
        )


def learned(
    texts: Iterable[str], size: int = 1024, labels: int = 32, words: Sequence[str] = ()
) -> tuple[str, ...]:
    """A vocabulary of about `size` pieces, learned from texts; at least every letter, digit and sign of them.

    labels: tokens kept for classes. words: whole words that it holds in any case. The same texts give the same pieces.
    size 0: characters alone. Raises DataError where no text is left.
    """
    from tokenizers import Tokenizer, models, trainers

    texts = sorted(set(texts))
    if not any(text.strip() for text in texts):
        raise DataError("there is no text to learn a vocabulary from")
    tool = Tokenizer(models.WordPiece({UNKNOWN: 0}, unk_token=UNKNOWN))
    tool.normalizer, tool.pre_tokenizer = _cutters()
    characters = sorted({c for text in texts for c in tool.normalizer.normalize_str(text) if not c.isspace()})
    plain = sorted({*string.ascii_lowercase, *string.digits, *string.punctuation, *characters})
    alphabet = [*plain, *(f"##{c}" for c in plain)]
    fixed = [*SPECIAL, *(label(n) for n in range(labels)), *alphabet, *words]
    found: list[str] = []
    if size > len(fixed):
        # named before, the letters have fixed numbers, and equally frequent pairs are merged in their order
        trainer = trainers.WordPieceTrainer(
            vocab_size=size, special_tokens=alphabet, limit_alphabet=0, show_progress=False
        )
        tool.train_from_iterator(texts, trainer)
        held = tool.get_vocab()
        found = sorted(held, key=held.__getitem__)
    return tuple(dict.fromkeys([*fixed, *found]))[: max(size, len(set(fixed)))]


def cutter(pieces: Sequence[str]) -> Callable[[str], tuple[int, ...]]:
    """text -> numbers of its pieces; text is lower-cased and loses its accents, as in BERT's uncased models."""
    from tokenizers import Tokenizer, models

    held = {piece: number for number, piece in enumerate(pieces)}
    tool = Tokenizer(models.WordPiece(held, unk_token=UNKNOWN, max_input_chars_per_word=100))
    tool.normalizer, tool.pre_tokenizer = _cutters()
    return lambda text: tuple(tool.encode(text, add_special_tokens=False).ids)


def joined(pieces: Iterable[str]) -> str:
    """Pieces of an answer -> text: "##" glues, other pieces are words of their own."""
    out = ""
    for piece in pieces:
        out += piece[2:] if piece.startswith("##") else f" {piece}"
    return out.strip()


def _cutters() -> tuple[Any, Any]:
    from tokenizers import normalizers, pre_tokenizers

    return normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
