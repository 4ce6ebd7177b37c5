"""Token classification: a tag for every word, scored by whole entities."""

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
from lightformers.tasks import common, conll, data
from lightformers.tasks import labels as label_names
from lightformers.tasks.labelled import Labelled
from lightformers.tasks.splits import assemble, named

if TYPE_CHECKING:
    from lightformers.bundle import Batch, Bundle, Example

_WORD_COLUMNS, _TAG_COLUMNS = ("tokens", "words"), ("tags", "ner_tags", "labels", "ner")


@dataclass
class TokenClassification(Labelled):
    """Examples {"words", "labels": one number a word}; the metric is entity-level F1, or accuracy of the tags.

    A word's tag is predicted at its first sub-token. Entities are read from IOB2 tags strictly and count only
    if span and type are right; words beyond the model's length count as O. labels: the name of each number.
    """

    splits: dict[str, list[Example]]
    labels: tuple[str, ...]
    kind: str = "f1"
    seed: int = 0
    warnings: list[str] = field(default_factory=list)
    name: ClassVar[str] = "token-classification"
    answer: ClassVar[str] = "labels"

    @classmethod
    def from_file(
        cls, path: str | Path, text: str | None = None, label: str | None = None, group: str | None = None,
        metric: str = "f1", seed: int = 0,
    ) -> TokenClassification:  # fmt: skip
        """Read CoNLL columns (.conll, .iob, .txt), or jsonl, parquet or a hub data set.

        text: column of the words (a list) or of the text. label: column of the tags (a list, one a word), or of
        the spans ([{"start", "end", "label"}], characters). Found by themselves under the usual names.
        Raises DataError naming the row whose words and tags differ in number, whose spans overlap, ...
        """
        parts: dict[str, list[Example]] = {}
        torn = 0
        for name, rows in data.read(path, conll=True).items():
            parts[name], cut = _examples(rows, text, label, group)
            torn += cut
        task = cls.from_examples(parts.get("", parts), metric, seed)
        if torn:
            task.warnings.append(f"{torn} spans cut through a word; they were widened to whole words")
        return task

    @classmethod
    def from_examples(
        cls, examples: Mapping[str, Sequence[Example]] | Sequence[Example], metric: str = "f1", seed: int = 0
    ) -> TokenClassification:
        """From {"words", "labels"} examples (names or numbers): one list (split here), or lists by split name."""
        if metric not in ("f1", "accuracy"):
            raise DataError(f"unknown metric {metric!r}; metrics: f1, accuracy")
        parts = named(examples)
        repaired, tagged = 0, {}
        for name, rows in parts.items():
            common.require(rows, ("words", "labels"))
            tagged[name], fixed = _tagged(rows, name, metric)
            repaired += fixed
        labels = label_names.order(t for rows in tagged.values() for e in rows for t in e["labels"])
        label_names.several(labels, "the data")
        index = {tag: i for i, tag in enumerate(labels)}
        numbered: dict[str, list[Example]] = {
            name: [{**e, "labels": [index[t] for t in e["labels"]]} for e in rows]
            for name, rows in tagged.items()
        }
        splits, notes = assemble(numbered, lambda e: [tuple(e["words"])], seed)
        if repaired:
            notes.append(
                f"{repaired} examples had entities that start with I-; read as IOB1, they now start with B-"
            )
        return cls(splits, labels, metric, seed, notes)

    @property
    def metric(self) -> Metric:
        return METRICS[self.kind]

    @cached_property
    def fingerprint(self) -> str:
        return common.fingerprint(
            self.splits, {"task": self.name, "labels": self.labels, "metric": self.kind}
        )

    def reduce(self, outputs: Mapping[str, Any], batch: Batch) -> list[np.ndarray]:
        """Per example the predicted tag of each word that the model saw; -1 where logits are not finite."""
        if "logits" not in outputs:
            raise ModelError(f"the model gives {sorted(outputs)} and no logits: it has no tagging head")
        logits = torch.as_tensor(outputs["logits"]).float()
        tags = logits.argmax(-1).masked_fill(~torch.isfinite(logits).all(-1), -1).numpy()
        starts = batch.targets["word_starts"].numpy()
        out = []
        for row, start in zip(tags, starts):
            places = np.flatnonzero(start >= 0)
            words = np.full(start.max(initial=-1) + 1, -1, dtype=np.int64)
            words[start[places]] = row[places]
            out.append(words)
        return out

    def evaluate(self, runner: common.Runner, split: str = "verify", limit: int | None = None) -> Scores:
        """(tp, fp, fn) of entities, or (right, all) words, per example."""
        chosen = [self.splits[split][i] for i in common.take(self.splits, split, limit, self.seed)]
        count = self._entities if self.kind == "f1" else _words
        stats = [count(p, e["labels"]) for p, e in zip(runner(chosen, self.reduce), chosen)]
        return Scores(np.array(stats, dtype=float), self.metric, common.groups(chosen))

    def _entities(self, predicted: np.ndarray, right: Sequence[int]) -> tuple[int, int, int]:
        names = [self.labels[p] if p >= 0 else "O" for p in predicted] + ["O"] * (len(right) - len(predicted))
        found = conll.entities(_plain(names))
        wanted = conll.entities(conll.iob2([self.labels[r] for r in right])[0])
        return len(found & wanted), len(found - wanted), len(wanted - found)

    def loss(self, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Cross entropy at the first sub-token of each word."""
        logits, starts = outputs["logits"].float(), batch.targets["word_starts"]
        rows, places = (starts >= 0).nonzero(as_tuple=True)
        words = starts[rows, places].tolist()
        examples = batch.targets["examples"]
        right = [examples[row]["labels"][word] for row, word in zip(rows.tolist(), words)]
        return torch.nn.functional.cross_entropy(
            logits[rows, places], torch.tensor(right, device=logits.device)
        )

    def workload(self, n: int, seed: int = 0, lengths: common.Lengths = None) -> list[Example]:
        """Sentences of the search split in arrival order. lengths: see `common.with_lengths`."""
        return common.with_lengths(self.splits["search"], n, seed, lengths, "words")

    def check(self, bundle: Bundle) -> None:
        """Take over the model's numbers of the tags; DataError where tags and head do not match."""
        common.check_head(bundle, self.name)
        _ = self.fingerprint  # of the data as they were read, whatever the model calls the tags
        moved, self.labels, note = label_names.renumber(self.labels, bundle)
        self.splits = {
            split: [{**e, "labels": [moved[t] for t in e["labels"]]} for e in rows]
            for split, rows in self.splits.items()
        }
        common.note(self.warnings, note)
        if bundle.processor is not None and not getattr(bundle.processor, "is_fast", True):
            raise ModelError(
                "the model has a slow tokenizer, which does not tell words apart: a fast one is needed"
            )
        common.note(self.warnings, common.truncated(bundle, self.splits["verify"]))


def _plain(tags: Sequence[str]) -> list[str]:
    """Predicted BIOES or BILOU tags as IOB2; nothing is repaired: prediction is scored as it is."""
    return [
        conll.iob2([t])[0][0] if t[:2] in ("S-", "U-") else f"I-{t[2:]}" if t[:2] in ("E-", "L-") else t
        for t in tags
    ]


def _words(predicted: np.ndarray, right: Sequence[int]) -> tuple[int, int]:
    return int((predicted == np.array(right[: len(predicted)])).sum()), len(right)


def _tagged(rows: Sequence[Example], part: str, metric: str) -> tuple[list[dict[str, Any]], int]:
    """Labels as names, IOB2 where entities are scored; and how many examples had to be repaired."""
    out, repaired = [], 0
    for i, example in enumerate(rows):
        tags = [label_names.label_name(t) for t in example["labels"]]
        where = f"example {i}{' of ' + part if part else ''}"
        if len(tags) != len(example["words"]):
            raise DataError(f"{where}: {len(example['words'])} words, but {len(tags)} labels")
        if None in tags:
            raise DataError(f"{where}: word {tags.index(None)} has no label")
        names = [str(t) for t in tags]
        if metric == "f1" and not any(t.isdigit() for t in names):
            names, fixed = conll.iob2(names)
            repaired += fixed
        out.append({**example, "labels": names})
    return out, repaired


def _examples(
    rows: data.Rows, text: str | None, label: str | None, group: str | None
) -> tuple[list[Example], int]:
    words = text or _first(rows, (*_WORD_COLUMNS, "text"), "text")
    tags = label or _first(
        rows, ("spans", "entities") if words == "text" else (*_TAG_COLUMNS, "spans"), "label"
    )
    groups = rows.column(group, "group") if group else None
    out: list[Example] = []
    torn = 0
    for i, (first, second) in enumerate(zip(rows.column(words, "text"), rows.column(tags, "label"))):
        if isinstance(first, str):
            if not isinstance(second, (list, tuple)):
                raise DataError(
                    f"{rows.at(i)}: a text needs a list of spans in {tags!r}, got {type(second).__name__}"
                )
            first, second, cut = conll.words_and_tags(first, second, rows.at(i))
            torn += cut
        if not isinstance(first, (list, tuple)) or not isinstance(second, (list, tuple)):
            raise DataError(f"{rows.at(i)}: {words!r} and {tags!r} are to be lists, one tag a word")
        if len(first) != len(second):
            raise DataError(
                f"{rows.at(i)}: {len(first)} words in {words!r}, but {len(second)} tags in {tags!r}"
            )
        if first:
            example: dict[str, Any] = {"words": [str(w) for w in first], "labels": list(second)}
            if groups is not None and not data.missing(groups[i]):
                example["group"] = groups[i]
            out.append(example)
    return out, torn


def _first(rows: data.Rows, names: Sequence[str], option: str) -> str:
    found = next((n for n in names if n in rows.columns), None)
    if found is None:
        rows.column(names[0], option)  # raises, listing what is there
    return str(found)
