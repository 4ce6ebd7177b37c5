"""Running models faster without changing, or hardly changing, their weights."""

from __future__ import annotations

from lightformers.papers.record import Paper

PAPERS = (
    Paper(
        slug="chunkllm",
        title="ChunkLLM: A Lightweight Pluggable Framework for Accelerating LLMs Inference",
        year=2025,
        arxiv="2510.02361",
        family="inference",
        kind="system",
        summary=(
            "Adds a chunk-boundary detector and compressed query/key projections to a frozen language model, "
            "which then re-selects the chunks it attends to only at boundaries."
        ),
        part="lightformers.infer.chunkllm:ChunkLLM",
    ),
    Paper(
        slug="franc",
        title="A Lightweight Framework for High-Quality Code Generation",
        year=2023,
        arxiv="2307.08220",
        family="inference",
        kind="system",
        summary=(
            "Wraps any code generator without training: repairs or drops suggestions that do not compile, "
            "ranks the rest by static analysis and re-prompts with the findings."
        ),
        part="lightformers.infer.franc:Franc",
    ),
    Paper(
        slug="system-1-5",
        title="System-1.5 Reasoning: Traversal in Language and Latent Spaces with Dynamic Shortcuts",
        year=2025,
        arxiv="2505.18962",
        family="inference",
        kind="system",
        summary=(
            "Reasons in latent steps of uneven cost: easy steps leave the network early through adapters, "
            "and states jump to the next step without starting from the bottom."
        ),
        part="lightformers.infer.system_1_5:System15",
    ),
    Paper(
        slug="bytetransformer",
        title="ByteTransformer: A High-Performance Transformer Boosted for Variable-Length Inputs",
        year=2022,
        arxiv="2210.03052",
        family="inference",
        kind="system",
        summary=(
            "Packs the real tokens of all sequences together, so that a BERT-like encoder spends no "
            "arithmetic on padding, with attention per sequence from offsets."
        ),
        part="lightformers.infer.bytetransformer:Packed",
    ),
    Paper(
        slug="zero-tprune",
        title=(
            "Zero-TPrune: Zero-Shot Token Pruning through Leveraging of the Attention Graph in Pre-Trained "
            "Transformers"
        ),
        year=2023,
        arxiv="2305.17328",
        family="inference",
        kind="system",
        summary=(
            "Drops tokens of a trained vision transformer without training, by PageRank on the attention "
            "graph and then by similarity between tokens."
        ),
        part="lightformers.infer.zero_tprune:ZeroTPrune",
    ),
    Paper(
        slug="puma",
        title="PUMA: Secure Inference of LLaMA-7B in Five Minutes",
        year=2023,
        arxiv="2307.12533",
        family="inference",
        kind="system",
        summary=(
            "Runs transformers on secret-shared fixed-point numbers among three parties, with polynomials "
            "for GELU and softmax that need no re-training."
        ),
        part="lightformers.infer.puma:SecureApproximations",
    ),
    Paper(
        slug="sparse-cpu-accelerator",
        title=(
            "An Efficient Sparse Inference Software Accelerator for Transformer-based Language Models on CPUs"
        ),
        year=2023,
        arxiv="2306.16601",
        family="inference",
        kind="system",
        summary=(
            "Prunes weights in tiny constant blocks that fit the processor's int8 dot product and multiplies "
            "with a kernel which skips the zero blocks."
        ),
        part="lightformers.kernels.block_sparse:BlockSparseLinear",
    ),
    Paper(
        slug="kv-prediction",
        title="KV Prediction for Improved Time to First Token",
        year=2024,
        arxiv="2410.08391",
        family="inference",
        kind="system",
        summary=(
            "Lets a small model read the prompt and maps its key/value cache linearly to the big model's, so "
            "that the first token comes early."
        ),
        part="lightformers.infer.kv_prediction:KVPrediction",
    ),
    Paper(
        slug="prepacking",
        title=(
            "Prepacking: A Simple Method for Fast Prefilling and Increased Throughput in Large Language "
            "Models"
        ),
        year=2024,
        arxiv="2404.09529",
        family="inference",
        kind="system",
        summary=(
            "Packs prompts of different length into few rows with a block-diagonal mask and restarted "
            "positions, then cuts the cache apart again for decoding."
        ),
        part="lightformers.infer.prepacking:Prepacking",
    ),
    Paper(
        slug="lazyllm",
        title="LazyLLM: Dynamic Token Pruning for Efficient Long Context LLM Inference",
        year=2024,
        arxiv="2407.14057",
        family="inference",
        kind="system",
        summary=(
            "Computes only those prompt tokens in later layers that matter for the next token, and revives "
            "skipped ones from cached hidden states when needed."
        ),
        part="lightformers.infer.lazyllm:LazyLLM",
    ),
)
