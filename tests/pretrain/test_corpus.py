"""Text to tokens on disk and to windows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from lightformers.errors import DataError, UserError
from lightformers.pretrain import corpus, tokenizers
from lightformers.pretrain.corpus import Windows, in_order, prepare

TEXT = "Where the bee sucks, there suck I;\nIn a cowslip's bell I lie. \u00e4\u4f60\n" * 60


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_a_tokenizer_gives_the_text_back(kind: str) -> None:
    words = tokenizers.made(kind, [TEXT], 300, 64)
    assert words.decode(words(TEXT, add_special_tokens=False)["input_ids"]) == TEXT
    assert words.eos_token_id == 0 and len(words) <= 300


def test_tokens_are_the_text_and_are_made_once(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "CHUNK", 100)  # several pieces a document
    found = prepare(tmp_path / "work", file, tokenizer="characters")
    everything = np.concatenate([found.train, found.valid])
    assert found.tokenizer.decode(everything.tolist(), skip_special_tokens=True) == TEXT
    assert len(found.valid) / len(everything) == pytest.approx(corpus.HELD_OUT, abs=0.01)
    assert found.valid_bytes == len(
        found.tokenizer.decode(found.valid.tolist(), skip_special_tokens=True).encode()
    )
    before = (tmp_path / "work/tokens/train.npy").stat().st_mtime_ns
    again = prepare(tmp_path / "work", file, tokenizer="characters")
    assert (tmp_path / "work/tokens/train.npy").stat().st_mtime_ns == before
    assert again.fingerprint == found.fingerprint
    other = prepare(tmp_path / "work", file, tokenizer="bytes")
    assert len(other.train) > len(found.train) and other.fingerprint != found.fingerprint


def test_every_document_ends(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text("one two\n", encoding="utf-8")
    with gzip.open(tmp_path / "books" / "b.txt.gz", "wt", encoding="utf-8") as packed:
        packed.write("three\n")
    (tmp_path / "valid.jsonl").write_text(
        "\n".join(json.dumps({"body": t}) for t in ("four", "", "five")), encoding="utf-8"
    )
    words = tokenizers.made("characters", ["one two\nthree\nfour five"], 0, 64)
    found = prepare(tmp_path / "w1", tmp_path / "books", tokenizer=words, valid=tmp_path / "books")
    assert found.tokenizer.decode(found.train.tolist()) == f"one two\n{tokenizers.END}three\n{tokenizers.END}"
    rows = prepare(
        tmp_path / "w2", tmp_path / "valid.jsonl", column="body", tokenizer=words, valid=tmp_path / "books"
    )
    assert rows.tokenizer.decode(rows.train.tolist()) == f"four{tokenizers.END}five{tokenizers.END}"
    assert rows.valid_bytes == len("one two\nthree\n")


def test_windows_go_through_all_tokens_once_an_epoch() -> None:
    tokens = np.arange(1000, dtype=np.uint16)
    windows = Windows(tokens, length=16, rows=4, seed=3)
    rows = np.concatenate(
        [windows.batch(p).inputs["input_ids"].numpy() for p in range(windows.per_epoch // 4)]
    )
    assert len(np.unique(rows[:, 0])) == len(rows) and (np.diff(np.sort(rows[:, 0])) % 16 == 0).all()
    batch = windows.batch(5)
    assert (batch.targets["following"] == batch.inputs["input_ids"] + 1).all()
    again = Windows(tokens, length=16, rows=2, seed=3)  # the same windows in smaller batches
    halves = np.concatenate([again.batch(p).inputs["input_ids"].numpy() for p in (10, 11)])
    assert (halves == batch.inputs["input_ids"].numpy()).all()
    epochs = [windows._start(e * windows.per_epoch) % 16 for e in range(5)]
    assert len(set(epochs)) > 1  # other windows in every epoch


def test_validation_goes_through_the_text_in_order() -> None:
    found = list(in_order(np.arange(50), 8, 4))
    assert np.concatenate([b.inputs["input_ids"].numpy() for b in found]).ravel().tolist() == list(range(48))
    few = list(in_order(np.arange(50), 8, 4, most=2))
    assert np.concatenate([b.inputs["input_ids"].numpy() for b in few])[:, 0].tolist() == [0, 40]


def test_texts_that_are_no_use(tmp_path: Path, file: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        prepare(tmp_path, tmp_path / "nothing.txt")
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="empty"):
        prepare(tmp_path, tmp_path / "empty.txt", tokenizer="bytes")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 9)
    with pytest.raises(DataError, match="UTF-8"):
        prepare(tmp_path, tmp_path / "latin.txt", tokenizer="bytes")
    with pytest.raises(UserError, match="at least 257"):
        prepare(tmp_path, file, vocabulary=12)
    with pytest.raises(DataError, match="smaller --length"):
        Windows(np.arange(20), 16, 1)
