"""What every page of charts is made of: style, script, and plotly's JavaScript, all inside the page."""

from __future__ import annotations

import base64
import functools
import gzip
import json
from pathlib import Path
from typing import Any

#: head.html, report.css and report.js serve any page with a chart in the element "frontier" (see report.html).
TEMPLATES = Path(__file__).parent / "templates"


def script_json(value: Any) -> str:
    """JSON that can stand inside a script element, whatever names and errors it holds."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@functools.lru_cache(maxsize=1)
def plotly() -> str:
    """plotly's JavaScript (MIT licence), compressed, as base64; report.js unpacks it."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()
