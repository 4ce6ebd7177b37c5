"""What makes tensors of examples that are neither text nor images: series and table rows.

A processor is a frozen dataclass of plain fields (numbers, strings, tuples, None). It knows what was learned of the
training data (means, categories) and what the model was made for (lengths, columns); both are saved beside the weights.
"""

from __future__ import annotations

import dataclasses
import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from lightformers.errors import ModelError
from lightformers.files import read_json, write_json

FILE = "processor_config.json"
#: Class name, as the file writes it -> where the class is. Only these are ever looked up.
CLASSES: dict[str, str] = {
    "SeriesProcessor": "lightformers.processors.series",
    "TabDPTProcessor": "lightformers.processors.tabdpt",
    "TableProcessor": "lightformers.processors.table",
    "UniTabEProcessor": "lightformers.processors.unitabe",
}


class Processor(ABC):
    """Examples -> tensors.

    inputs: fields of an example that `encode_examples` reads; the bundle carries the others along to a batch's targets.
    """

    inputs: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def encode_examples(self, examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """One mapping of arrays per example. Raises DataError where an example cannot be read."""

    @abstractmethod
    def pad_encoded(self, encoded: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Arguments of the model, and targets: what was encoded, stacked."""

    @abstractmethod
    def samples(self, count: int) -> list[dict[str, Any]]:
        """Made-up examples that the model can run on: to trace a graph with where no data are at hand."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `processor_config.json`."""
        write_json(Path(folder) / FILE, {"processor_class": type(self).__name__, **self._fields()})

    def _fields(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Processor:
        """The inverse of what the file holds; lists become tuples."""
        return cls(**{k: _tuples(v) for k, v in fields.items()})

    @classmethod
    def from_folder(cls, folder: Path, fields: Mapping[str, Any]) -> Processor:
        """The same for one that keeps arrays in a file of its own beside `processor_config.json`."""
        return cls.from_fields(fields)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def read(folder: str | Path) -> Processor | None:
    """The processor that is saved in `folder`, None where there is none of ours. Raises ModelError for a damaged one."""
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    fields = read_json(path)
    name = fields.pop("processor_class", None)
    if name not in CLASSES:
        return None  # transformers' own, of speech or of several kinds of input
    found: type[Processor] = getattr(importlib.import_module(CLASSES[name]), name)
    try:
        return found.from_folder(path.parent, fields)
    except (TypeError, ValueError, KeyError, OSError) as error:
        raise ModelError(f"{path} is no {name} of this version: {error}") from error
