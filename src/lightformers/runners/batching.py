"""From lengths to batches, and back to the order in which the examples came.

Padding is the largest single cost of running texts of mixed length: batches of neighbours in length under a
budget of padded tokens waste almost none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def round_up(length: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `length`."""
    return -(-length // multiple) * multiple


def group(
    order: Iterable[int],
    lengths: Sequence[int],
    batch_size: int | None = None,
    max_tokens: int | None = None,
    pad: Callable[[int], int] = lambda length: length,
) -> list[list[int]]:
    """Cut `order` into consecutive batches of indices into `lengths`.

    batch_size: most rows. max_tokens: most padded tokens, rows x `pad`(longest); an example that is longer than the
    budget on its own gets a batch of its own. None means no limit. pad: the length a batch is padded to.
    """
    batches: list[list[int]] = []
    current: list[int] = []
    longest = 0
    for i in order:
        longest = max(longest, lengths[i])
        full = batch_size is not None and len(current) >= batch_size
        over = max_tokens is not None and pad(longest) * (len(current) + 1) > max_tokens
        if current and (full or over):
            batches.append(current)
            current, longest = [], lengths[i]
        current.append(i)
    if current:
        batches.append(current)
    return batches


def arrival(
    lengths: Sequence[int],
    batch_size: int | None = 32,
    max_tokens: int | None = None,
    pad: Callable[[int], int] = lambda length: length,
) -> list[list[int]]:
    """Batches in the given order."""
    return group(range(len(lengths)), lengths, batch_size, max_tokens, pad)


def by_length(
    lengths: Sequence[int],
    batch_size: int | None = 32,
    max_tokens: int | None = None,
    pad: Callable[[int], int] = lambda length: length,
) -> list[list[int]]:
    """Batches of neighbours in length, longest first (so that memory peaks at once and the last batches, which
    end a run on several streams, are the quick ones). Examples of equal length keep their order."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return group(order, lengths, batch_size, max_tokens, pad)


def plan(
    lengths: Sequence[int],
    batching: str,
    batch_size: int | None,
    max_tokens: int | None,
    pad: Callable[[int], int] = lambda length: length,
) -> list[list[int]]:
    """The batches of a deploy: "padded" in order of arrival, otherwise by length."""
    make = arrival if batching == "padded" else by_length
    return make(lengths, batch_size, max_tokens, pad)


def in_order(batches: Sequence[Sequence[int]], results: Sequence[Sequence[T]]) -> list[T]:
    """Results of each batch, in batch order -> one flat list in the order of the examples.

    Raises ValueError where a batch has not exactly one result per example.
    """
    out: list[T | None] = [None] * sum(len(b) for b in batches)
    for batch, items in zip(batches, results):
        if len(items) != len(batch):
            raise ValueError(f"reduce gave {len(items)} items for a batch of {len(batch)} examples")
        for i, item in zip(batch, items):
            out[i] = item
    return out  # type: ignore[return-value]  # every index stands in exactly one batch


def fill(
    batches: Sequence[Sequence[int]], lengths: Sequence[int], pad: Callable[[int], int] = lambda n: n
) -> float:
    """Share of the padded tokens that are real, in (0, 1]."""
    padded = sum(len(b) * pad(max(lengths[i] for i in b)) for b in batches)
    return sum(lengths[i] for b in batches for i in b) / padded if padded else 1.0
