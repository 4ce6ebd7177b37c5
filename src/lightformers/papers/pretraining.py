"""Objectives for self-supervised pre-training."""

from __future__ import annotations

from lightformers.papers.record import Paper

PAPERS = (
    Paper(
        slug="glare",
        title="Enhancing Semantic Segmentation with Continual Self-Supervised Pre-training",
        year=2025,
        arxiv="2509.17816",
        family="pretraining",
        kind="system",
        summary=(
            "Continues self-supervised training of a vision transformer on a few images of a new domain "
            "through parallel adapters, consistent at image, region and patch level."
        ),
        part="lightformers.pretrain.glare:Glare",
    ),
    Paper(
        slug="position-prediction",
        title="Position Prediction as an Effective Pretraining Strategy",
        year=2022,
        arxiv="2207.07611",
        family="pretraining",
        kind="system",
        summary=(
            "Pre-trains without reconstruction: shown tokens without positions and a random subset as "
            "context, the model classifies where each token came from."
        ),
        part="lightformers.pretrain.position_prediction:PositionPrediction",
    ),
    Paper(
        slug="dptr",
        title="Decoder Pre-Training with only Text for Scene Text Recognition",
        year=2024,
        arxiv="2408.05706",
        family="pretraining",
        kind="system",
        summary=(
            "Pre-trains the decoder of a text recogniser without images: CLIP text features, perturbed by "
            "image features, stand in for what it will see."
        ),
        part="lightformers.models.multimodal.dptr:DecoderPreTraining",
    ),
    Paper(
        slug="self-distillation-pretraining",
        title="Self-Distillation for Further Pre-training of Transformers",
        year=2022,
        arxiv="2210.02871",
        family="pretraining",
        kind="system",
        summary=(
            "Pre-trains further twice on target data: the first result becomes the teacher of a fresh copy "
            "of the original weights, against over-fitting."
        ),
        part="lightformers.pretrain.self_distillation:SelfDistillation",
    ),
    Paper(
        slug="drbert",
        title="DrBERT: Unveiling the Potential of Masked Language Modeling Decoder in BERT pretraining",
        year=2024,
        arxiv="2401.15861",
        family="pretraining",
        kind="system",
        summary=(
            "Puts a few blocks between encoder and word head during masked pre-training, which absorb the "
            "guessing and are thrown away before fine-tuning."
        ),
        part="lightformers.pretrain.drbert:DecoderRefinedBERT",
    ),
    Paper(
        slug="sit",
        title="SiT: Self-supervised vIsion Transformer",
        year=2021,
        arxiv="2104.03602",
        family="pretraining",
        kind="system",
        summary=(
            "Pre-trains a vision transformer on small image sets by restoring groups of corrupted patches, "
            "together with a momentum contrastive loss."
        ),
        part="lightformers.pretrain.sit:SiT",
    ),
    Paper(
        slug="bitimebert",
        title=(
            "Towards Effective Time-Aware Language Representation: Exploring Enhanced Temporal Understanding "
            "in Language Models"
        ),
        year=2024,
        arxiv="2406.01863",
        family="pretraining",
        kind="system",
        summary=(
            "Continues BERT on dated news with three losses: masked time expressions, the publication date, "
            "and replaced names of persons."
        ),
        part="lightformers.pretrain.bitimebert:BiTimeBERT",
    ),
)
