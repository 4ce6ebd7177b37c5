"""What a preset is: the model, its fields, and how many parameters its paper counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DECODER = "lightformers.models.language.decoder:Decoder"


@dataclass(frozen=True)
class Preset:
    """A row: the model ("module:Class"), the fields of its configuration, and the published number of parameters.

    fields: also "module:TABLE:key", a configuration that stands elsewhere. config: "module:Class" of the configuration;
    "": the model's `config_class`. source: paper or release.
    """

    fields: Mapping[str, Any] | str
    parameters: int
    model: str = DECODER
    config: str = ""
    source: str = ""
