"""Graphs that change in time."""

from __future__ import annotations

from lightformers.papers.record import Paper

PAPERS = (
    Paper(
        slug="todyformer",
        title="Todyformer: Towards Holistic Dynamic Graph Transformers with Structure-Aware Tokenization",
        year=2024,
        arxiv="2402.05944",
        family="graph",
        kind="system",
        summary=(
            "Cuts a stream of timed edges into patches, makes node tokens in each by message passing, and "
            "links them across time with a transformer."
        ),
        part="lightformers.models.graph.todyformer:Todyformer",
    ),
)
