"""Tests of the door to elastic models use the worlds of the steps."""

from __future__ import annotations

import sys
from pathlib import Path

_COMPRESS = Path(__file__).parent.parent / "compress"
sys.path[:0] = [str(_COMPRESS), str(_COMPRESS / "elastic")]
