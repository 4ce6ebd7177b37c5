"""Making trained models smaller: distilling, nesting, fusing, trimming, and models built to be compressed."""

from __future__ import annotations

from lightformers.papers.record import Paper

PAPERS = (
    Paper(
        slug="elasticvit",
        title=(
            "ElasticViT: Conflict-aware Supernet Training for Deploying Fast Vision Transformer on Diverse "
            "Mobile Devices"
        ),
        year=2023,
        arxiv="2303.09730",
        family="compression",
        kind="system",
        summary=(
            "Trains one mobile supernet from 37 M to 3.2 G operations by sampling sub-networks of similar "
            "cost in neighbouring steps, so that small and huge ones do not collide."
        ),
        part="lightformers.compress.elastic.elasticvit:ElasticViT",
    ),
    Paper(
        slug="autodistil",
        title=(
            "AutoDistil: Few-shot Task-agnostic Neural Architecture Search for Distilling Large Language "
            "Models"
        ),
        year=2022,
        arxiv="2201.12507",
        family="compression",
        kind="system",
        summary=(
            "Distils three weight-sharing super-networks from BERT by attention relations only, so that any "
            "sub-network within a budget is ready without training of its own."
        ),
        part="lightformers.compress.elastic.autodistil:AutoDistil",
    ),
    Paper(
        slug="lighthubert",
        title=(
            "LightHuBERT: Lightweight and Configurable Speech Representation Learning with Once-for-All "
            "Hidden-Unit BERT"
        ),
        year=2022,
        arxiv="2203.15610",
        family="compression",
        kind="system",
        summary=(
            "Distils HuBERT into a once-for-all speech encoder whose width, heads, feed-forward size and "
            "depth can be sliced to any of a billion shapes."
        ),
        part="lightformers.compress.elastic.lighthubert:LightHuBERT",
    ),
    Paper(
        slug="dclip",
        title="Distill CLIP (DCLIP): Enhancing Image-Text Retrieval via Cross-Modal Transformer Distillation",
        year=2025,
        arxiv="2505.21549",
        family="compression",
        kind="system",
        summary=(
            "Teaches CLIP's image encoder, by contrastive and cosine losses on few pairs, the embeddings of "
            "a teacher that cross-attends image regions and words."
        ),
        part="lightformers.compress.distill.dclip:DCLIP",
    ),
    Paper(
        slug="matformer",
        title="MatFormer: Nested Transformer for Elastic Inference",
        year=2023,
        arxiv="2310.07707",
        family="compression",
        kind="system",
        summary=(
            "Nests feed-forward layers so that the first units form a smaller working model; one training "
            "yields several sizes and free mixtures of them per layer."
        ),
        part="lightformers.compress.elastic.matformer:MatFormer",
    ),
    Paper(
        slug="quantizable-transformers",
        title="Quantizable Transformers: Removing Outliers by Helping Attention Heads Do Nothing",
        year=2023,
        arxiv="2306.12929",
        family="compression",
        kind="system",
        summary=(
            "Lets heads output exactly nothing, by a stretched and clipped softmax or a per-head gate, so "
            "that activations grow no outliers and int8 works."
        ),
        part="lightformers.parts.attention.quantizable:QuantizableAttention",
    ),
    Paper(
        slug="acm",
        title="Adaptive Computation Modules: Granular Conditional Computation For Efficient Inference",
        year=2023,
        arxiv="2312.10193",
        family="compression",
        kind="system",
        summary=(
            "Replaces a layer by a chain of small learners whose outputs add up, while a tiny gate decides "
            "for every token how many of them run."
        ),
        part="lightformers.compress.adaptive.acm:AdaptiveModules",
    ),
    Paper(
        slug="flexibert",
        title="FlexiBERT: Are Current Transformer Architectures too Homogeneous and Rigid?",
        year=2022,
        arxiv="2205.11656",
        family="compression",
        kind="system",
        summary=(
            "Searches encoders whose layers differ in width, operation, heads and feed-forward stack, by a "
            "surrogate with uncertainty over embedded architectures."
        ),
        part="lightformers.models.language.flexibert:FlexiBERT",
    ),
    Paper(
        slug="sorted-llama",
        title=(
            "Sorted LLaMA: Unlocking the Potential of Intermediate Layers of Large Language Models for "
            "Dynamic Inference Using Sorted Fine-Tuning (SoFT)"
        ),
        year=2023,
        arxiv="2309.08968",
        family="compression",
        kind="system",
        summary=(
            "Fine-tunes a decoder at several depths through the one shared norm and head, so that its first "
            "layers alone form working smaller models."
        ),
        part="lightformers.compress.elastic.sorted_llama:SortedLlama",
    ),
    Paper(
        slug="pre-crmsnorm",
        title="Pre-RMSNorm and Pre-CRMSNorm Transformers: Equivalent and Efficient Pre-LN Transformers",
        year=2023,
        arxiv="2305.14858",
        family="compression",
        kind="system",
        summary=(
            "Re-centres the weights that write to the residual stream, so that LayerNorm becomes the cheaper "
            "RMSNorm, or CRMSNorm in one dimension less, with equal outputs."
        ),
        part="lightformers.compress.fold.pre_crmsnorm:ToRMSNorm",
    ),
    Paper(
        slug="idt5",
        title="idT5: Indonesian Version of Multilingual T5 Transformer",
        year=2023,
        arxiv="2302.00856",
        family="compression",
        kind="system",
        summary=(
            "Trims a multilingual model to one language: keeps the embedding rows and tokenizer pieces which "
            "that language and some English use."
        ),
        part="lightformers.compress.vocabulary:TrimVocabulary",
    ),
    Paper(
        slug="fusegpt",
        title="FuseGPT: Learnable Layers Fusion of Generative Pre-trained Transformers",
        year=2024,
        arxiv="2411.14507",
        family="compression",
        kind="system",
        summary=(
            "Removes the block with the least influence and folds its weights into its neighbours through "
            "learned low-rank coefficients."
        ),
        part="lightformers.compress.fold.fusegpt:FuseBlocks",
    ),
    Paper(
        slug="minilm",
        title=(
            "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained "
            "Transformers"
        ),
        year=2020,
        arxiv="2002.10957",
        family="compression",
        kind="system",
        summary=(
            "Distils only the last layer's attention distributions and value (or query, key and value) "
            "relations, which leaves the student's depth and width free."
        ),
        part="lightformers.compress.distill.minilm:MiniLM",
    ),
    Paper(
        slug="spdf",
        title="SPDF: Sparse Pre-training and Dense Fine-tuning for Large Language Models",
        year=2023,
        arxiv="2303.10464",
        family="compression",
        kind="system",
        summary=(
            "Pre-trains a GPT under a fixed random mask, then drops the mask and fine-tunes all weights, so "
            "that most training work is saved."
        ),
        part="lightformers.compress.prune.spdf:SparsePretraining",
    ),
)
