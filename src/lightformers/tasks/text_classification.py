"""Text classification: one text or a pair, one label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lightformers.errors import DataError
from lightformers.tasks import classify, common, data
from lightformers.tasks import labels as label_names
from lightformers.tasks.labelled import Classification
from lightformers.tasks.splits import assemble, named

if TYPE_CHECKING:
    from lightformers.bundle import Bundle, Example


@dataclass
class TextClassification(Classification):
    """Examples {"text", ("text_pair"), "label": number}; the metric is accuracy or macro-F1.

    labels: the name of each number. `check(bundle)` changes the numbers to the model's.
    """

    splits: dict[str, list[Example]]
    labels: tuple[str, ...]
    kind: str = "accuracy"
    seed: int = 0
    warnings: list[str] = field(default_factory=list)
    name: ClassVar[str] = "text-classification"

    @classmethod
    def from_file(
        cls, path: str | Path, text: str = "text", label: str = "label", text_pair: str | None = None,
        group: str | None = None, metric: str = "accuracy", seed: int = 0,
    ) -> TextClassification:  # fmt: skip
        """Read csv, tsv, jsonl, json or parquet, a folder of these, or a hub name.

        text, text_pair, label, group: columns. Raises DataError: missing columns, missing labels, one class only.
        """
        parts: dict[str, list[Example]] = {}
        notes = []
        columns = {"text": text} | ({"text_pair": text_pair} if text_pair else {})
        for name, rows in data.read(path).items():
            names = label_names.column(rows, label)
            if names[0] is None:
                notes.append(f"{rows.source} holds no labels and was left out")
                continue
            parts[name], empty = data.examples(rows, columns, group, {"label": names})
            if empty:
                notes.append(f"{rows.source}: {empty} rows without text were left out")
        if not parts:
            raise DataError(f"{path}: no row has a label in column {label!r}")
        task = cls.from_examples(parts.get("", parts), metric, seed)
        task.warnings[:0] = notes
        return task

    @classmethod
    def from_examples(
        cls,
        examples: Mapping[str, Sequence[Example]] | Sequence[Example],
        metric: str = "accuracy",
        seed: int = 0,
    ) -> TextClassification:
        """From {"text", "label"} examples (label: name or number): one list (split here), or lists by split."""
        parts = named(examples)
        for rows in parts.values():
            common.require(rows, ("text", "label"))
        parts, labels = classify.number(parts)
        splits, notes = assemble(parts, _keys, seed, lambda e: e["label"])
        classify.metric(metric, len(labels))
        return cls(splits, labels, metric, seed, notes)

    def workload(self, n: int, seed: int = 0, lengths: common.Lengths = None) -> list[Example]:
        """Texts of the search split in arrival order. lengths: see `common.with_lengths`."""
        return common.with_lengths(self.splits["search"], n, seed, lengths)

    def check(self, bundle: Bundle) -> None:
        """As in the base, and a note where texts are longer than the model reads."""
        super().check(bundle)
        common.note(self.warnings, common.truncated(bundle, self.splits["verify"]))


def _keys(example: Example) -> list[tuple[str, ...]]:
    return [tuple(common.folded(example[k]) for k in ("text", "text_pair") if k in example)]
