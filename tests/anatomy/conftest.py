"""Tests of the anatomy share `zoo`; other libraries stay quiet."""

from __future__ import annotations

import sys
from pathlib import Path

from lightformers.telemetry import silence

silence()
sys.path.insert(0, str(Path(__file__).parent))
