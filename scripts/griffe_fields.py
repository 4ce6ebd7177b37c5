"""Show the `name: meaning` lines of our docstrings as a list; Markdown would run them together.

A griffe extension for mkdocstrings, named in mkdocs.yml. The docstrings stay as they read best in the source.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_FIELD = re.compile(r"([a-z_][a-z0-9_]*(?:, [a-z_][a-z0-9_]*)*): (?=\S)")


def listed(text: str) -> str:
    """Paragraphs that begin with `name: ` become bullet lists, one bullet per such line; the rest is untouched."""
    return "\n\n".join(_list(p) if _FIELD.match(p) else p for p in text.split("\n\n"))


def _list(paragraph: str) -> str:
    lines = []
    for line in paragraph.split("\n"):
        field = _FIELD.match(line)
        lines.append(f"- **{field[1]}**: {line[field.end() :]}" if field else f"  {line.strip()}")
    return "\n".join(lines)


class Fields(griffe.Extension):
    """Applies `listed` to every docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = listed(obj.docstring.value)
