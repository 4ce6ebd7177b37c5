"""Text as rows of token numbers on disk, and windows of it in an order that depends on the seed alone."""

from __future__ import annotations

import functools
import gzip
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightformers.bundle import Batch
from lightformers.errors import DataError
from lightformers.files import read_json, replacing, write_json
from lightformers.pretrain import tokenizers
from lightformers.tasks import data as files

CHUNK = 1 << 20  # characters of running text that are tokenized at a time, up to the end of a line
SAMPLE = 200 << 20  # characters that a tokenizer is trained on, at most
HELD_OUT = 0.05  # of the text, from its end, where no other is given to validate on


@dataclass(frozen=True)
class Corpus:
    """Tokens of a text to learn from and of one to validate on, memory-mapped.

    train, valid: (tokens,) whole numbers. valid_bytes: UTF-8 length of the validation text. tokenizer: of transformers.
    """

    train: np.ndarray
    valid: np.ndarray
    valid_bytes: int
    tokenizer: Any
    fingerprint: str


@dataclass(frozen=True)
class Windows:
    """Batches of `rows` windows of `length` tokens and of what follows each token.

    An epoch goes through the tokens once, in windows that begin at an offset of their own in every epoch, shuffled.
    `batch(position)` is a pure function of (seed, position), so that training resumes without replaying and several
    processes share the batches out.
    """

    tokens: np.ndarray
    length: int
    rows: int
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.tokens) < 2 * self.length + 1:
            raise DataError(
                f"the text has {len(self.tokens):,} tokens; windows of {self.length} need {2 * self.length + 1:,} at "
                "least: give more text or a smaller --length"
            )

    @property
    def per_epoch(self) -> int:
        """Windows of an epoch."""
        return (len(self.tokens) - 1 - self.length) // self.length

    def batch(self, position: int) -> Batch:
        first = position * self.rows
        starts = [self._start(first + row) for row in range(self.rows)]
        rows = np.stack([self.tokens[s : s + self.length + 1] for s in starts]).astype(np.int64)
        found = torch.from_numpy(rows)
        return Batch({"input_ids": found[:, :-1].contiguous()}, {"following": found[:, 1:].contiguous()})

    def _start(self, number: int) -> int:
        epoch, place = divmod(number, self.per_epoch)
        offset, order = _shuffled(self.seed, epoch, self.length, self.per_epoch)
        return offset + int(order[place]) * self.length


@functools.lru_cache(maxsize=2)
def _shuffled(seed: int, epoch: int, length: int, count: int) -> tuple[int, np.ndarray]:
    rng = np.random.default_rng((seed, epoch))
    return int(rng.integers(length)), rng.permutation(count)


def in_order(tokens: np.ndarray, length: int, rows: int, most: int | None = None) -> Iterator[Batch]:
    """The text once, window after window, without overlap; the last window is left out if it is not full.

    most: windows, spread evenly, where there are more.
    """
    count = (len(tokens) - 1) // length
    chosen = (
        np.arange(count) if most is None or count <= most else np.linspace(0, count - 1, most).astype(int)
    )
    for start in range(0, len(chosen), rows):
        part = [tokens[c * length : c * length + length + 1] for c in chosen[start : start + rows]]
        found = torch.from_numpy(np.stack(part).astype(np.int64))
        yield Batch({"input_ids": found[:, :-1]}, {"following": found[:, 1:]})


def prepare(
    folder: Path, text: str | Path, valid: str | Path | None = None, column: str = "text", tokenizer: Any = "bpe",
    vocabulary: int = 4096, length: int = 256,
) -> Corpus:  # fmt: skip
    """Tokenize `text` into `folder`, where it is found again by the next call with the same text and tokenizer.

    text, valid: txt (also .gz), a folder of these, or a table with a column of documents. tokenizer: "bpe", "bytes",
    "characters" (trained on the text), the folder or hub name of one, or a tokenizer of transformers. Every document
    ends with the tokenizer's end token, if it has one. Raises DataError and UserError.
    """
    pieces = functools.partial(documents, column=column)
    key = _key(text, valid, column, tokenizer, vocabulary)
    place = folder / "tokens"
    if not ((place / "corpus.json").is_file() and read_json(place / "corpus.json")["key"] == key):
        made = tokenizer
        if isinstance(tokenizer, (str, Path)):
            made = _loaded(tokenizer)
            if made is None:
                sample = itertools.accumulate(
                    _texts(pieces(text)), lambda seen, t: (seen[0] + len(t), t), initial=(0, "")
                )
                known = (t for count, t in itertools.takewhile(lambda s: s[0] <= SAMPLE, sample) if t)
                made = tokenizers.made(str(tokenizer), known, vocabulary, length)
        with replacing(place, directory=True) as new:
            size = _write(new / "train.npy", made, pieces(text))
            if valid is not None:
                held = _write(new / "valid.npy", made, pieces(valid))
                bytes_held = sum(len(t.encode()) for t in _texts(pieces(valid)))
            else:
                size, held, bytes_held = _split(new, made, size)
            made.save_pretrained(new / "tokenizer")
            digest = hashlib.sha256(np.load(new / "train.npy", mmap_mode="r")[:size].tobytes()).hexdigest()
            write_json(
                new / "corpus.json",
                {"key": key, "train": size, "valid": held, "valid_bytes": bytes_held, "sha256": digest},
            )
    from transformers import AutoTokenizer

    noted = read_json(place / "corpus.json")
    train, other = (np.load(place / f"{name}.npy", mmap_mode="r") for name in ("train", "valid"))
    words = AutoTokenizer.from_pretrained(place / "tokenizer")
    return Corpus(train[: noted["train"]], other, noted["valid_bytes"], words, noted["sha256"])


