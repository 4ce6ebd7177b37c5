"""Training and running models over several devices."""

from __future__ import annotations

from lightformers.papers.record import Paper

PAPERS = (
    Paper(
        slug="ladder-residual",
        title=(
            "Ladder-residual: parallelism-aware architecture for accelerating large model inference with "
            "communication overlapping"
        ),
        year=2025,
        arxiv="2501.06589",
        family="distributed",
        kind="system",
        summary=(
            "Feeds each sub-layer a residual stream without its predecessor's output, so that "
            "tensor-parallel communication overlaps with computing."
        ),
        part="lightformers.models.language.ladder_residual:LadderResidual",
    ),
    Paper(
        slug="deep-optimizer-states",
        title=(
            "Deep Optimizer States: Towards Scalable Training of Transformer Models Using Interleaved "
            "Offloading"
        ),
        year=2024,
        arxiv="2410.21316",
        family="distributed",
        kind="system",
        summary=(
            "Keeps Adam's states on the host and streams every k-th part to the accelerator for its update "
            "while the processor updates the others."
        ),
        part="lightformers.train.deep_optimizer_states:DeepOptimizerStates",
    ),
    Paper(
        slug="unpadded-bert",
        title="Boosting Distributed Training Performance of the Unpadded BERT Model",
        year=2022,
        arxiv="2208.08124",
        family="distributed",
        kind="system",
        summary=(
            "Trains BERT without padding, attends in groups by length, and exchanges samples between workers "
            "so that all have equally many tokens."
        ),
        part="lightformers.train.unpadded:UnpaddedTraining",
    ),
    Paper(
        slug="megatron-lm",
        title="Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism",
        year=2019,
        arxiv="1909.08053",
        family="distributed",
        kind="system",
        summary=(
            "Splits each layer by columns and then rows over devices, so that forward and backward need two "
            "all-reduces each."
        ),
        part="lightformers.train.tensor_parallel:TensorParallel",
    ),
)
