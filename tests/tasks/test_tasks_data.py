from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest

from lightformers.errors import DataError, MissingExtra
from lightformers.tasks import data, hub
from lightformers.tasks.conll import read_conll


def _gz(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()))
    return path


def test_tables_know_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes('﻿text,label\n"two\nlines, one field",x\n\nplain,y\n'.encode())
    rows = data.read_file(file)
    assert rows.rows == [{"text": "two\nlines, one field", "label": "x"}, {"text": "plain", "label": "y"}]
    assert [rows.at(i).split(", ")[-1] for i in range(2)] == ["line 2", "line 5"]
    tabs = _gz(tmp_path / "a.tsv.gz", "text\tlabel\na, b\tx\n")
    assert data.read_file(tabs).rows == [{"text": "a, b", "label": "x"}]


def test_json_lines_json_text_and_parquet(tmp_path: Path) -> None:
    lines = _gz(tmp_path / "a.jsonl.gz", '{"a": "x\u2028y"}\n\n{"a": 2, "b": null}\n')
    rows = data.read_file(lines)
    assert rows.rows == [{"a": "x\u2028y"}, {"a": 2, "b": None}] and rows.columns == ["a", "b"]
    assert rows.at(1).endswith("line 3") and rows.column("b") == [None, None]
    (tmp_path / "a.json").write_text('[{"a": 1}]')
    assert data.read_file(tmp_path / "a.json").rows == [{"a": 1}]
    (tmp_path / "a.txt").write_text("one\r\n\r\ntwo\n\n")
    text = data.read_file(tmp_path / "a.txt")
    assert [r["text"] for r in text.rows] == ["one", "", "two"] and text.running
    pytest.importorskip("pyarrow")
    from pyarrow import parquet, table

    parquet.write_table(table({"text": ["a"], "tags": [["x", "y"]]}), tmp_path / "a.parquet")
    assert data.read_file(tmp_path / "a.parquet").rows == [{"text": "a", "tags": ["x", "y"]}]
    (tmp_path / "b.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="no readable parquet"):
        data.read_file(tmp_path / "b.parquet")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"text,label\n", "holds no rows"),
        ("a.csv", b"text,label\na,b\nc\n", "line 3: 1 fields, but the header names 2"),
        ("a.csv", b"text\nok\ncaf\xe9\n", "line 3: not UTF-8"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "line 2: not JSON"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', "line 2: an object"),
        ("a.json", b'{"a": 1}', "a list of objects"),
        ("a.json", b"{", "not JSON"),
        ("a.txt", b" \n\n", "holds no rows"),
        ("a.csv.gz", b"\x1f\x8bbroken", "cannot be read"),
        ("a.docx", b"x", "unknown format .docx; known: .csv"),
        ("a.conll", b"word\n", "line 1: a word and its tag are needed, found 'word'"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        data.read(tmp_path / name)


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data files: name one file"):
        data.read(tmp_path)
    (tmp_path / "README.txt").write_text("about")
    (tmp_path / "reviews.csv").write_text("text\na\n")
    assert list(data.read(tmp_path)) == [""]
    (tmp_path / "more.csv").write_text("text\nb\n")
    with pytest.raises(DataError, match=r"more\.csv, reviews\.csv: name one file, or call them train"):
        data.read(tmp_path)
    (tmp_path / "train-0.csv").write_text("text\na\n")
    (tmp_path / "train-1.csv").write_text("text\nb\n")
    (tmp_path / "dev.csv").write_text("text\nc\n")
    found = data.read(tmp_path)
    assert {k: [r["text"] for r in v.rows] for k, v in found.items()} == {
        "train": ["a", "b"],
        "search": ["c"],
    }
    with pytest.raises(DataError, match="there is no file"):
        data.read(tmp_path / "absent.csv")


class _Names:
    def int2str(self, number: int) -> str:
        return ["neg", "pos"][number]


class _Split(list):
    def __init__(self, rows: list, feature: object) -> None:
        super().__init__(rows)
        self.features = {"label": feature}


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = type(sys)("datasets")
    asked = []

    def load_dataset(name: str, config: str | None) -> dict[str, _Split]:
        asked.append((name, config))
        if name == "absent":
            raise FileNotFoundError("no such data set\nlong story")
        rows = [{"text": "a", "label": 1}, {"text": "b", "label": -1}]
        return {
            "train": _Split(rows, _Names()),
            "validation": _Split(rows, _Names()),
            "unsupervised": _Split(rows, _Names()),
        }

    datasets.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    found = data.read("owner/name:part")
    assert asked == [("owner/name", "part")] and set(found) == {"train", "search"}
    assert [r["label"] for r in found["train"].rows] == ["pos", -1]
    with pytest.raises(
        DataError,
        match=r"'absent' is no file or folder here, and `datasets` did not give it: no such data set$",
    ):
        data.read("absent")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"lightformers\[data\]"):
        data.read("owner/name")


def test_hub_class_names_in_lists() -> None:
    part = _Split([{"label": [0, 1]}], type("Sequence", (), {"feature": _Names()})())
    assert list(hub.plain(part)) == [{"label": ["neg", "pos"]}]


def test_conll_columns() -> None:
    text = "-DOCSTART- -X- O\n\n# a comment\nJohn NNP B-PER\n. . O\n\n\n# O\nhash\tO\n"
    rows = read_conll(text, "f")
    assert rows.rows == [
        {"tokens": ["John", "."], "tags": ["B-PER", "O"]},
        {"tokens": ["#", "hash"], "tags": ["O", "O"]},
    ]
    assert rows.at(1) == "f, line 8"


def test_missing() -> None:
    assert all(map(data.missing, (None, float("nan"), "", " \n")))
    assert not any(map(data.missing, (0, "x", False, [])))
    rows = data.Rows([{"text": "a", "page": 1}, {"text": None, "page": 2}, {"text": 3, "page": None}], "f")
    assert data.examples(rows, {"text": "text"}, "page") == ([{"text": "a", "group": 1}, {"text": "3"}], 1)
    assert json.dumps(rows.columns) == '["text", "page"]'
