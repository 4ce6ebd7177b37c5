"""One paper of the catalogue: strings only, so that the whole catalogue costs nothing to import."""

from __future__ import annotations

import re
from dataclasses import dataclass

FAMILIES = (
    "compression", "adaptation", "inference", "distributed", "language", "vision", "multimodal", "generative",
    "speech", "biosignal", "forecasting", "tabular", "graph", "science", "pretraining", "retrieval", "domain",
    "survey",
)  # fmt: skip
KINDS = ("system", "study", "benchmark", "survey")

_SLUG = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_ARXIV = re.compile(r"(\d{2})(\d{2})\.\d{4,5}")
_PART = re.compile(r"lightformers(\.[a-z][a-z0-9_]*)+:[A-Za-z][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Paper:
    """A record of the catalogue.

    slug: the paper's name everywhere: record, file (`-` becomes `_`), command-line word, result file.
    year: of the first public version.
    arxiv: identifier without version, such as "2203.07259", or None.
    family, kind: one of `FAMILIES` and `KINDS`.
    summary: what the paper does, in one sentence.
    part: "module:Name" of its code, where it is or will be.

    Raises ValueError if a field is malformed: a wrong record is a mistake in this package.
    """

    slug: str
    title: str
    year: int
    arxiv: str | None
    family: str
    kind: str
    summary: str
    part: str

    def __post_init__(self) -> None:
        def must(holds: object, field: str) -> None:
            if not holds:
                raise ValueError(f"paper {self.slug!r}: {field} is malformed: {getattr(self, field)!r}")

        must(_SLUG.fullmatch(self.slug), "slug")
        must(self.title.strip() == self.title != "", "title")
        must(self.family in FAMILIES, "family")
        must(self.kind in KINDS, "kind")
        must(_PART.fullmatch(self.part), "part")
        must(len(self.summary) > 40 and self.summary.endswith(".") and "\n" not in self.summary, "summary")
        if self.arxiv is not None:
            number = _ARXIV.fullmatch(self.arxiv)
            must(number is not None and 1 <= int(number[2]) <= 12, "arxiv")
            must(number is not None and self.year == 2000 + int(number[1]), "year")
        must(1990 <= self.year <= 2100, "year")

    @property
    def name(self) -> str:
        """The slug as a Python name, which its files bear."""
        return self.slug.replace("-", "_")

    @property
    def reproduction(self) -> str:
        """The module that holds the paper's experiment."""
        return f"lightformers.reproduce.{self.name}"

    @property
    def url(self) -> str | None:
        """The abstract on arXiv."""
        return None if self.arxiv is None else f"https://arxiv.org/abs/{self.arxiv}"
