"""Tests of the steps share `steps_world`; nothing that one test collected may reach another."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    from lightformers.compress import calibration

    calibration.forget()
    yield
    calibration.forget()
