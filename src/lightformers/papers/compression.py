"""Making trained models smaller: pruning, quantizing, factorizing."""

from __future__ import annotations

from lightformers.papers.record import Paper

PAPERS = (
    Paper(
        slug="greenformers",
        title=(
            "Greenformers: Improving Computation and Memory Efficiency in Transformer Models via Low-Rank "
            "Approximation"
        ),
        year=2021,
        arxiv="2108.10808",
        family="compression",
        kind="system",
        summary=(
            "Factorises weight matrices and convolutions into thin pairs by SVD or other solvers below the "
            "break-even rank, and compares that with Linformer on long inputs."
        ),
        part="lightformers.compress.factorize.greenformers:Greenformers",
    ),
    Paper(
        slug="dsformer",
        title="DSFormer: Effective Compression of Text-Transformers by Dense-Sparse Weight Factorization",
        year=2023,
        arxiv="2312.13211",
        family="compression",
        kind="system",
        summary=(
            "Writes weight blocks as sparse coefficients times a small dense basis, so that each row picks "
            "its own basis vectors, learned directly on the task."
        ),
        part="lightformers.compress.factorize.dsformer:DenseSparse",
    ),
    Paper(
        slug="minitron",
        title="Compact Language Models via Pruning and Knowledge Distillation",
        year=2024,
        arxiv="2407.14679",
        family="compression",
        kind="system",
        summary=(
            "Ranks feed-forward units, heads, channels and blocks of a language model by forward "
            "activations, cuts the weakest and re-trains by distillation."
        ),
        part="lightformers.compress.prune.minitron:Minitron",
    ),
    Paper(
        slug="vtrans",
        title=(
            "VTrans: Accelerating Transformer Compression with Variational Information Bottleneck based "
            "Pruning"
        ),
        year=2024,
        arxiv="2406.05276",
        family="compression",
        kind="system",
        summary=(
            "Learns noisy gates on channels, heads, neurons and blocks under an information bottleneck, and "
            "removes those that turn to noise until a size target is met."
        ),
        part="lightformers.compress.prune.vtrans:VTrans",
    ),
    Paper(
        slug="llm-fp4",
        title="LLM-FP4: 4-Bit Floating-Point Quantized Transformers",
        year=2023,
        arxiv="2310.16836",
        family="compression",
        kind="system",
        summary=(
            "Quantizes weights and activations to 4-bit floats with searched exponent bias and format; "
            "per-channel scales are powers of two moved into the weights."
        ),
        part="lightformers.compress.quantize.llm_fp4:FloatQuantize",
    ),
    Paper(
        slug="obert",
        title=(
            "The Optimal BERT Surgeon: Scalable and Accurate Second-Order Pruning for Large Language Models"
        ),
        year=2022,
        arxiv="2203.07259",
        family="compression",
        kind="system",
        summary=(
            "Prunes single weights or small blocks by a block-diagonal inverse Fisher matrix and corrects "
            "the survivors, within a gradual schedule with distillation."
        ),
        part="lightformers.compress.prune.obert:OptimalBertSurgeon",
    ),
    Paper(
        slug="axformer",
        title=(
            "AxFormer: Accuracy-driven Approximation of Transformers for Faster, Smaller and more Accurate "
            "NLP Models"
        ),
        year=2020,
        arxiv="2010.03688",
        family="compression",
        kind="system",
        summary=(
            "Removes blocks, heads and neuron groups of a fine-tuned model wherever the validation loss does "
            "not mind, and hardens attention in late layers."
        ),
        part="lightformers.compress.prune.axformer:AxFormer",
    ),
    Paper(
        slug="pela",
        title="PELA: Learning Parameter-Efficient Models with Low-Rank Approximation",
        year=2023,
        arxiv="2310.10700",
        family="compression",
        kind="system",
        summary=(
            "Cuts a pretrained model by SVD once, repairs it with feature distillation near the original "
            "weights, and hands it out as a base for fine-tuning."
        ),
        part="lightformers.compress.factorize.pela:Pela",
    ),
    Paper(
        slug="llm-int8",
        title="LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale",
        year=2022,
        arxiv="2208.07339",
        family="compression",
        kind="system",
        summary=(
            "Multiplies in int8 with one scale per row on either side, and keeps the few input features that "
            "hold outliers in 16 bit, without calibration."
        ),
        part="lightformers.compress.quantize.llm_int8:LLMInt8",
    ),
    Paper(
        slug="essential-sparsity",
        title="The Emergence of Essential Sparsity in Large Pre-trained Models: The Weights that Matter",
        year=2023,
        arxiv="2306.03805",
        family="compression",
        kind="study",
        summary=(
            "Prunes a pretrained model once by magnitude over all layers, fine-tunes with the mask fixed, "
            "and finds the sparsity at which quality breaks."
        ),
        part="lightformers.compress.prune.essential_sparsity:EssentialSparsity",
    ),
    Paper(
        slug="dsee",
        title="DSEE: Dually Sparsity-embedded Efficient Tuning of Pre-trained Language Models",
        year=2021,
        arxiv="2111.00160",
        family="compression",
        kind="system",
        summary=(
            "Fine-tunes with an update that is low-rank plus a few free entries, then prunes the final "
            "weights, so that tuning and inference both shrink."
        ),
        part="lightformers.compress.prune.dsee:DSEE",
    ),
    Paper(
        slug="bct",
        title="Blockwise Compression of Transformer-based Models without Retraining",
        year=2023,
        arxiv="2304.01483",
        family="compression",
        kind="system",
        summary=(
            "Quantizes weights, activations and non-linear functions of an encoder in small blocks, each "
            "with its own power-of-two scale, without re-training."
        ),
        part="lightformers.compress.quantize.bct:BlockwiseQuantize",
    ),
    Paper(
        slug="teacher-intervention",
        title=(
            "Teacher Intervention: Improving Convergence of Quantization Aware Training for Ultra-Low "
            "Precision Transformers"
        ),
        year=2023,
        arxiv="2302.11812",
        family="compression",
        kind="system",
        summary=(
            "Trains ternary weights while the teacher's attention signals replace the student's in the "
            "forward pass, moved inward step by step."
        ),
        part="lightformers.compress.quantize.teacher_intervention:TeacherIntervention",
    ),
)
