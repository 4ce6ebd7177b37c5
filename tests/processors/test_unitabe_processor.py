"""Rows as tokens: numbers as characters, types, missing cells, what is cut, vocabularies, files."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightformers.errors import DataError, ModelError
from lightformers.processors import read, word_pieces
from lightformers.processors.schema import Schema
from lightformers.processors.unitabe import BINARY, NUMBER, TEXT, UniTabEProcessor

ROWS: list[dict[str, Any]] = [
    {"hours_per_week": 40, "married": "yes", "job": "Craft repair", "note": float("nan")},
    {"hours_per_week": 12.5, "married": "no", "job": "Sales", "note": "Café  owner"},
    {"hours_per_week": 3, "married": "no", "job": "Farming", "note": "  "},
]
MADE = UniTabEProcessor.learn([ROWS])


def said(ids: Any) -> list[str]:
    return [MADE.vocabulary[i] for i in ids]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (40, "40"), (40.0, "40"), (0.1 + 0.2, "0.3"), (1e-5, "0"), (-1e-9, "0"), (-2.50001, "-2.5"), (1.23456, "1.2346"),
        (1e7, "10000000"), (np.float32(0.25), "0.25"), (np.int64(-7), "-7"), (True, "1"),
    ],
)  # fmt: skip
def test_numbers_are_fixed_decimals(value: Any, text: str) -> None:
    cell = MADE.cells({"x": value})[0]
    assert said(cell.value_ids) == list(text)
    assert cell.type == (BINARY if value is True else NUMBER)


def test_cells_of_every_kind() -> None:
    cells = MADE.cells(ROWS[0])
    assert [c.type for c in cells] == [
        NUMBER,
        BINARY,
        TEXT,
        BINARY,
    ]  # a single text, as of a mark that is set or not
    assert [c.missing for c in cells] == [False, False, False, True]
    assert said(cells[3].value_ids) == [word_pieces.MASK]
    assert word_pieces.joined(said(cells[2].value_ids)) == "craft repair"
    assert word_pieces.joined(said(MADE.cells(ROWS[1])[3].value_ids)) == "cafe owner"
    assert word_pieces.joined(said(cells[0].name_ids)) == "hours _ per _ week"
    missing = MADE.cells({"hours_per_week": None, "new": None})
    assert [(c.type, c.missing) for c in missing] == [(NUMBER, True), (TEXT, True)]
    seen = UniTabEProcessor.learn([[{"flag": 0}, {"flag": 1}]]).cells({"flag": 1})
    assert seen[0].type == BINARY
    assert MADE.cells({"hours_per_week": "12.50"})[0] == MADE.cells({"hours_per_week": 12.5})[0]
    assert MADE.cells({"hours_per_week": "n/a"})[0].missing
    assert (
        MADE.cells({"married": 3})[0].type == NUMBER
        and MADE.cells({"hours_per_week": "many"})[0].type == TEXT
    )


def test_columns_that_no_table_had() -> None:
    """A column that appears later gets its type from the cell, or from a schema."""
    row = {"speed": 7, "city": "Oslo", "flag": False}
    assert [c.type for c in MADE.cells(row)] == [NUMBER, TEXT, BINARY]
    more = MADE.with_columns(Schema.of([{"city": "Oslo"}, {"city": "Rome"}]))
    assert [c.type for c in more.cells(row)] == [NUMBER, BINARY, BINARY]
    assert more.vocabulary == MADE.vocabulary and more.kind("job") == MADE.kind("job")
    assert MADE.kind("city") == ("", ())


def test_arrays_and_padding() -> None:
    encoded = MADE.encode_examples([{"row": {"a": 12}}, {"row": {"a": 1, "bc": "x y z"}}])
    first = encoded[0]
    assert first["value_columns"].tolist() == [0, 0] and first["types"].tolist() == [NUMBER]
    assert encoded[1]["value_places"].tolist() == [0, 0, 1, 2] and encoded[1]["name_columns"].tolist()[0] == 0
    batch, targets = MADE.pad_encoded(encoded)
    assert targets == {} and all(v.dim() == 2 and len(v) == 2 for v in batch.values())
    assert batch["types"].tolist() == [[NUMBER, -1], [NUMBER, TEXT]]
    n = batch["input_ids"].shape[1]
    assert batch["value_columns"][0].tolist() == [0, 0] + [-1] * (n - 2)
    assert (batch["input_ids"][0, 2:] == MADE.token(word_pieces.PAD)).all()
    assert len(MADE.samples(3)) == 3 and MADE.encode_examples(MADE.samples(3))


def test_long_cells_are_cut_and_it_is_said() -> None:
    with pytest.warns(UserWarning, match="column note: what is longer than 50 tokens was cut"):
        cell = MADE.cells({"note": "word " * 80})[0]
    assert len(cell.value_ids) == 50
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MADE.cells({"note": "word"})


def test_vocabularies() -> None:
    again = UniTabEProcessor.learn([list(reversed(ROWS))])
    assert again.vocabulary == MADE.vocabulary  # the same texts, in whatever order
    texts = {"the cat sat", "the cat ran", "a cat"}
    learned = word_pieces.learned(texts, size=400)
    assert "cat" in learned and len(learned) <= 400
    assert "cat" not in word_pieces.learned(texts, size=0)
    for pieces in (learned, word_pieces.learned(texts, size=0)):
        cut = word_pieces.cutter(pieces)
        assert word_pieces.joined(pieces[i] for i in cut("The CAT, unseen?")) == "the cat , unseen ?"
        assert cut("[MASK]") != (pieces.index(word_pieces.MASK),)  # what a cell says is no command
    assert MADE.tokens("☃") == (MADE.token(word_pieces.UNKNOWN),)
    assert all(MADE.vocabulary[i] == word for i, word in zip(MADE.prompt("recovery"), ("recovery", ":")))


def test_a_tokenizer_of_transformers(tmp_path: Path) -> None:
    """The same pieces as transformers' own BERT tokenizer gives."""
    from transformers import BertTokenizerFast

    (tmp_path / "vocab.txt").write_text("\n".join([*MADE.vocabulary, "[CLS]", "[SEP]"]), encoding="utf-8")
    theirs = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    pieces = word_pieces.of_tokenizer(theirs)
    assert pieces[: len(MADE.vocabulary)] == MADE.vocabulary
    for text in ("Craft repair", "hours_per_week", "Ünknown w0rds: 3.5!", "x" * 30):
        assert list(word_pieces.cutter(pieces)(text)) == theirs(text, add_special_tokens=False)["input_ids"]
    with pytest.raises(ModelError, match="lacks"):
        word_pieces.check(["[PAD]", "a"])
    with pytest.raises(ModelError, match="no tokenizer"):
        word_pieces.of_tokenizer(3)


def test_it_is_saved_and_copied(tmp_path: Path) -> None:
    MADE.cells(ROWS[0])
    MADE.save_pretrained(tmp_path)
    again = read(tmp_path)
    assert again == MADE and copy.deepcopy(MADE) == MADE
    assert isinstance(again, UniTabEProcessor) and again.cells(ROWS[0]) == MADE.cells(ROWS[0])


def test_refusals() -> None:
    with pytest.raises(DataError, match="inf"):
        MADE.cells({"x": float("inf")})
    with pytest.raises(DataError, match="no cells"):
        MADE.cells({})
    with pytest.raises(DataError, match="holds a list"):
        MADE.cells({"x": [1]})
    with pytest.raises(DataError, match="field 'row'"):
        MADE.encode_examples([{"text": "x"}])
    with pytest.raises(DataError, match="40 classes, and the vocabulary has tokens for 32"):
        MADE.labels(40)
    with pytest.raises(DataError):
        UniTabEProcessor.learn([[{"a": None}]])
