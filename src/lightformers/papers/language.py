"""Whole language models, tasks and studies of them."""

from __future__ import annotations

from lightformers.papers.record import Paper

PAPERS = (
    Paper(
        slug="hierarchical-autoregressive",
        title=(
            "Hierarchical Autoregressive Transformers: Combining Byte-~and Word-Level Processing for Robust, "
            "Adaptable Language Models"
        ),
        year=2025,
        arxiv="2501.10322",
        family="language",
        kind="system",
        summary=(
            "Drops the tokenizer: a byte encoder makes one vector per word, a large backbone predicts the "
            "next word's vector, a byte decoder spells it."
        ),
        part="lightformers.models.language.hierarchical_autoregressive:HierarchicalAutoregressive",
    ),
    Paper(
        slug="long-range-arena",
        title="Long Range Arena: A Benchmark for Efficient Transformers",
        year=2020,
        arxiv="2011.04006",
        family="language",
        kind="benchmark",
        summary=(
            "Compares efficient attentions inside one common encoder on six tasks of 1K to 16K tokens, for "
            "quality, speed and memory."
        ),
        part="lightformers.parts.mixers.efficient:EfficientAttention",
    ),
    Paper(
        slug="wide-attention",
        title="Wide Attention Is The Way Forward For Transformers?",
        year=2022,
        arxiv="2210.00640",
        family="language",
        kind="study",
        summary=(
            "Asks whether one wide layer with all heads can replace a deep stack with the same number of "
            "heads in small language tasks trained from scratch."
        ),
        part="lightformers.reproduce.wide_attention:run",
    ),
    Paper(
        slug="transformer-programs",
        title="Learning Transformer Programs",
        year=2023,
        arxiv="2306.01128",
        family="language",
        kind="system",
        summary=(
            "Trains a transformer whose stream is named discrete variables and whose heads read and write "
            "single ones, then prints it as a Python program."
        ),
        part="lightformers.models.language.transformer_programs:TransformerProgram",
    ),
    Paper(
        slug="icl-discrete-functions",
        title=(
            "Understanding In-Context Learning in Transformers and LLMs by Learning to Learn Discrete "
            "Functions"
        ),
        year=2023,
        arxiv="2310.03016",
        family="language",
        kind="study",
        summary=(
            "Maps which Boolean function classes transformers and attention-free models learn from examples "
            "in the prompt, and what a teaching sequence changes."
        ),
        part="lightformers.reproduce.icl_discrete_functions:run",
    ),
    Paper(
        slug="ftp",
        title=(
            "Future Token Prediction -- Causal Language Modelling with Per-Token Semantic State Vector for "
            "Multi-Token Prediction"
        ),
        year=2024,
        arxiv="2410.18160",
        family="language",
        kind="system",
        summary=(
            "Gives a small decoder nothing but one state vector per position, from which it must predict "
            "several coming tokens, so that the vector holds meaning."
        ),
        part="lightformers.models.language.ftp:FutureTokenPrediction",
    ),
    Paper(
        slug="teaching-arithmetic",
        title="Teaching Arithmetic to Small Transformers",
        year=2023,
        arxiv="2307.03381",
        family="language",
        kind="study",
        summary=(
            "Shows how the format of training text (reversed sums, written-out steps) and its balance decide "
            "when a small character model learns arithmetic."
        ),
        part="lightformers.reproduce.teaching_arithmetic:run",
    ),
    Paper(
        slug="retro",
        title="Shall We Pretrain Autoregressive Language Models with Retrieval? A Comprehensive Study",
        year=2023,
        arxiv="2304.06762",
        family="language",
        kind="system",
        summary=(
            "Has a decoder cross-attend to passages retrieved for every chunk of 64 tokens, from "
            "pre-training on, and puts the best one into the prompt for questions."
        ),
        part="lightformers.models.language.retro:Retro",
    ),
    Paper(
        slug="ebwm",
        title="Cognitively Inspired Energy-Based World Models",
        year=2024,
        arxiv="2406.08862",
        family="language",
        kind="system",
        summary=(
            "Scores context and candidate next state with an energy and predicts by gradient descent on the "
            "candidate, so that thinking time can vary."
        ),
        part="lightformers.models.language.ebwm:EnergyBasedTransformer",
    ),
    Paper(
        slug="algoformer",
        title="On the Expressive Power of a Variant of the Looped Transformer",
        year=2024,
        arxiv="2402.13572",
        family="language",
        kind="system",
        summary=(
            "Loops a weight-shared transformer between one that prepares and one that concludes, the shape "
            "of an iterative algorithm, to solve tasks in context."
        ),
        part="lightformers.models.language.algoformer:AlgoFormer",
    ),
    Paper(
        slug="verbatim-memory",
        title="Characterizing Verbatim Short-Term Memory in Neural Language Models",
        year=2022,
        arxiv="2210.13569",
        family="language",
        kind="study",
        summary=(
            "Probes a language model with a noun list that comes twice: how much less the second surprises "
            "shows what identity and order it can retrieve."
        ),
        part="lightformers.reproduce.verbatim_memory:run",
    ),
)
