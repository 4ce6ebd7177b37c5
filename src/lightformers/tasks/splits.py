"""Train, search, verify: disjoint, seeded, and the user's own where there are some.

The search never sees verify. Files named train, valid and test keep those roles (train, search, verify).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lightformers.errors import DataError

if TYPE_CHECKING:
    from lightformers.bundle import Example

NAMES = ("train", "search", "verify")
FRACTIONS: Mapping[str, float] = {"train": 0.6, "search": 0.15, "verify": 0.25}
_ROLES = {
    "train": "train", "training": "train",
    "valid": "search", "validation": "search", "val": "search", "dev": "search", "search": "search",
    "test": "verify", "verify": "verify",
}  # fmt: skip

Keys = Callable[["Example"], Iterable[Hashable]]


def role(name: str) -> str | None:
    """The split that a file or data set split of this name is, or None."""
    return _ROLES.get(name.lower())


def split(
    examples: Sequence[Example],
    seed: int = 0,
    label: Callable[[Example], Hashable] | None = None,
    fractions: Mapping[str, float] = FRACTIONS,
) -> dict[str, list[Example]]:
    """Cut one list into disjoint splits: by the field "group" where examples have one, else stratified by `label`.

    Within a split the examples keep their order. Raises DataError where a split would be empty.
    """
    total = sum(fractions.values())
    shares = {name: share / total for name, share in fractions.items()}
    rng = np.random.default_rng(seed)
    grouped = any("group" in e for e in examples)
    assigned = _by_group(examples, shares, rng) if grouped else _stratified(examples, shares, rng, label)
    out: dict[str, list[Example]] = {name: [] for name in shares}
    for example, name in zip(examples, assigned):
        out[name].append(example)
    empty = [name for name, share in shares.items() if share > 0 and not out[name]]
    if empty:
        unit = f"{len({e.get('group') for e in examples})} groups" if grouped else f"{len(examples)} examples"
        raise DataError(
            f"{unit} are too few to split: nothing left for {' and '.join(empty)}. Give more data"
        )
    return out


def _by_group(
    examples: Sequence[Example], shares: Mapping[str, float], rng: np.random.Generator
) -> list[str]:
    """Groups whole, large ones first, each to the split that lacks most."""
    keys = [e.get("group", ("alone", i)) for i, e in enumerate(examples)]
    sizes = Counter(keys)
    names = list(sizes)
    order = sorted((names[i] for i in rng.permutation(len(names))), key=lambda k: -sizes[k])
    filled = dict.fromkeys(shares, 0)
    place: dict[Any, str] = {}
    for key in order:
        name = min((s for s in shares if shares[s] > 0), key=lambda s: filled[s] / shares[s])
        place[key] = name
        filled[name] += sizes[key]
    return [place[k] for k in keys]


def _stratified(
    examples: Sequence[Example],
    shares: Mapping[str, float],
    rng: np.random.Generator,
    label: Callable[[Example], Hashable] | None,
) -> list[str]:
    members: dict[Hashable, list[int]] = {}
    for i, example in enumerate(examples):
        members.setdefault(label(example) if label else None, []).append(i)
    assigned = [""] * len(examples)
    filled = dict.fromkeys(shares, 0.0)
    for indices in members.values():  # remainders of one class are evened out by the next
        for position in rng.permutation(len(indices)):
            for name in shares:
                filled[name] += shares[name]
            name = max(filled, key=lambda s: filled[s])
            filled[name] -= 1
            assigned[indices[position]] = name
    return assigned


def assemble(
    parts: Mapping[str, Sequence[Example]],
    keys: Keys,
    seed: int = 0,
    label: Callable[[Example], Hashable] | None = None,
    fractions: Mapping[str, float] = FRACTIONS,
) -> tuple[dict[str, list[Example]], list[str]]:
    """All that was read -> (splits, warnings).

    parts: one list under "", or lists under train/search/verify. A missing search split is cut from train; a
    missing verify split is the given validation data, and then search is cut from train; a missing train split
    is cut from search. Examples that also stand in a later split (any of `keys` equal) are removed and counted.
    """
    given = {name: list(rows) for name, rows in parts.items() if rows}
    notes: list[str] = []
    if not given:
        raise DataError("the data is empty: no examples were read")
    if len(given) == 1:
        splits = split(next(iter(given.values())), seed, label, fractions)
    else:
        splits = given
        if "verify" not in splits:
            splits["verify"] = splits.pop("search")
            notes.append("no test data given: the validation data verifies, the search uses a part of train")
        if "train" not in splits:
            splits |= split(splits["search"], seed, label, _only(fractions, "train", "search"))
            notes.append("no training data given: a part of the validation data is used to train")
        elif "search" not in splits:
            splits |= split(splits["train"], seed, label, _only(fractions, "train", "search"))
    splits = {name: splits[name] for name in NAMES}
    removed = _disjoint(splits, keys)
    if removed:
        counts = ", ".join(f"{n} from {name}" for name, n in removed.items())
        notes.append(f"examples that stand in a later split too were removed: {counts}")
    for name in NAMES:
        if not splits[name]:
            raise DataError(
                f"the {name} split is empty once examples are removed that stand in other splits as well"
            )
    return splits, notes


def _only(fractions: Mapping[str, float], *names: str) -> dict[str, float]:
    return {name: fractions[name] for name in names}


def _disjoint(splits: dict[str, list[Example]], keys: Keys) -> dict[str, int]:
    """Remove from train what search or verify has, and from search what verify has. In place."""
    seen: set[Hashable] = set()
    removed = {}
    for name in reversed(NAMES):
        kept = [e for e in splits[name] if not any(k in seen for k in keys(e))]
        if len(kept) < len(splits[name]):
            removed[name] = len(splits[name]) - len(kept)
        splits[name] = kept
        seen.update(k for e in kept for k in keys(e))
    return removed


def named(examples: Mapping[str, Sequence[Example]] | Sequence[Example]) -> dict[str, list[Example]]:
    """What `from_examples` accepts -> parts for `assemble`: one list, or lists by split name."""
    if not isinstance(examples, Mapping):
        return {"": list(examples)}
    unknown = [name for name in examples if role(name) is None]
    if unknown:
        raise DataError(f"unknown splits {unknown}; names are train, valid (or search) and test (or verify)")
    return {str(role(name)): list(rows) for name, rows in examples.items()}
