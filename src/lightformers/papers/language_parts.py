"""Sequence mixers, attentions and feed-forward layers for language models."""

from __future__ import annotations

from lightformers.papers.record import Paper

PAPERS = (
    Paper(
        slug="matmul-free",
        title="Scalable MatMul-free Language Modeling",
        year=2024,
        arxiv="2406.02528",
        family="language",
        kind="system",
        summary=(
            "Builds a language model from ternary linear layers and an element-wise gated recurrence, so "
            "that no dense floating-point product is left."
        ),
        part="lightformers.parts.mixers.mlgru:MLGRU",
    ),
    Paper(
        slug="mamba",
        title="Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
        year=2023,
        arxiv="2312.00752",
        family="language",
        kind="system",
        summary=(
            "Replaces attention and MLP by a state-space recurrence whose step size and input/output vectors "
            "depend on the token, linear in length and constant per generated token."
        ),
        part="lightformers.parts.mixers.mamba:Mamba",
    ),
    Paper(
        slug="mamba2-hybrid",
        title="An Empirical Study of Mamba-based Language Models",
        year=2024,
        arxiv="2406.07887",
        family="language",
        kind="system",
        summary=(
            "Compares 8B Mamba, Mamba-2 and transformer models and mixes 24 Mamba-2, 4 attention and 28 MLP "
            "layers to restore copying at small cache cost."
        ),
        part="lightformers.parts.mixers.mamba2:Mamba2",
    ),
    Paper(
        slug="tokenformer",
        title="TokenFormer: Rethinking Transformer Scaling with Tokenized Model Parameters",
        year=2024,
        arxiv="2410.23168",
        family="language",
        kind="system",
        summary=(
            "Makes every projection an attention over learned key/value parameter tokens, so that a trained "
            "model grows by appending tokens."
        ),
        part="lightformers.parts.ffn.pattention:Pattention",
    ),
    Paper(
        slug="thor",
        title="Taming Sparsely Activated Transformer with Stochastic Experts",
        year=2021,
        arxiv="2110.04260",
        family="language",
        kind="system",
        summary=(
            "Trains experts without a router: each layer picks one at random, and two passes are pulled to "
            "agree, so that any expert serves at inference."
        ),
        part="lightformers.parts.routing.thor:StochasticExperts",
    ),
    Paper(
        slug="deltanet",
        title="Parallelizing Linear Transformers with the Delta Rule over Sequence Length",
        year=2024,
        arxiv="2406.06484",
        family="language",
        kind="system",
        summary=(
            "Corrects the matrix state of linear attention by the delta rule (removes what the key now "
            "retrieves before writing), in parallel by chunks."
        ),
        part="lightformers.parts.mixers.deltanet:DeltaNet",
    ),
    Paper(
        slug="memoryformer",
        title="MemoryFormer: Minimize Transformer Computation by Removing Fully-Connected Layers",
        year=2024,
        arxiv="2411.12992",
        family="language",
        kind="system",
        summary=(
            "Replaces linear layers by hashing: signs of input groups select rows of learned tables, which "
            "are scaled and summed, so that memory grows in place of arithmetic."
        ),
        part="lightformers.parts.ffn.memory_layer:MemoryLayer",
    ),
    Paper(
        slug="ecoformer",
        title="EcoFormer: Energy-Saving Attention with Linear Complexity",
        year=2022,
        arxiv="2209.09004",
        family="language",
        kind="system",
        summary=(
            "Maps shared queries and keys to short binary codes by learned kernel hashing, so that linear "
            "attention mostly adds."
        ),
        part="lightformers.parts.attention.ecoformer:EcoFormerAttention",
    ),
    Paper(
        slug="structured-ffn",
        title=(
            "Building on Efficient Foundations: Effectively Training LLMs with Structured Feedforward Layers"
        ),
        year=2024,
        arxiv="2406.16450",
        family="language",
        kind="system",
        summary=(
            "Builds feed-forward layers from low-rank, block-shuffled or block-dense factors from the start, "
            "guided early by a dense matrix that fades out."
        ),
        part="lightformers.parts.ffn.structured:StructuredFeedForward",
    ),
    Paper(
        slug="primer",
        title="Primer: Searching for Efficient Transformers for Language Modeling",
        year=2021,
        arxiv="2109.08668",
        family="language",
        kind="system",
        summary=(
            "Speeds language-model training with two changes found by evolution: squared ReLU and a width-3 "
            "causal convolution after the q, k and v projections."
        ),
        part="lightformers.parts.mixers.primer:PrimerAttention",
    ),
    Paper(
        slug="aaren",
        title="Attention as an RNN",
        year=2024,
        arxiv="2405.13956",
        family="language",
        kind="system",
        summary=(
            "Computes softmax attention of a learned query over all prefixes with an associative scan: "
            "trained in parallel, updated per token in constant memory."
        ),
        part="lightformers.parts.mixers.aaren:Aaren",
    ),
    Paper(
        slug="masformer",
        title=(
            "Efficient Long-Range Transformers: You Need to Attend More, but Not Necessarily at Every Layer"
        ),
        year=2023,
        arxiv="2310.12442",
        family="language",
        kind="system",
        summary=(
            "Keeps full attention in a few layers of a decoder and local attention in the rest, and "
            "continues training on long sequences."
        ),
        part="lightformers.compress.spans:MixedSpans",
    ),
    Paper(
        slug="combiner",
        title="Combiner: Full Attention Transformer with Sparse Computation Cost",
        year=2021,
        arxiv="2107.05768",
        family="language",
        kind="system",
        summary=(
            "Factorises full attention: near tokens directly, the others through summaries of spans, so that "
            "every position keeps weight at sub-quadratic cost."
        ),
        part="lightformers.parts.attention.combiner:fixed",
    ),
    Paper(
        slug="polycom",
        title="Polynomial Composition Activations: Unleashing the Dynamics of Large Language Models",
        year=2024,
        arxiv="2411.03884",
        family="language",
        kind="system",
        summary=(
            "Uses learned cubic polynomials of ReLU, or of normalised powers, as activation in feed-forward "
            "layers for four more scalars a layer."
        ),
        part="lightformers.parts.ffn.polycom:PolyNorm",
    ),
)