def documents(text: str | Path, column: str = "text") -> Iterator[Iterator[str]]:
    """Every document as its pieces: a txt file by about CHUNK characters, a row of a table as a whole."""
    path = Path(text)
    running = sorted(p for p in path.rglob("*") if _is_text(p)) if path.is_dir() else [path] * _is_text(path)
    if running:
        missing = [p for p in running if not p.is_file()]
        if missing:
            raise DataError(f"there is no file {missing[0]}")
        yield from (_lines(file) for file in running)
        return
    for rows in files.read(text).values():
        yield from (iter([str(value)]) for value in rows.column(column, "text") if not files.missing(value))


def _is_text(path: Path) -> bool:
    return path.name.endswith((".txt", ".txt.gz", ".text"))


def _lines(file: Path) -> Iterator[str]:
    opened: Any = gzip.open if file.name.endswith(".gz") else open
    with opened(file, "rt", encoding="utf-8", newline="") as stream:
        try:
            while chunk := stream.read(CHUNK):
                yield chunk + stream.readline()
        except UnicodeDecodeError as error:
            raise DataError(f"{file} is not UTF-8 ({error.reason}): convert it first") from error


def _texts(pieces: Iterable[Iterable[str]]) -> Iterator[str]:
    return itertools.chain.from_iterable(pieces)


def _loaded(name: str | Path) -> Any:
    """The tokenizer of a folder or a hub name; None for a kind that is to be trained."""
    from transformers import AutoTokenizer

    if str(name) in tokenizers.KINDS:
        return None
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        kinds = ", ".join(tokenizers.KINDS)
        raise DataError(f"--tokenizer {name} is none of {kinds}, nor a folder or hub name of one") from error


def _write(path: Path, tokenizer: Any, pieces: Iterable[Iterable[str]]) -> int:
    """Tokens of all documents as an array file; returns their number. Raises DataError where there are none."""
    kind = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    raw, count = path.with_suffix(".raw"), 0
    with open(raw, "wb") as file:
        for document in pieces:
            for piece in document:
                count += _put(
                    file, kind, tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
                )
            count += _put(file, kind, end)
    if count <= 1:
        raise DataError("the text is empty: there is nothing to learn from")
    np.save(path, np.memmap(raw, dtype=kind, mode="r"))
    raw.unlink()
    return count


def _put(file: Any, kind: Any, numbers: Sequence[int]) -> int:
    file.write(np.asarray(numbers, dtype=kind).tobytes())
    return len(numbers)


def _split(place: Path, tokenizer: Any, size: int) -> tuple[int, int, int]:
    """The end of the text, held out: (tokens to learn from, tokens held out, their bytes)."""
    tokens = np.load(place / "train.npy", mmap_mode="r")
    start = int(size * (1 - HELD_OUT))
    held = np.asarray(tokens[start:])
    np.save(place / "valid.npy", held)
    size_of = len(tokenizer.decode(held.tolist(), skip_special_tokens=True).encode())
    return start, len(held), max(size_of, 1)


def _key(
    text: str | Path, valid: str | Path | None, column: str, tokenizer: Any, vocabulary: int
) -> dict[str, Any]:
    """What the tokens on disk were made from; a file counts by size and time, so that terabytes are not read again."""
    named = str(tokenizer) if isinstance(tokenizer, (str, Path)) else hashlib.sha256(
        repr(sorted(tokenizer.get_vocab().items())).encode()
    ).hexdigest()  # fmt: skip
    return {
        "text": _stamp(text),
        "valid": _stamp(valid),
        "column": column,
        "tokenizer": named,
        "vocabulary": vocabulary,
    }


def _stamp(text: str | Path | None) -> list[Any]:
    if text is None:
        return []
    path = Path(text)
    found = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path] * path.is_file()
    return [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in found] or [[str(text)]]
