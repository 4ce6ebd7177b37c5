"""Tables."""

from __future__ import annotations

from lightformers.papers.record import Paper

PAPERS = (
    Paper(
        slug="unitabe",
        title="UniTabE: A Universal Pretraining Protocol for Tabular Foundation Model in Data Science",
        year=2023,
        arxiv="2307.09249",
        family="tabular",
        kind="system",
        summary=(
            "Embeds every table cell from column name, type and value, refines the row with a transformer "
            "and answers prompts, so that one model serves any schema."
        ),
        part="lightformers.models.tabular.unitabe:UniTabE",
    ),
    Paper(
        slug="tabdpt",
        title="TabDPT: Scaling Tabular Foundation Models",
        year=2024,
        arxiv="2410.18164",
        family="tabular",
        kind="system",
        summary=(
            "Predicts table rows in context from labelled neighbours; trained on real tables, where any "
            "column may be the target, for classes and numbers alike."
        ),
        part="lightformers.models.tabular.tabdpt:TabDPT",
    ),
)
