"""Fitting a trained model to a task with few weights or few examples."""

from __future__ import annotations

from lightformers.papers.record import Paper

PAPERS = (
    Paper(
        slug="vlsm-adapter",
        title="VLSM-Adapter: Finetuning Vision-Language Segmentation Efficiently with Lightweight Blocks",
        year=2024,
        arxiv="2405.06196",
        family="adaptation",
        kind="system",
        summary=(
            "Inserts bottleneck adapters into the frozen encoders of the text-prompted segmenter CLIPSeg, "
            "densely or on skip connections only, for medical images."
        ),
        part="lightformers.adapt.vlsm_adapter:VLSMAdapter",
    ),
    Paper(
        slug="swift",
        title="SWIFT:A Scalable lightWeight Infrastructure for Fine-Tuning",
        year=2024,
        arxiv="2408.05517",
        family="adaptation",
        kind="system",
        summary=(
            "Puts many tuners, tasks and exports behind one interface: attach, combine, save and merge "
            "adapters, and fine-tune with one command."
        ),
        part="lightformers.adapt.tuning:FineTune",
    ),
    Paper(
        slug="codeberter",
        title="Model-Agnostic Syntactical Information for Pre-Trained Programming Language Models",
        year=2023,
        arxiv="2303.06233",
        family="adaptation",
        kind="system",
        summary=(
            "Teaches a frozen code encoder the syntactic type of every token through small adapters with a "
            "token-type loss whose labels come from the parser."
        ),
        part="lightformers.adapt.codeberter:SyntaxAdapter",
    ),
    Paper(
        slug="pvp",
        title="PVP: Pre-trained Visual Parameter-Efficient Tuning",
        year=2023,
        arxiv="2304.13639",
        family="adaptation",
        kind="system",
        summary=(
            "Pre-trains the prompts or LoRA modules themselves on a large labelled source set over a frozen "
            "backbone, then starts few-shot tuning from them."
        ),
        part="lightformers.adapt.pvp:PreTrainedPrompts",
    ),
    Paper(
        slug="dvpt",
        title="DVPT: Dynamic Visual Prompt Tuning of Large Pre-trained Models for Medical Image Analysis",
        year=2023,
        arxiv="2307.09787",
        family="adaptation",
        kind="system",
        summary=(
            "Lets learned prompts query the image's own bottleneck features beside frozen MLP layers, so "
            "that prompts differ from sample to sample."
        ),
        part="lightformers.adapt.dvpt:DynamicVisualPrompts",
    ),
    Paper(
        slug="adaptformer",
        title="AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition",
        year=2022,
        arxiv="2205.13535",
        family="adaptation",
        kind="system",
        summary=(
            "Adds a small scaled bottleneck branch in parallel to each frozen MLP of a vision transformer "
            "and trains only these branches and the head."
        ),
        part="lightformers.adapt.adaptformer:AdaptFormer",
    ),
    Paper(
        slug="zeroi2v",
        title="ZeroI2V: Zero-Cost Adaptation of Pre-trained Transformers from Image to Video",
        year=2023,
        arxiv="2310.01324",
        family="adaptation",
        kind="system",
        summary=(
            "Makes a video classifier from a frozen image transformer at no cost in inference: some heads "
            "read neighbouring frames and linear adapters fold into the weights."
        ),
        part="lightformers.adapt.zeroi2v:ZeroI2V",
    ),
    Paper(
        slug="personalized-code",
        title="Exploring and Evaluating Personalized Models for Code Generation",
        year=2022,
        arxiv="2208.13928",
        family="adaptation",
        kind="study",
        summary=(
            "Adapts a code model to one software project with all weights, embeddings and output layer, the "
            "last block, or a prefix, and weighs quality against storage."
        ),
        part="lightformers.adapt.personalize:Personalize",
    ),
    Paper(
        slug="pyra",
        title="PYRA: Parallel Yielding Re-Activation for Training-Inference Efficient Task Adaptation",
        year=2024,
        arxiv="2403.09192",
        family="adaptation",
        kind="system",
        summary=(
            "Adapts a large vision transformer with LoRA and merges tokens at once; a tiny module modulates "
            "tokens just before merging so that less is lost."
        ),
        part="lightformers.adapt.pyra:Pyra",
    ),
    Paper(
        slug="few-shot-content-analysis",
        title=(
            "Few-shot learning for automated content analysis: Efficient coding of arguments and claims in "
            "the debate on arms deliveries to Ukraine"
        ),
        year=2023,
        arxiv="2312.16975",
        family="adaptation",
        kind="system",
        summary=(
            "Classifies stances in texts from few labels with bottleneck adapters and a cloze head on a "
            "frozen multilingual encoder."
        ),
        part="lightformers.adapt.pattern_exploiting:PatternExploitingAdapter",
    ),
    Paper(
        slug="spt",
        title="SPT: Fine-Tuning Transformer-based Language Models Efficiently with Sparsification",
        year=2023,
        arxiv="2312.10365",
        family="adaptation",
        kind="system",
        summary=(
            "Cheapens LoRA tuning with run-time sparsity: queries keep the top eighth of attention found by "
            "product quantization, tokens half the feed-forward blocks."
        ),
        part="lightformers.adapt.spt:SparseTuning",
    ),
    Paper(
        slug="zett",
        title="Zero-Shot Tokenizer Transfer",
        year=2024,
        arxiv="2405.07883",
        family="adaptation",
        kind="system",
        summary=(
            "Swaps the tokenizer of a trained language model: a network predicts each new token's embedding "
            "from how the old tokenizer splits it."
        ),
        part="lightformers.compress.zett:ZeroShotTokenizer",
    ),
    Paper(
        slug="continual-baseline",
        title="A Simple Baseline that Questions the Use of Pretrained-Models in Continual Learning",
        year=2022,
        arxiv="2210.04428",
        family="adaptation",
        kind="study",
        summary=(
            "Classifies by the nearest running class mean of frozen features, without training or memory, "
            "and so questions elaborate continual learners."
        ),
        part="lightformers.reproduce.continual_baseline:run",
    ),
)
