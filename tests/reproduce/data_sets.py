"""The data of experiments lies beside the project: where it is absent, their tests are skipped with the reason."""

from __future__ import annotations

import pytest

from lightformers import reproduce
from lightformers.errors import DataError


def needs(*names: str) -> None:
    """Skips the test that calls it where one of these data sets is absent."""
    try:
        for name in names:
            reproduce.data(name)
    except DataError as missing:
        pytest.skip(str(missing))
