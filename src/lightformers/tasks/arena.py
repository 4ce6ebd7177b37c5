"""The tasks of Long Range Arena (Tay et al., 2020, arXiv 2011.04006), from what every machine has or from a user's files.

    split = load("listops", "small", seed=0)
    split = load("text", "small", source="reviews.csv")

ListOps and Pathfinder are generated. Text asks which package a function of the installed Python is from, retrieval whether
two functions are from one module, image takes scikit-learn's digits, each where no source is given: the paper's IMDb, ACL
Anthology and CIFAR-10 do not come with a Python. A source is a file or folder that `tasks.data` or `tasks.images` reads.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightformers.errors import DataError, MissingExtra, UserError
from lightformers.tasks.listops import listops
from lightformers.tasks.pathfinder import pathfinder
from lightformers.tasks.sequences import Numbers, Sequences, Split

SCALES = ("small", "paper")
#: Classes that text has where no source is given: the packages with the most functions.
PACKAGES = 4
_GREY = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class ArenaTask:
    """A row. make: `(seed, source, **sizes) -> Split`. sizes: by scale. sourced: whether it takes a source. needs: the
    scales at which it cannot do without, with what it was in the paper."""

    make: Callable[..., Split]
    summary: str
    sizes: Mapping[str, Mapping[str, Any]]
    sourced: bool = True
    needs: Mapping[str, str] | None = None


def load(
    task: str, scale: str = "small", seed: int = 0, source: str | Path | None = None, **changed: Any
) -> Split:
    """The data of a task. changed: sizes other than the scale's, such as train=100.

    Raises UserError for unknown names and sizes, and where a source is given to a generated task; DataError where data
    is needed and absent, or does not fit; MissingExtra where digits are needed without scikit-learn.
    """
    if task not in ARENA:
        raise UserError(f"{task!r} is not one of {', '.join(ARENA)}")
    row = ARENA[task]
    if scale not in SCALES:
        raise UserError(f"scale {scale!r} is not one of {', '.join(SCALES)}")
    if source is not None and not row.sourced:
        raise UserError(f"{task} is generated: it takes no data")
    if source is None and row.needs and scale in row.needs:
        raise DataError(
            f"{task} at the paper's scale needs {row.needs[scale]}: give it with --data {task}=FILE"
        )
    sizes = dict(row.sizes[scale])
    if unknown := sorted(set(changed) - set(sizes)):
        raise UserError(f"{task} has no size {', '.join(unknown)}; it has {', '.join(sizes)}")
    return row.make(seed, source, **{**sizes, **changed})


def encode(text: str, length: int) -> Numbers:
    """The first `length` bytes (UTF-8), each plus one: 0 is padding."""
    return np.frombuffer(text.encode("utf-8", "replace")[:length], np.uint8).astype(np.uint16) + 1


def text(seed: int, source: str | Path | None, length: int, train: int, test: int) -> Split:
    """Classification of bytes. source: rows with columns text and label."""
    if source is not None:
        return _from_rows(seed, source, length, train, test, ("text",))
    parts = [_by_package(functions) for functions in python_functions()]
    counts = {p: min(len(part.get(p, ())) for part in parts) for p in parts[0]}
    chosen = sorted(sorted(counts, key=lambda p: (-counts[p], p))[:PACKAGES])
    if len(chosen) < 2 or min(counts[p] for p in chosen) < 20:
        raise DataError("too few packages with documented functions are installed: give --data text=FILE")
    rng = np.random.default_rng(seed)
    made = []
    for part, count in zip(parts, (train, test)):
        each = min(count // len(chosen), *(len(part[p]) for p in chosen))
        rows = [(encode(code, length), k) for k, p in enumerate(chosen) for code in _some(rng, part[p], each)]
        made.append(_sequences([rows[i] for i in rng.permutation(len(rows))]))
    about = f"which package is this function of: {', '.join(chosen)}"
    return Split(made[0], made[1], classes=len(chosen), vocab=257, length=length, about=about)


def retrieval(seed: int, source: str | Path | None, length: int, train: int, test: int) -> Split:
    """Do two texts belong together? As bytes. source: rows with columns text, text_pair and label."""
    if source is not None:
        return _from_rows(seed, source, length, train, test, ("text", "text_pair"))
    rng = np.random.default_rng(seed)
    made = []
    for functions, count in zip(python_functions(), (train, test)):
        modules: dict[str, list[str]] = defaultdict(list)
        for group, code in functions:
            modules[group].append(code)
        names = sorted(m for m, codes in modules.items() if len(codes) > 1)
        if len(names) < 2:
            raise DataError("too few modules with documented functions are installed: give --data retrieval=FILE")  # fmt: skip
        rows = []
        for label in rng.permutation(np.arange(count) % 2).tolist():
            first, second = (int(i) for i in rng.choice(len(names), 2, replace=False))
            one, other = _some(rng, modules[names[first]], 2)
            if not label:
                other = _some(rng, modules[names[second]], 1)[0]
            rows.append((encode(one, length), encode(other, length), label))
        made.append(_sequences(rows))
    return Split(
        made[0], made[1], classes=2, vocab=257, length=length, about="are these two functions of one module"
    )


def image(seed: int, source: str | Path | None, side: int, train: int, test: int) -> Split:
    """Grey pixels row by row, level plus one. source: an npz archive or a folder of class folders, square pictures; they
    are made smaller to `side` by averaging where their side is a multiple of it."""
    if source is not None:
        from lightformers.tasks import images

        parts = images.read(source, None, None)
        rows = {role: [(_grey(e["image"], side), e["label"]) for e in part] for role, part in parts.items()}
        split = _split(seed, rows, train, test)
        about, vocab = f"{Path(source).name}, {side} x {side} grey", 257
    else:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise MissingExtra("test", "scikit-learn") from error
        found = load_digits()
        # the last ones were written by other people than the first
        tiles = [(t.ravel().astype(np.uint16) + 1, str(y)) for t, y in zip(found.images, found.target)]
        split = {"train": tiles[:1400][:train], "test": tiles[1400:][:test]}
        about, vocab, side = "handwritten digits, 8 x 8", 18, 8
    return _named(split, vocab, side * side, about)


def python_functions() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(module, source code) of the functions of the installed Python, to train on and to test on: no module in both."""
    from lightformers.tasks import python_docs

    splits = python_docs.default().splits
    train, test = [*splits["train"], *splits["search"]], splits["verify"]
    a, b = ([(str(e["group"]), str(e["document"])) for e in part] for part in (train, test))
    return a, b


