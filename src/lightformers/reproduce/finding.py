"""What a reproduction measured, and its verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from lightformers import papers
from lightformers.errors import UserError
from lightformers.files import read_json, write_json

Verdict = Literal["holds here", "does not hold here", "inconclusive"]
VERDICTS: tuple[str, ...] = get_args(Verdict)


@dataclass(frozen=True)
class Finding:
    """The result of one reproduction, stored as `results/SLUG.json`.

    slug: of the paper. claim: the claim under test, in one sentence. verdict: one of `VERDICTS`.
    summary: what was seen, in one sentence, with the figures that decide.
    table: one row per arm. Every row has "arm"; a cell is a string, a number, or what `spread` returns
        (values per seed with mean and interval).
    baseline: the arm that the others are judged against, given the same budget.
    settings: model, data, sizes, steps: what a reader needs to run it again.
    seeds: random seeds used; empty where nothing is random.
    seconds: how long it took. machine, versions: where and with what it ran. created: ISO date.
    limits: what cannot be shown at this scale.
    plots: name -> plotting data (lists of numbers), optional.

    Raises ValueError if a field makes no sense: an experiment must not write a finding that nobody can read.
    """

    slug: str
    claim: str
    verdict: Verdict
    summary: str
    table: Sequence[Mapping[str, Any]]
    baseline: str
    settings: Mapping[str, Any]
    seeds: Sequence[int]
    seconds: float
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    limits: str
    created: str
    plots: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        papers.get(self.slug)
        object.__setattr__(self, "table", tuple(dict(row) for row in self.table))
        object.__setattr__(self, "seeds", tuple(self.seeds))
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict {self.verdict!r} is none of: {', '.join(VERDICTS)}")
        for name in ("claim", "summary", "limits"):
            if not getattr(self, name).strip():
                raise ValueError(f"a finding needs its {name}")
        if not self.table or any(not row.get("arm") for row in self.table):
            raise ValueError("a finding needs a table, and every row of it an 'arm'")
        if self.baseline not in {row["arm"] for row in self.table}:
            raise ValueError(f"the baseline {self.baseline!r} is not an arm of the table")
        if not math.isfinite(self.seconds) or self.seconds < 0:
            raise ValueError(f"seconds is {self.seconds}")

    def to_json(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return asdict(self) | {"table": [dict(row) for row in self.table], "seeds": list(self.seeds)}

    @staticmethod
    def from_json(said: Mapping[str, Any]) -> Finding:
        """The finding that `to_json` gave. Raises UserError if fields are missing or unknown."""
        names = {f.name for f in fields(Finding)}
        wrong = sorted((names - {"plots"}) - said.keys() | (said.keys() - names))
        if wrong:
            raise UserError(f"this is not a finding of this version: missing or unknown {', '.join(wrong)}")
        return Finding(**said)

    def write(self, folder: str | Path) -> Path:
        """Write `folder/SLUG.json`. Refuses NaN and infinity, which JSON cannot hold (ValueError)."""
        return write_json(Path(folder) / f"{self.slug}.json", self.to_json())

    @staticmethod
    def read(slug: str, folder: str | Path) -> Finding:
        """The finding of `slug` in `folder`. Raises UserError if there is none or it cannot be read."""
        file = Path(folder) / f"{slug}.json"
        if not file.is_file():
            raise UserError(f"there is no finding {file}. Make it with: lightformers reproduce {slug}")
        try:
            return Finding.from_json(read_json(file))
        except ValueError as error:
            raise UserError(f"{file} cannot be read as a finding ({error}). Make it anew.") from error


# Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom: with three seeds, the normal
# quantile would give intervals half as wide as they should be.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean of one value per seed with its 95 % interval (Student's t); no interval for a single value.

    Returns {"values", "mean", "low", "high"}. Raises ValueError for no values or ones that are not finite.
    """
    numbers = [float(value) for value in values]
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"cannot average {numbers}")
    mean = math.fsum(numbers) / len(numbers)
    if len(numbers) == 1:
        return {"values": numbers, "mean": mean, "low": None, "high": None}
    freedom = len(numbers) - 1
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in numbers) / freedom)
    quantile = _T[freedom - 1] if freedom <= len(_T) else 1.960 + 2.42 / freedom
    half = quantile * deviation / math.sqrt(len(numbers))
    return {"values": numbers, "mean": mean, "low": mean - half, "high": mean + half}


def row(arm: str, **cells: Any) -> dict[str, Any]:
    """A row of a finding's table: a cell given as a sequence of numbers (one per seed) becomes its `spread`."""
    return {"arm": arm} | {
        name: spread(cell) if isinstance(cell, Sequence) and not isinstance(cell, str) else cell
        for name, cell in cells.items()
    }


def judge(gains: Sequence[float], margin: float = 0.0) -> Verdict:
    """The verdict on paired gains over the baseline, one per seed, where more is better.

    "holds here" if the whole 95 % interval of the mean lies above `margin`, "does not hold here" if it lies
    below, otherwise "inconclusive". For a claim "loses at most x" give margin=-x. Needs two seeds or more.
    """
    if len(gains) < 2:
        raise ValueError("a verdict needs at least two seeds")
    seen = spread(gains)
    if seen["low"] > margin:
        return "holds here"
    return "does not hold here" if seen["high"] < margin else "inconclusive"
