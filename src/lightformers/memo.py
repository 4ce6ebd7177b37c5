"""Results that are kept for as long as the object they belong to lives."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Memo(Generic[T]):
    """`memo(owner, key, make)`: `make()` once for each owner and key. What it gives is shared: nobody may change it."""

    def __init__(self) -> None:
        self._kept: weakref.WeakKeyDictionary[Any, dict[Hashable, T]] = weakref.WeakKeyDictionary()

    def __call__(self, owner: Any, key: Hashable, make: Callable[[], T]) -> T:
        kept = self._kept.setdefault(owner, {})
        if key not in kept:
            kept[key] = make()
        return kept[key]
