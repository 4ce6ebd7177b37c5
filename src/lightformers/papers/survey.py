"""Surveys, each honoured by a map from its taxonomy to this library."""

from __future__ import annotations

from lightformers.papers.record import Paper

PAPERS = (
    Paper(
        slug="survey-faster-lighter",
        title="A Practical Survey on Faster and Lighter Transformers",
        year=2021,
        arxiv="2103.14636",
        family="survey",
        kind="survey",
        summary=(
            "Maps ways to faster and lighter transformers: general ones (checkpointing, sharing, pruning, "
            "experts) and sparse or factorised attention, with advice by bottleneck."
        ),
        part="lightformers.papers.taxonomies.faster_lighter:TAXONOMY",
    ),
    Paper(
        slug="survey-optimizing-inference",
        title="A Survey of Techniques for Optimizing Transformer Inference",
        year=2023,
        arxiv="2307.07982",
        family="survey",
        kind="survey",
        summary=(
            "Maps inference techniques: distillation, pruning, quantization, architecture search, light "
            "network design and hardware, with cost against accuracy."
        ),
        part="lightformers.papers.taxonomies.optimizing_inference:TAXONOMY",
    ),
    Paper(
        slug="survey-model-compression-llm",
        title="Model Compression and Efficient Inference for Large Language Models: A Survey",
        year=2024,
        arxiv="2402.09748",
        family="survey",
        kind="survey",
        summary=(
            "Maps compression of large language models: quantization, pruning, distillation, compact design "
            "and dynamic networks, tuned and tuning-free, and serving frameworks."
        ),
        part="lightformers.papers.taxonomies.model_compression_llm:TAXONOMY",
    ),
    Paper(
        slug="survey-time-series",
        title="Transformers in Time Series: A Survey",
        year=2022,
        arxiv="2202.07125",
        family="survey",
        kind="survey",
        summary=(
            "Maps transformers for time series: positions, attention, hierarchy and decomposition, and their "
            "use in forecasting, anomaly detection and classification."
        ),
        part="lightformers.papers.taxonomies.time_series:TAXONOMY",
    ),
    Paper(
        slug="survey-mamba",
        title="A Survey of Mamba",
        year=2024,
        arxiv="2408.01129",
        family="survey",
        kind="survey",
        summary=(
            "Maps Mamba models: block design, scanning orders and memory management, and how they fit "
            "sequences, images, graphs and several modalities."
        ),
        part="lightformers.papers.taxonomies.mamba:TAXONOMY",
    ),
    Paper(
        slug="survey-text-ranking",
        title="Pretrained Transformers for Text Ranking: BERT and Beyond",
        year=2020,
        arxiv="2010.06467",
        family="survey",
        kind="survey",
        summary=(
            "Maps transformers for ranking text: multi-stage re-ranking, expansion of queries and documents, "
            "and learned dense retrieval, for long texts and cost."
        ),
        part="lightformers.papers.taxonomies.text_ranking:TAXONOMY",
    ),
    Paper(
        slug="survey-bert-ir",
        title="Utilizing BERT for Information Retrieval: Survey, Applications, Resources, and Challenges",
        year=2024,
        arxiv="2403.00784",
        family="survey",
        kind="survey",
        summary=(
            "Maps BERT in information retrieval: long documents, semantics, effectiveness against cost, term "
            "weights, and expansion of queries and documents."
        ),
        part="lightformers.papers.taxonomies.bert_ir:TAXONOMY",
    ),
    Paper(
        slug="survey-foundation-models",
        title="A Comprehensive Survey on Pretrained Foundation Models: A History from BERT to ChatGPT",
        year=2023,
        arxiv="2302.09419",
        family="survey",
        kind="survey",
        summary=(
            "Maps pretrained foundation models by modality: components, pre-training tasks, unified models, "
            "efficiency, security and privacy."
        ),
        part="lightformers.papers.taxonomies.foundation_models:TAXONOMY",
    ),
    Paper(
        slug="survey-open-gpt",
        title=(
            "Examining User-Friendly and Open-Sourced Large GPT Models: A Survey on Language, Multimodal, "
            "and Scientific GPT Models"
        ),
        year=2023,
        arxiv="2308.14149",
        family="survey",
        kind="survey",
        summary=(
            "Maps open GPT models for language, several modalities and science, and the tools which make "
            "them trainable and servable with few resources."
        ),
        part="lightformers.papers.taxonomies.open_gpt:TAXONOMY",
    ),
    Paper(
        slug="survey-pretrained-models",
        title="Pre-Trained Models: Past, Present and Future",
        year=2021,
        arxiv="2106.07139",
        family="survey",
        kind="survey",
        summary=(
            "Maps pre-trained models in four directions: architectures, rich contexts, computational "
            "efficiency, and interpretation."
        ),
        part="lightformers.papers.taxonomies.pretrained_models:TAXONOMY",
    ),
    Paper(
        slug="survey-nlp-foundation-models",
        title=(
            "Foundation Models for Natural Language Processing -- Pre-trained Language Models Integrating "
            "Media"
        ),
        year=2023,
        arxiv="2302.08575",
        family="survey",
        kind="survey",
        summary=(
            "Maps foundation models for language: base models, improvements, knowledge acquired, extraction, "
            "generation, and speech, images and control."
        ),
        part="lightformers.papers.taxonomies.nlp_foundation_models:TAXONOMY",
    ),
    Paper(
        slug="survey-transformer-applications",
        title="A Comprehensive Survey on Applications of Transformers for Deep Learning Tasks",
        year=2023,
        arxiv="2306.07303",
        family="survey",
        kind="survey",
        summary=(
            "Maps applications of transformers by task in language, vision, several modalities, audio and "
            "speech, and signal processing."
        ),
        part="lightformers.papers.taxonomies.transformer_applications:TAXONOMY",
    ),
)
