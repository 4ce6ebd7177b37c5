"""The catalogue: every paper that the library builds on, with where its code and its experiment are.

    from lightformers import papers
    papers.get("minilm").summary
    papers.status(papers.get("minilm"))        # "works" or "planned": computed, never typed

Records are strings. What they name is looked for only when asked, so importing this costs nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from lightformers.errors import UserError
from lightformers.papers import (
    adaptation,
    biosignal,
    compression,
    compression_elastic,
    distributed,
    domain,
    forecasting,
    generative,
    graph,
    inference,
    language,
    language_parts,
    multimodal,
    pretraining,
    retrieval,
    science,
    speech,
    survey,
    tabular,
    vision,
)
from lightformers.papers.record import FAMILIES, KINDS, Paper
from lightformers.papers.standing import Evidence, docstring, evidence, status

__all__ = [
    "FAMILIES",
    "KINDS",
    "Evidence",
    "Paper",
    "all",
    "docstring",
    "evidence",
    "get",
    "join",
    "nearest",
    "select",
    "status",
]


def join(families: Iterable[Sequence[Paper]]) -> dict[str, Paper]:
    """Join tuples of records into one table by slug. Raises ValueError if a slug comes twice."""
    table: dict[str, Paper] = {}
    for family in families:
        for paper in family:
            if paper.slug in table:
                raise ValueError(f"two papers of the catalogue are called {paper.slug!r}")
            table[paper.slug] = paper
    return table


_TABLE = join(
    (
        compression.PAPERS,
        compression_elastic.PAPERS,
        adaptation.PAPERS,
        inference.PAPERS,
        distributed.PAPERS,
        language.PAPERS,
        language_parts.PAPERS,
        vision.PAPERS,
        multimodal.PAPERS,
        generative.PAPERS,
        speech.PAPERS,
        biosignal.PAPERS,
        forecasting.PAPERS,
        tabular.PAPERS,
        graph.PAPERS,
        science.PAPERS,
        pretraining.PAPERS,
        retrieval.PAPERS,
        domain.PAPERS,
        survey.PAPERS,
    )
)


def all() -> tuple[Paper, ...]:
    """Every record, family by family."""
    return tuple(_TABLE.values())


def nearest(slug: str) -> list[str]:
    """Up to five slugs that `slug` may have meant, the likeliest first."""
    word = slug.strip().lower().replace("_", "-")
    close = difflib.get_close_matches(word, _TABLE, n=5, cutoff=0.5)
    inside = [known for known in _TABLE if len(word) > 2 and word in known]
    return list(dict.fromkeys([*close, *inside]))[:5]


def get(slug: str) -> Paper:
    """The record called `slug`. Raises UserError with the nearest names if there is none."""
    if slug in _TABLE:
        return _TABLE[slug]
    near = nearest(slug)
    meant = f"Did you mean {', '.join(near)}?" if near else "`lightformers papers list` prints all of them."
    raise UserError(f"no paper of the catalogue is called {slug!r}. {meant}")


def select(family: str | None = None, kind: str | None = None, status: str | None = None) -> list[Paper]:
    """Records that match everything given. Raises UserError for a word that no record could match."""
    for word, known, name in (
        (family, FAMILIES, "family"),
        (kind, KINDS, "kind"),
        (status, ("works", "planned"), "status"),
    ):
        if word is not None and word not in known:
            raise UserError(f"unknown {name} {word!r}; choose from: {', '.join(known)}")
    return [
        paper
        for paper in all()
        if (family is None or paper.family == family)
        and (kind is None or paper.kind == kind)
        and (status is None or evidence(paper).status == status)
    ]
