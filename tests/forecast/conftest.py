from __future__ import annotations

from collections.abc import Iterator

import pytest

from lightformers.forecast import baselines, contenders, training


@pytest.fixture(scope="session", autouse=True)
def quick() -> Iterator[None]:
    """Exponential smoothing of few windows, and little training even where the budget says none."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(baselines, "_SMOOTHED", 4)
        patched.setattr(baselines, "_LEAST", 0.2)
        patched.setattr(training, "_FLOOR", 0.5)
        patched.setattr(contenders, "_UPDATES", 300)
        yield
