"""Vision transformers and their relatives."""

from __future__ import annotations

from lightformers.papers.record import Paper

PAPERS = (
    Paper(
        slug="dct-histotransformer",
        title=(
            "DCT-HistoTransformer: Efficient Lightweight Vision Transformer with DCT Integration for "
            "histopathological image analysis"
        ),
        year=2024,
        arxiv="2410.19166",
        family="vision",
        kind="system",
        summary=(
            "Attends only over the low-frequency coefficients of a two-dimensional cosine transform while a "
            "parallel mobile convolution path keeps the fine texture of tissue."
        ),
        part="lightformers.models.vision.dct_histotransformer:DCTHistoTransformer",
    ),
    Paper(
        slug="sparseformer",
        title="Bootstrapping SparseFormers from Vision Foundation Models",
        year=2023,
        arxiv="2312.01987",
        family="vision",
        kind="system",
        summary=(
            "Sees an image through a few latent tokens that move their own boxes; a cheap front end is "
            "trained to match the embedding of a frozen pretrained vision transformer."
        ),
        part="lightformers.models.vision.sparseformer:SparseFormer",
    ),
    Paper(
        slug="mobilemamba",
        title="MobileMamba: Lightweight Multi-Receptive Visual Mamba Network",
        year=2024,
        arxiv="2411.15941",
        family="vision",
        kind="system",
        summary=(
            "Splits the channels of each mixer into a global part (two-way Mamba with wavelets), a local "
            "depthwise part and an untouched part, in a three-stage fast network."
        ),
        part="lightformers.models.vision.mobilemamba:MobileMamba",
    ),
    Paper(
        slug="lightm-unet",
        title="LightM-UNet: Mamba Assists in Lightweight UNet for Medical Image Segmentation",
        year=2024,
        arxiv="2403.05246",
        family="vision",
        kind="system",
        summary=(
            "Builds a U-Net whose encoder and bottleneck are Mamba layers and whose decoder uses "
            "depthwise-separable convolutions, for 2-D and 3-D medical segmentation."
        ),
        part="lightformers.models.vision.lightm_unet:LightMUNet",
    ),
    Paper(
        slug="emov2",
        title="EMOv2: Pushing 5M Vision Model Frontier",
        year=2024,
        arxiv="2412.06674",
        family="vision",
        kind="system",
        summary=(
            "Merges inverted residual and attention into one block: expand, attend over near and far pixel "
            "windows with shared keys, convolve depthwise, project."
        ),
        part="lightformers.models.vision.emov2:EMOv2",
    ),
    Paper(
        slug="aqua20",
        title=(
            "AQUA20: A Benchmark Dataset for Underwater Species Classification under Challenging Conditions"
        ),
        year=2025,
        arxiv="2506.17455",
        family="vision",
        kind="benchmark",
        summary=(
            "Compares small and large image classifiers on 20 underwater species under one protocol, with "
            "corruptions and explanations that are tested for faithfulness."
        ),
        part="lightformers.tasks.aqua20:Aqua20",
    ),
    Paper(
        slug="segface",
        title="SegFace: Face Segmentation of Long-Tail Classes",
        year=2024,
        arxiv="2412.08647",
        family="vision",
        kind="system",
        summary=(
            "Gives every face part its own learned token; tokens and pixels attend to each other and each "
            "token draws its mask, which helps rare classes such as earrings."
        ),
        part="lightformers.models.vision.segface:SegFace",
    ),
    Paper(
        slug="pluto",
        title="PLUTO: Pathology-Universal Transformer",
        year=2024,
        arxiv="2405.07905",
        family="vision",
        kind="system",
        summary=(
            "Pre-trains one small vision transformer for pathology at several patch sizes and magnifications "
            "with self-distillation, masked reconstruction and a Fourier term."
        ),
        part="lightformers.models.vision.pluto:Pluto",
    ),
    Paper(
        slug="efficientformer",
        title="EfficientFormer: Vision Transformers at MobileNet Speed",
        year=2022,
        arxiv="2206.01191",
        family="vision",
        kind="system",
        summary=(
            "Stays convolutional with pooling blocks first and attends only after one flatten at the end, "
            "with depths chosen from a supernet and a table of measured latencies."
        ),
        part="lightformers.models.vision.efficientformer:EfficientFormer",
    ),
    Paper(
        slug="fmvit",
        title="FMViT: A multiple-frequency mixing Vision Transformer",
        year=2023,
        arxiv="2311.05707",
        family="vision",
        kind="system",
        summary=(
            "Mixes high-frequency convolution and low-frequency pooled attention, and folds all multi-branch "
            "layers into plain convolutions for deployment."
        ),
        part="lightformers.models.vision.fmvit:FMViT",
    ),
    Paper(
        slug="dualtoken-vit",
        title="DualToken-ViT: Position-aware Efficient Vision Transformer with Dual Token Fusion",
        year=2023,
        arxiv="2309.12424",
        family="vision",
        kind="system",
        summary=(
            "Adds convolved local tokens to 7x7 pooled global tokens that travel through the whole network "
            "and carry position from block to block."
        ),
        part="lightformers.models.vision.dualtoken_vit:DualTokenViT",
    ),
    Paper(
        slug="cct",
        title="Escaping the Big Data Paradigm with Compact Transformers",
        year=2021,
        arxiv="2104.05704",
        family="vision",
        kind="system",
        summary=(
            "Trains vision transformers from scratch on small data: a convolutional tokenizer with pooling, "
            "small width, and learned sequence pooling in place of the class token."
        ),
        part="lightformers.models.vision.cct:CCT",
    ),
    Paper(
        slug="efficientvmamba",
        title="EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba",
        year=2024,
        arxiv="2403.09977",
        family="vision",
        kind="system",
        summary=(
            "Lets each of four scan directions read a quarter of the pixels, adds a depthwise branch for "
            "detail and uses plain convolution blocks in late stages."
        ),
        part="lightformers.models.vision.efficientvmamba:EfficientVMamba",
    ),
    Paper(
        slug="t2t-vit",
        title="Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet",
        year=2021,
        arxiv="2101.11986",
        family="vision",
        kind="system",
        summary=(
            "Re-tokenizes an image step by step, with small attention layers between overlapping unfolds, "
            "and uses a deep and narrow trunk."
        ),
        part="lightformers.models.vision.t2t_vit:T2TViT",
    ),
    Paper(
        slug="sret",
        title="Sliced Recursive Transformer",
        year=2021,
        arxiv="2111.05297",
        family="vision",
        kind="system",
        summary=(
            "Applies each block twice with shared weights and a small unshared projection between, while "
            "attention in token slices pays for the second pass."
        ),
        part="lightformers.models.vision.sret:SReT",
    ),
    Paper(
        slug="rmt",
        title="RMT: Retentive Networks Meet Vision Transformers",
        year=2023,
        arxiv="2309.11523",
        family="vision",
        kind="system",
        summary=(
            "Lets attention between two image tokens decay with their Manhattan distance, per head, "
            "decomposed along rows and columns to stay cheap."
        ),
        part="lightformers.models.vision.rmt:RMT",
    ),
    Paper(
        slug="tnt",
        title="Transformer in Transformer",
        year=2021,
        arxiv="2103.00112",
        family="vision",
        kind="system",
        summary=(
            "Runs a tiny transformer over the 4x4-pixel words inside each image patch and adds its result to "
            "the patch token of the outer transformer."
        ),
        part="lightformers.models.vision.tnt:TNT",
    ),
    Paper(
        slug="vir",
        title="ViR: Vision Retention Networks",
        year=2023,
        arxiv="2310.19731",
        family="vision",
        kind="system",
        summary=(
            "Replaces a vision transformer's attention by retention with a fixed decay per head, with equal "
            "parallel, recurrent and chunked forms."
        ),
        part="lightformers.models.vision.vir:ViR",
    ),
    Paper(
        slug="relation-detr",
        title="Relation DETR: Exploring Explicit Position Relation Prior for Object Detection",
        year=2024,
        arxiv="2407.11699",
        family="vision",
        kind="system",
        summary=(
            "Biases attention between object queries by the geometry of their boxes from layer to layer, and "
            "adds a many-to-one matched query group."
        ),
        part="lightformers.models.vision.relation_detr:RelationDETR",
    ),
)
