"""The terminal: one console for results, one for errors, JSON on request."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console

out = Console(highlight=False, soft_wrap=False)
err = Console(stderr=True, highlight=False)


def show_json(value: Any) -> None:
    """Print `value` as JSON on stdout, without colours or wrapping."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))
