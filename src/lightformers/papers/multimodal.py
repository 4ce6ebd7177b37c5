"""Models of images and language together."""

from __future__ import annotations

from lightformers.papers.record import Paper

PAPERS = (
    Paper(
        slug="frozenseg",
        title="FrozenSeg: Harmonizing Frozen Foundation Models for Open-Vocabulary Segmentation",
        year=2024,
        arxiv="2409.03525",
        family="multimodal",
        kind="system",
        summary=(
            "Segments objects of any name with CLIP and SAM both frozen: only a mask decoder trains, into "
            "which SAM's spatial features are injected at two points."
        ),
        part="lightformers.models.multimodal.frozenseg:FrozenSeg",
    ),
    Paper(
        slug="fusioner",
        title="Open-vocabulary Semantic Segmentation with Frozen Vision-Language Models",
        year=2022,
        arxiv="2210.15138",
        family="multimodal",
        kind="system",
        summary=(
            "Fuses frozen patch features and frozen name embeddings in a small transformer with a light "
            "decoder; pixels take the name whose vector is nearest, also for unseen names."
        ),
        part="lightformers.models.multimodal.fusioner:Fusioner",
    ),
    Paper(
        slug="x2i",
        title=(
            "X2I: Seamless Integration of Multimodal Understanding into Diffusion Transformer via Attention "
            "Distillation"
        ),
        year=2025,
        arxiv="2503.06134",
        family="multimodal",
        kind="system",
        summary=(
            "Replaces the text encoders of a frozen image diffusion transformer by a frozen multimodal "
            "language model, with a small bridge trained to reproduce the old attention outputs."
        ),
        part="lightformers.models.generative.x2i:AlignNet",
    ),
    Paper(
        slug="x-former",
        title="X-Former: Unifying Contrastive and Reconstruction Learning for MLLMs",
        year=2024,
        arxiv="2407.13851",
        family="multimodal",
        kind="system",
        summary=(
            "Lets a Q-Former read a contrastive and a reconstructive vision encoder together, through two "
            "added cross-attentions and a reconstruction loss that keeps detail."
        ),
        part="lightformers.models.multimodal.x_former:XFormer",
    ),
    Paper(
        slug="solo",
        title="A Single Transformer for Scalable Vision-Language Modeling",
        year=2024,
        arxiv="2407.06438",
        family="multimodal",
        kind="system",
        summary=(
            "Feeds raw image patches through one linear layer into a decoder-only language model, without a "
            "vision encoder, following a staged recipe that keeps training stable."
        ),
        part="lightformers.models.multimodal.solo:Solo",
    ),
    Paper(
        slug="letfuser",
        title=(
            "LeTFuser: Light-weight End-to-end Transformer-Based Sensor Fusion for Autonomous Driving with "
            "Multi-Task Learning"
        ),
        year=2023,
        arxiv="2310.13135",
        family="multimodal",
        kind="system",
        summary=(
            "Drives from camera and depth: a CvT encoder's predicted segmentation is projected to a top "
            "view, fused by convolutional attention, and GRUs emit way-points and controls."
        ),
        part="lightformers.models.vision.letfuser:LeTFuser",
    ),
    Paper(
        slug="vl-gpt",
        title=(
            "VL-GPT: A Generative Pre-trained Transformer for Vision and Language Understanding and "
            "Generation"
        ),
        year=2023,
        arxiv="2312.09251",
        family="multimodal",
        kind="system",
        summary=(
            "Turns an image into a short causal sequence of continuous vectors and back, so that one "
            "language model predicts the next word or the next image vector."
        ),
        part="lightformers.models.multimodal.vl_gpt:VLGPT",
    ),
    Paper(
        slug="all-in-one",
        title="All in One: Exploring Unified Video-Language Pre-training",
        year=2022,
        arxiv="2203.07303",
        family="multimodal",
        kind="system",
        summary=(
            "Encodes text and a few video frames in one transformer; rolling part of the tokens along time "
            "mixes frames without a single parameter."
        ),
        part="lightformers.models.multimodal.all_in_one:AllInOne",
    ),
)
