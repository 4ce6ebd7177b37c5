"""Tests of the comparison share `compare_world`, and one comparison that was really made."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    from lightformers.compress import calibration

    calibration.forget()
    yield
    calibration.forget()


@pytest.fixture(scope="session")
def original() -> Any:
    import compare_world

    return compare_world.bundle()