def _by_package(functions: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    out: dict[str, list[str]] = defaultdict(list)
    for group, code in functions:
        package = group.split("/", 1)[0].removesuffix(".py")
        out["python" if package in sys.stdlib_module_names else package].append(code)
    return out


def _some(rng: np.random.Generator, items: Sequence[Any], count: int) -> list[Any]:
    return [items[i] for i in rng.permutation(len(items))[:count]]


def _from_rows(
    seed: int, source: str | Path, length: int, train: int, test: int, columns: tuple[str, ...]
) -> Split:
    from lightformers.tasks import data

    parts: dict[str, list[tuple[Any, ...]]] = {}
    for role, rows in data.read(source).items():
        texts = [rows.column(name) for name in columns]
        parts[role] = [
            (*(encode(str(t), length) for t in row), str(label))
            for *row, label in zip(*texts, rows.column("label"))
            if not any(map(data.missing, (*row, label)))
        ]
    return _named(_split(seed, parts, train, test), 257, length, Path(source).name)


def _split(
    seed: int, parts: Mapping[str, list[tuple[Any, ...]]], train: int, test: int
) -> dict[str, list[Any]]:
    """Rows by role -> at most so many to train and to test on, drawn by the seed. Undivided rows are cut 4 to 1."""
    rng = np.random.default_rng(seed)
    drawn = {role: _some(rng, rows, len(rows)) for role, rows in parts.items()}
    if "" in drawn:
        cut = len(drawn[""]) * 4 // 5
        found = {"train": drawn[""][:cut], "test": drawn[""][cut:]}
    else:
        found = {"train": drawn.get("train", []), "test": drawn.get("verify") or drawn.get("search", [])}
    if not found["train"] or not found["test"]:
        there = ", ".join(f"{len(rows)} of {role or 'no split'}" for role, rows in drawn.items())
        raise DataError(f"there must be rows to train and to test on; there are {there}")
    return {"train": found["train"][:train], "test": found["test"][:test]}


def _named(split: Mapping[str, list[tuple[Any, ...]]], vocab: int, length: int, about: str) -> Split:
    """Rows whose last entry is the name of a label."""
    names = sorted({row[-1] for rows in split.values() for row in rows})
    if len(names) < 2:
        raise DataError(f"{about}: there is one label alone, {names[0]!r}")
    number = {name: i for i, name in enumerate(names)}
    train, test = (_sequences([(*row[:-1], number[row[-1]]) for row in split[p]]) for p in ("train", "test"))
    return Split(train, test, classes=len(names), vocab=vocab, length=length, about=about)


def _sequences(rows: Sequence[tuple[Any, ...]]) -> Sequences:
    kept = [row for row in rows if all(len(t) for t in row[:-1])]  # what is empty says nothing
    other = [row[1] for row in kept] if kept and len(kept[0]) == 3 else None
    return Sequences([row[0] for row in kept], np.array([row[-1] for row in kept], np.int64), other)


def _grey(picture: Any, side: int) -> Numbers:
    grey = np.asarray(picture) @ _GREY
    times = grey.shape[0] // side
    if grey.shape != (side * times, side * times) or times < 1:
        raise DataError(
            f"a picture of {grey.shape[0]} x {grey.shape[1]} does not make one of {side} x {side}"
        )
    small = grey.reshape(side, times, side, times).mean((1, 3))
    return np.rint(small).astype(np.uint16).ravel() + 1


def _generated(make: Callable[..., Split]) -> Callable[..., Split]:
    return lambda seed, source, **sizes: make(seed, **sizes)


_FEW = {"train": 4000, "test": 1000}
ARENA: dict[str, ArenaTask] = {
    "listops": ArenaTask(
        _generated(listops), "the outcome of nested lists of digits",
        {"small": {**_FEW, "low": 31, "high": 129, "depth": 4, "arguments": 10},
         "paper": {"train": 96_000, "test": 2000, "low": 500, "high": 2000, "depth": 10, "arguments": 10}},
        sourced=False,
    ),
    "text": ArenaTask(
        text, "classification of bytes",
        {"small": {**_FEW, "length": 256}, "paper": {"length": 4000, "train": 25_000, "test": 25_000}},
        needs={"paper": "long texts, as IMDb's reviews"},
    ),
    "retrieval": ArenaTask(
        retrieval, "do two texts of bytes belong together",
        {"small": {**_FEW, "length": 256}, "paper": {"length": 4000, "train": 147_086, "test": 17_437}},
        needs={"paper": "pairs of long texts, as papers of the ACL Anthology"},
    ),
    "image": ArenaTask(
        image, "grey pixels, one after the other",
        {"small": {"side": 16, "train": 8000, "test": 2000}, "paper": {"side": 32, "train": 50_000, "test": 10_000}},
        needs={"paper": "CIFAR-10, or other pictures of 32 x 32"},
    ),
    "pathfinder": ArenaTask(
        _generated(pathfinder), "are two dots joined by a dashed curve",
        {"small": {**_FEW, "size": 16}, "paper": {"size": 32, "train": 160_000, "test": 20_000}}, sourced=False,
    ),
    "path-x": ArenaTask(
        _generated(pathfinder), "the same on a large grid",
        {"small": {**_FEW, "size": 32}, "paper": {"size": 128, "train": 160_000, "test": 20_000}}, sourced=False,
    ),
}  # fmt: skip
