"""What the tasks share: choosing examples, groups, fingerprints, lengths, and the checks that all heads need."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lightformers.errors import DataError, ModelError

if TYPE_CHECKING:
    from lightformers.bundle import Batch, Bundle, Encoded, Example

Reduce = Callable[[Mapping[str, Any], "Batch"], Sequence[Any]]
Lengths = tuple[int, int] | list[int] | None


class Runner(Protocol):
    """The part of a runner that tasks need."""

    def encode(self, examples: Sequence[Example]) -> list[Encoded]: ...
    def run(self, encoded: Sequence[Encoded], reduce: Reduce) -> list[Any]: ...
    def __call__(self, examples: Sequence[Example], reduce: Reduce) -> list[Any]: ...


def take(splits: Mapping[str, Sequence[Example]], split: str, limit: int | None, seed: int) -> np.ndarray:
    """Indices of the examples to score, in order: all, or a fixed sample of `limit` (smaller ones are nested)."""
    if split not in splits:
        raise DataError(f"there is no split {split!r}; there are {sorted(splits)}")
    n = len(splits[split])
    if n == 0:
        raise DataError(f"the {split} split is empty: give more data")
    if limit is None or limit >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).permutation(n)[: max(limit, 1)])


def groups(examples: Sequence[Example]) -> np.ndarray | None:
    """(n,) integers, one per value of the field "group"; None where no example has one."""
    if not any("group" in e for e in examples):
        return None
    numbers: dict[Any, int] = {}
    keys = [e.get("group", ("alone", i)) for i, e in enumerate(examples)]
    return np.array([numbers.setdefault(k, len(numbers)) for k in keys])


def draw(examples: Sequence[Example], n: int, seed: int, what: str) -> list[Example]:
    """`n` examples in random order; each once before any comes twice."""
    if not examples:
        raise DataError(f"no examples to draw {what} from: give more data")
    rng = np.random.default_rng(seed)
    order: list[int] = []
    while len(order) < n:
        order.extend(rng.permutation(len(examples))[: n - len(order)].tolist())
    return [examples[i] for i in order]


def with_lengths(
    examples: Sequence[Example], n: int, seed: int, lengths: Lengths, field: str = "text"
) -> list[Example]:
    """`n` inputs in arrival order, targets dropped.

    lengths: None for the lengths of the data; (low, high) for examples with so many words (if there are none:
    texts made to lengths drawn evenly from that range); a list for texts of exactly these word counts, by turns.
    """
    plain: list[Example] = [{k: e[k] for k in (field, "text_pair", "role") if k in e} for e in examples]
    if not lengths:
        return draw(plain, n, seed, "a workload")
    low, high = min(lengths), max(lengths)
    if low < 1:
        raise DataError(f"lengths are counts of words and start at 1, got {lengths}")
    if isinstance(lengths, tuple):
        fitting = [e for e in plain if low <= len(_words(e[field])) <= high]
        if fitting:
            return draw(fitting, n, seed, "a workload")
        wanted = np.random.default_rng(seed).integers(low, high + 1, n).tolist()
    else:
        wanted = [lengths[i % len(lengths)] for i in range(n)]
    sources = draw(plain, n, seed, "a workload")
    if not any(_words(e[field]) for e in plain):
        raise DataError("the texts hold no words")
    out: list[Example] = []
    for i, count in enumerate(wanted):
        words = list(_words(sources[i][field]))
        following = i
        while len(words) < count:  # too short: go on with the texts that come next
            following += 1
            words += _words(plain[following % len(plain)][field])
        value: Any = words[:count]
        out.append({**sources[i], field: " ".join(value) if isinstance(sources[i][field], str) else value})
    return out


def _words(value: str | Sequence[str]) -> Sequence[str]:
    return value.split() if isinstance(value, str) else value


def fingerprint(splits: Mapping[str, Sequence[Example]], settings: Mapping[str, Any]) -> str:
    """sha256 over settings and all examples: equal in every process, changed by any change of the data."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name in sorted(splits):
        digest.update(f"\n{name} {len(splits[name])}\n".encode())
        for example in splits[name]:
            arrays = {k: v for k, v in example.items() if isinstance(v, np.ndarray)}
            rest = {k: v for k, v in example.items() if k not in arrays}
            digest.update(
                json.dumps(rest, sort_keys=True, default=str, ensure_ascii=False).encode("utf-8", "replace")
            )
            for key in sorted(arrays):
                digest.update(f"{key}{arrays[key].shape}{arrays[key].dtype}".encode())
                digest.update(np.ascontiguousarray(arrays[key]).tobytes())
    return digest.hexdigest()


def check_head(bundle: Bundle, task: str) -> None:
    """ModelError if the bundle's head is made for something else."""
    if bundle.task is not None and bundle.task != task:
        raise ModelError(
            f"the model has a head for {bundle.task}, the task is {task}: choose --task {bundle.task}, or load the "
            f"model with task={task!r} if it was trained for that"
        )


def truncated(bundle: Bundle, examples: Sequence[Example], sample: int = 2000) -> str | None:
    """A warning if texts are longer than the model takes, counted on at most `sample` of them."""
    if bundle.max_length is None or bundle.processor is None or not examples:
        return None
    step = max(1, len(examples) // sample)
    seen = list(examples[::step])
    limit, bundle_free = bundle.max_length, _without_limit(bundle)
    longer = sum(len(e["input_ids"]) > limit for e in bundle_free.encode(seen))
    if not longer:
        return None
    return (
        f"{longer} of {len(seen)} examples{' looked at' if step > 1 else ''} are longer than the model's "
        f"{limit} tokens and are cut there"
    )


def _without_limit(bundle: Bundle) -> Bundle:
    import dataclasses

    return dataclasses.replace(bundle, max_length=None)


def require(examples: Sequence[Example], fields: Sequence[str]) -> None:
    """DataError naming the first example that lacks one of the fields."""
    for i, example in enumerate(examples):
        absent = [f for f in fields if f not in example]
        if absent:
            raise DataError(f"example {i} has no field {absent[0]!r}; it has {sorted(example)}")


def folded(text: str) -> str:
    """For finding duplicates: case and whitespace do not count."""
    return " ".join(text.lower().split())


def note(warnings: list[str], message: str | None) -> None:
    """Add a warning once."""
    if message and message not in warnings:
        warnings.append(message)


def without(examples: Sequence[Example], *fields: str) -> list[Example]:
    """Copies that lack these fields."""
    return [{k: v for k, v in e.items() if k not in fields} for e in examples]
