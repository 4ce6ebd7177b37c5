"""What tables teach without labels: cells that were hidden, and parts of a row that belong together (arXiv 2307.09249)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightformers.bundle import Batch
from lightformers.errors import DataError, UserError
from lightformers.processors import word_pieces
from lightformers.processors.schema import Row, marked, missing
from lightformers.processors.unitabe import RECOVER, Cell, UniTabEProcessor, padded

MASKING, CONTRAST = "masking", "contrast"
#: How many cells are hidden: up to this absolute value of a standard normal number so many, beyond the last one cell.
SPANS = ((1.0, 1), (1.25, 2), (1.5, 3), (1.75, 4), (2.0, 5), (2.5, 7))


def hidden_cells(normal: float, columns: int) -> int:
    """The number of cells to hide in a row of so many columns: at least one, at most half of them."""
    found = next((count for limit, count in SPANS if abs(normal) <= limit), 1)
    return max(1, min(found, columns // 2))


def parts(columns: int, count: int, overlap: float = 0.5) -> list[list[int]]:
    """Columns in `count` contiguous parts, each with the first ones of the next: a share `overlap` of the first part's
    size, rounded up; the last one has the last ones of the part before. No part is empty: fewer columns, fewer parts."""
    count = min(count, columns)
    cut = [list(map(int, part)) for part in np.array_split(np.arange(columns), count)]
    shared = math.ceil(len(cut[0]) * overlap)
    if count < 2 or not shared:
        return cut
    return [*(a + b[:shared] for a, b in pairwise(cut)), cut[-1] + cut[-2][-shared:]]


def contrast(rows: Tensor, temperature: float = 10.0) -> Tensor:
    """(2 n, width): n rows by one of their parts, then the same rows by another. -> a number.

    For each, the negative log of the share that its other part has among all others, by exp(dot product / temperature).
    """
    scores = rows.float() @ rows.float().T / temperature
    scores = scores.masked_fill(torch.eye(len(rows), dtype=torch.bool, device=rows.device), -torch.inf)
    partner = torch.arange(len(rows), device=rows.device).roll(len(rows) // 2)
    return F.cross_entropy(scores, partner)


def recovery(answers: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood of the tokens: (batch, n, vocabulary), (batch, n) with -1 at padding."""
    return F.cross_entropy(answers.float().flatten(0, 1), targets.flatten(), ignore_index=-1)


def given(answers: Sequence[Sequence[int]], processor: UniTabEProcessor) -> tuple[Tensor, Tensor]:
    """Answers -> what the decoder reads, begin first, and what it shall say, end last, padded with -1."""
    begin, end = processor.token(word_pieces.BEGIN), processor.token(word_pieces.END)
    read = padded([(begin, *a) for a in answers], processor.token(word_pieces.PAD))
    return read, padded([(*a, end) for a in answers], -1)


def hide(cells: Sequence[Cell], places: Sequence[int], processor: UniTabEProcessor) -> list[Cell]:
    """The cells with those at `places` replaced by the mask."""
    mask = (processor.token(word_pieces.MASK),)
    gone = set(places)
    return [cell._replace(value_ids=mask) if i in gone else cell for i, cell in enumerate(cells)]


@dataclass
class Corpus:
    """Batches for pre-training without end: one table and one objective each, drawn by (seed, position).

    tables: rows that lack values in every cell are passed over. weights: of the objectives; contrast needs a table of two
    columns and two rows. A table is drawn by the square root of its rows, so that large ones don't crowd out the others.
    temperature, partitions, overlap: of the contrast. Raises DataError where nothing is left.
    """

    tables: Sequence[Sequence[Row]]
    processor: UniTabEProcessor
    size: int = 32
    seed: int = 0
    weights: Mapping[str, float] | None = None
    partitions: int = 4
    overlap: float = 0.5

    def __post_init__(self) -> None:
        self._weights = {MASKING: 1.0, CONTRAST: 1.0} | dict(self.weights or {})
        if set(self._weights) != {MASKING, CONTRAST} or min(self._weights.values()) < 0:
            raise UserError(f"weights are numbers for {MASKING} and {CONTRAST}")
        if not any(self._weights.values()) or self.size < 2 or self.partitions < 2:
            raise UserError("pre-training needs an objective, batches of two rows and two parts or more")
        self._cells: dict[tuple[int, int], list[Cell]] = {}
        self._rows = [[r for r, row in enumerate(rows) if _filled(row)] for rows in self.tables]
        if not any(self._rows):
            raise DataError("no table has a row with a value")
        share = np.sqrt([len(rows) for rows in self._rows])
        self._shares = share / share.sum()

    def batch(self, position: int) -> Batch:
        drawn = np.random.default_rng((self.seed, position))
        table = int(drawn.choice(len(self.tables), p=self._shares))
        there = self._rows[table]
        rows = [
            self._at(table, int(r)) for r in drawn.choice(there, min(self.size, len(there)), replace=False)
        ]
        paired = len(rows) > 1 and min(map(len, rows)) > 1
        chance = self._weights[CONTRAST] / sum(self._weights.values()) if paired else 0.0
        return self._contrast(rows, drawn) if drawn.random() < chance else self._masking(rows, drawn)

    def _at(self, table: int, row: int) -> list[Cell]:
        if (table, row) not in self._cells:
            self._cells[table, row] = self.processor.cells(self.tables[table][row])
        return self._cells[table, row]

    def _masking(self, rows: Sequence[list[Cell]], drawn: np.random.Generator) -> Batch:
        shown, prompts, answers = [], [], []
        for cells in rows:
            known = [i for i, cell in enumerate(cells) if not cell.missing]
            asked = int(drawn.choice(known))
            others = drawn.permutation([i for i in range(len(cells)) if i != asked])
            count = hidden_cells(float(drawn.standard_normal()), len(cells))
            shown.append(self.processor.arrays(hide(cells, [asked, *others[: count - 1]], self.processor)))
            prompts.append(self.processor.prompt(RECOVER, cells[asked].name))
            answers.append(cells[asked].value_ids)
        inputs, _ = self.processor.pad_encoded(shown)
        inputs["prompt_ids"] = padded(prompts, self.processor.token(word_pieces.PAD))
        inputs["answer_ids"], targets = given(answers, self.processor)
        return Batch(inputs, {"answer": targets})

    def _contrast(self, rows: Sequence[list[Cell]], drawn: np.random.Generator) -> Batch:
        count = min(self.partitions, *map(len, rows))
        first, second = drawn.permutation(count)[:2]
        views = [
            self.processor.arrays([cells[i] for i in parts(len(cells), count, self.overlap)[which]])
            for which in (first, second)
            for cells in rows
        ]
        return Batch(self.processor.pad_encoded(views)[0], {})


def _filled(row: Row) -> bool:
    return any(not missing(cell) and not marked(cell) for cell in row.values())


def objective(module: Any, batch: Batch) -> Tensor:
    """The loss of a batch of `Corpus`: recovery where there are answers, else contrast."""
    out = module(**batch.inputs)
    return recovery(out.answers, batch.targets["answer"]) if "answer" in batch.targets else contrast(out.row)
