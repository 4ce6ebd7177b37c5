"""Speech encoders and recognisers."""

from __future__ import annotations

from lightformers.papers.record import Paper

PAPERS = (
    Paper(
        slug="lmuformer",
        title="LMUFormer: Low Complexity Yet Powerful Spiking Model With Legendre Memory Units",
        year=2024,
        arxiv="2402.04882",
        family="speech",
        kind="system",
        summary=(
            "Replaces attention by a Legendre memory, a fixed linear recurrence that trains in parallel and "
            "runs as a stream; a spiking version makes it binary."
        ),
        part="lightformers.models.speech.lmuformer:LMUFormer",
    ),
    Paper(
        slug="paraformer",
        title=(
            "Paraformer: Fast and Accurate Parallel Transformer for Non-autoregressive End-to-End Speech "
            "Recognition"
        ),
        year=2022,
        arxiv="2206.08317",
        family="speech",
        kind="system",
        summary=(
            "Recognises speech in one pass: a continuous integrate-and-fire unit counts tokens and yields a "
            "vector for each, and all are labelled in parallel."
        ),
        part="lightformers.models.speech.paraformer:Paraformer",
    ),
    Paper(
        slug="tera",
        title="TERA: Self-Supervised Learning of Transformer Encoder Representation for Speech",
        year=2020,
        arxiv="2007.06028",
        family="speech",
        kind="system",
        summary=(
            "Pre-trains a speech encoder by corrupting frames along time, frequency and magnitude and "
            "reconstructing the clean features."
        ),
        part="lightformers.pretrain.tera:Tera",
    ),
    Paper(
        slug="ctc-optimal-transport",
        title="Pre-training for Speech Translation: CTC Meets Optimal Transport",
        year=2023,
        arxiv="2301.11716",
        family="speech",
        kind="system",
        summary=(
            "Draws speech and text encoders together before translation training: CTC on the transcript and "
            "a Wasserstein distance between the two sequences."
        ),
        part="lightformers.pretrain.ctc_optimal_transport:CTCOptimalTransport",
    ),
)
