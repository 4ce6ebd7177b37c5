"""Embedding: retrieval over pairs (MRR), or agreement with the original over plain texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lightformers.errors import DataError, ModelError
from lightformers.stats import METRICS, Metric, Scores
from lightformers.tasks import common, data
from lightformers.tasks.splits import assemble, named

if TYPE_CHECKING:
    from lightformers.bundle import Batch, Bundle, Example

_PAIR_COLUMNS = (("query", "document"), ("anchor", "positive"), ("question", "answer"))


@dataclass
class Embedding:
    """Texts to vectors that are compared by cosine.

    Pairs, {"query", "document"}: the metric is MRR. Each query is ranked against its own document and a fixed
    pool of others of the same split, `pool` candidates in all (all documents if there are fewer). The rank is
    the number of candidates at least as similar as the right one, so ties count against the model; other
    copies of the right document are left out. Plain texts, {"text"}: the metric is agreement, the mean cosine
    to the original's vectors (1 for the original by construction); call `set_reference` with its runner first.

    pool: candidates a query. scale: inverse temperature of the loss on pairs. seed: of pools and samples.
    """

    splits: dict[str, list[Example]]
    pairs: bool = True
    pool: int = 1000
    scale: float = 20.0
    seed: int = 0
    warnings: list[str] = field(default_factory=list)
    name: ClassVar[str] = "embedding"
    labels: ClassVar[None] = None

    def __post_init__(self) -> None:
        self._reference: dict[str, np.ndarray] = {}

    @classmethod
    def from_file(
        cls, path: str | Path, query: str | None = None, document: str | None = None, text: str | None = None,
        group: str | None = None, pool: int = 1000, seed: int = 0,
    ) -> Embedding:  # fmt: skip
        """Read csv, tsv, jsonl, json, parquet or txt (one text a line), a folder of these, or a hub name.

        query, document: columns of the pairs; found by themselves under the usual names (query/document,
        anchor/positive, question/answer). text: the column of plain texts. group: the column of what belongs
        together (a page, a module): splits and bootstrap keep it whole. Raises DataError.
        """
        parts, notes, pairs = {}, [], True
        for name, rows in data.read(path).items():
            columns = _columns(rows, query, document, text)
            pairs = len(columns) == 2
            names = ("query", "document") if pairs else ("text",)
            parts[name], empty = data.examples(rows, dict(zip(names, columns)), group)
            if empty:
                notes.append(f"{rows.source}: {empty} rows without text were left out")
        task = cls.from_examples(parts.get("", parts), pool=pool, seed=seed)
        task.warnings[:0] = notes
        return task

    @classmethod
    def from_examples(
        cls, examples: Mapping[str, Sequence[Example]] | Sequence[Example], pool: int = 1000, seed: int = 0
    ) -> Embedding:
        """From {"query", "document"} or {"text"} examples: one list (split here), or lists by split name."""
        parts = named(examples)
        first = next((e for rows in parts.values() for e in rows), None)
        pairs = first is not None and "query" in first
        needed = ("query", "document") if pairs else ("text",)
        for rows in parts.values():
            common.require(rows, needed)
        splits, notes = assemble(parts, lambda e: [(k, common.folded(e[k])) for k in needed], seed)
        return cls(splits, pairs, pool, seed=seed, warnings=notes)

    @property
    def metric(self) -> Metric:
        return METRICS["mrr" if self.pairs else "agreement"]

    @cached_property
    def fingerprint(self) -> str:
        return common.fingerprint(self.splits, {"task": self.name, "pool": self.pool, "seed": self.seed})

    def texts(self, split: str) -> list[Example]:
        """Every text of a split as an example to encode; of pairs, query and document by turns."""
        return _flat(self.splits[split]) if self.pairs else [{"text": e["text"]} for e in self.splits[split]]

    def reduce(self, outputs: Mapping[str, Any], batch: Batch) -> list[np.ndarray]:
        """One float32 vector per example."""
        if "embedding" not in outputs:
            raise ModelError(
                f"the model gives {sorted(outputs)} and no embedding: load it with task='embedding'"
            )
        return list(torch.as_tensor(outputs["embedding"]).float().numpy())

    def set_reference(self, runner: common.Runner, splits: Sequence[str] = ("search", "verify")) -> None:
        """Keep the original's vectors, which agreement is measured against. Pairs need none."""
        if not self.pairs:
            for split in splits:
                self._reference[split] = np.stack(runner(self.texts(split), self.reduce))

    def evaluate(self, runner: common.Runner, split: str = "verify", limit: int | None = None) -> Scores:
        """(reciprocal rank, 1) or (cosine to the original, 1) per example. `limit` also bounds the candidates."""
        index = common.take(self.splits, split, limit, self.seed)
        chosen = [self.splits[split][i] for i in index]
        if self.pairs:
            values = self._reciprocal_ranks(runner, chosen)
        else:
            values = self._agreement(runner, chosen, split, index)
        return Scores(np.stack([values, np.ones(len(values))], 1), self.metric, common.groups(chosen))

    def _agreement(
        self, runner: common.Runner, chosen: list[Example], split: str, index: np.ndarray
    ) -> np.ndarray:
        if split not in self._reference:
            raise DataError(
                "agreement needs the original: call task.set_reference(runner of the original) first"
            )
        new, old = _unit(np.stack(runner(chosen, self.reduce))), _unit(self._reference[split][index])
        if new.shape != old.shape:
            raise ModelError(
                f"the model's vectors hold {new.shape[1]} numbers, the original's {old.shape[1]}: agreement cannot "
                "compare them. Keep the width, or give pairs (query, document), which need no common space"
            )
        return np.asarray((new * old).sum(1))

    def _reciprocal_ranks(self, runner: common.Runner, chosen: list[Example]) -> np.ndarray:
        unique: dict[tuple[str, str], int] = {}
        rows = [(unique.setdefault((e["role"], e["text"]), len(unique))) for e in _flat(chosen)]
        # One call, so that the runner's batching sees all lengths at once.
        vectors = _unit(np.stack(runner([{"text": t, "role": r} for r, t in unique], self.reduce)))
        pairs = np.array(rows).reshape(-1, 2)
        return 1.0 / ranks(vectors, pairs[:, 0], pairs[:, 1], self.pool, self.seed)

    def collate(self, bundle: Bundle, examples: Sequence[Example], seed: int = 0) -> Batch:
        """Training batch: of pairs, first all queries, then all documents (2n rows)."""
        if examples and "query" in examples[0]:
            flat = _flat(examples)
            examples = flat[0::2] + flat[1::2]
        return bundle.collate(examples)

    def loss(self, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Contrastive loss with in-batch negatives (Henderson et al., 2017, arXiv 1705.00652) on a `collate`d batch.

        Copies of a query's own document elsewhere in the batch are no negatives.
        """
        if not self.pairs:
            raise DataError("plain texts hold no labels to learn from: give pairs, or train without labels")
        vectors = torch.nn.functional.normalize(outputs["embedding"].float(), dim=-1)
        queries, documents = vectors.chunk(2)
        scores = self.scale * queries @ documents.T
        ids = [tuple(e["input_ids"]) for e in batch.targets["examples"][len(queries) :]]
        numbers = {key: i for i, key in enumerate(ids)}
        which = torch.tensor([numbers[key] for key in ids], device=scores.device)
        same = (which[:, None] == which[None]) & ~torch.eye(
            len(which), dtype=torch.bool, device=scores.device
        )
        target = torch.arange(len(which), device=scores.device)
        return torch.nn.functional.cross_entropy(scores.masked_fill(same, float("-inf")), target)

    def training_examples(self, use_labels: bool) -> list[Example]:
        """Pairs for `collate` with labels, single texts without."""
        if use_labels and not self.pairs:
            raise DataError(
                "plain texts hold no labels to learn from: give pairs, or leave --use-labels away"
            )
        return list(self.splits["train"]) if use_labels else self.texts("train")

    def calibration(self, n: int, seed: int = 0) -> list[Example]:
        return common.draw(self.texts("train"), n, seed, "calibration texts")

    def workload(self, n: int, seed: int = 0, lengths: common.Lengths = None) -> list[Example]:
        """Queries and documents of the search split, mixed, in arrival order. lengths: see `common.with_lengths`."""
        return common.with_lengths(self.texts("search"), n, seed, lengths)

    def check(self, bundle: Bundle) -> None:
        """ModelError where the bundle gives no vectors; long texts become a warning."""
        common.check_head(bundle, self.name)
        if bundle.pooling is None:
            raise ModelError(
                "the model has no pooling, so it gives no text vectors: load it with task='embedding'"
            )
        common.note(self.warnings, common.truncated(bundle, self.texts("verify")))


def ranks(
    vectors: np.ndarray, queries: np.ndarray, documents: np.ndarray, pool: int, seed: int, chunk: int = 256
) -> np.ndarray:
    """Rank of each query's own document among `pool` candidates.

    vectors: (m, d), unit length. queries, documents: (n,) rows of `vectors`. Pairs stand on a circle in an order
    drawn once by `seed`; the candidates of a pair are its own document and those of the pool - 1 pairs that
    follow, so that every document is a candidate equally often and no table of pools is kept. NaN ranks last.
    Memory: chunk * (chunk + pool) similarities.
    """
    n = len(queries)
    pool = min(pool, n)
    order = np.random.default_rng(seed).permutation(n)
    out = np.empty(n)
    for start in range(0, n, chunk):
        rows = order[start : start + chunk]
        window = documents[order[np.arange(start, start + len(rows) + pool - 1) % n]]
        similarity = vectors[queries[rows]] @ vectors[window].T
        step = similarity.strides
        band = np.lib.stride_tricks.as_strided(  # row i: columns i .. i + pool - 1
            similarity, (len(rows), pool), (step[0] + step[1], step[1]), writeable=False
        )
        candidates = np.lib.stride_tricks.sliding_window_view(window, pool)
        same = candidates == documents[rows][:, None]
        same[:, 0] = False  # the right one itself counts
        out[rows] = (~(band < band[:, :1]) & ~same).sum(1)
    return out


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def _flat(pairs: Sequence[Example]) -> list[Example]:
    return [{"text": pair[role], "role": role} for pair in pairs for role in ("query", "document")]


def _columns(rows: data.Rows, query: str | None, document: str | None, text: str | None) -> tuple[str, ...]:
    if text and (query or document):
        raise DataError("give either query and document (pairs) or text (plain texts), not both")
    if bool(query) != bool(document):
        raise DataError(f"pairs need both columns: --{'document' if query else 'query'} is missing")
    if text:
        return (text,)
    if query and document:
        return query, document
    for pair in _PAIR_COLUMNS:
        if set(pair) <= set(rows.columns):
            return pair
    if "text" not in rows.columns:
        there = ", ".join(map(repr, rows.columns))
        raise DataError(
            f"{rows.source}: columns there: {there}. Name two with --query and --document (pairs), or one with --text"
        )
    return ("text",)
