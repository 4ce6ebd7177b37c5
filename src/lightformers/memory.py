"""Give freed memory back to the system.

A batch of another shape needs other sizes of every tensor, and the C library keeps what the last one freed: training
a 20 M-parameter encoder on texts of mixed lengths for two minutes held 12 GiB, of which 10 were free. Handing them
back every two seconds held 2.4 GiB at no measurable cost in speed.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache

EVERY = 2.0  # seconds between two releases


@cache
def _trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only


def release() -> None:
    """Return free heap pages to the system, where the C library can."""
    trim = _trim()
    if trim is not None:
        trim(0)
