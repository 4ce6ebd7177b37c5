"""Generation of images, video, music, voices and shapes."""

from __future__ import annotations

from lightformers.papers.record import Paper

PAPERS = (
    Paper(
        slug="larp",
        title="LARP: Tokenizing Videos with a Learned Autoregressive Generative Prior",
        year=2024,
        arxiv="2410.21264",
        family="generative",
        kind="system",
        summary=(
            "Tokenizes video into learned holistic queries while a throw-away autoregressive prior trains "
            "along, so that the token sequence becomes easy to generate."
        ),
        part="lightformers.models.generative.larp:LARP",
    ),
    Paper(
        slug="ita-mdt",
        title=(
            "ITA-MDT: Image-Timestep-Adaptive Masked Diffusion Transformer Framework for Image-Based Virtual "
            "Try-On"
        ),
        year=2025,
        arxiv="2503.20418",
        family="generative",
        kind="system",
        summary=(
            "Dresses a person by masked diffusion in-painting; the layers of a frozen image encoder are "
            "mixed by weights that depend on the noise step and on the garment."
        ),
        part="lightformers.models.generative.ita_mdt:ITAMDT",
    ),
    Paper(
        slug="ace-step",
        title="ACE-Step: A Step Towards Music Generation Foundation Model",
        year=2025,
        arxiv="2506.00045",
        family="generative",
        kind="system",
        summary=(
            "Turns text and lyrics into minutes of music by flow matching on a strongly compressed mel "
            "latent, with linear attention and features aligned to speech and music models."
        ),
        part="lightformers.models.generative.ace_step:ACEStep",
    ),
    Paper(
        slug="av-dit",
        title="AV-DiT: Efficient Audio-Visual Diffusion Transformer for Joint Audio and Video Generation",
        year=2024,
        arxiv="2406.07686",
        family="generative",
        kind="system",
        summary=(
            "Denoises video frames and sound with one frozen image diffusion transformer; only temporal "
            "attention, adapters and a shared exchange layer are trained."
        ),
        part="lightformers.models.generative.av_dit:AVDiT",
    ),
    Paper(
        slug="meanvc",
        title="MeanVC: Lightweight and Streaming Zero-Shot Voice Conversion via Mean Flows",
        year=2025,
        arxiv="2510.08392",
        family="generative",
        kind="system",
        summary=(
            "Converts a voice in a stream with a 14M diffusion transformer that needs one network call per "
            "chunk thanks to mean flows, conditioned on its own past output."
        ),
        part="lightformers.models.generative.meanvc:MeanVC",
    ),
    Paper(
        slug="e-mmdit",
        title=(
            "E-MMDiT: Revisiting Multimodal Diffusion Transformer Design for Fast Image Synthesis under "
            "Limited Resources"
        ),
        year=2025,
        arxiv="2510.27135",
        family="generative",
        kind="system",
        summary=(
            "Makes a 304M text-to-image transformer cheap by a 32-fold autoencoder, two-path token "
            "compression, attention within alternating regions and tiny time modulation."
        ),
        part="lightformers.models.generative.e_mmdit:EMMDiT",
    ),
    Paper(
        slug="g3pt",
        title=(
            "G3PT: Unleash the power of Autoregressive Modeling in 3D Generation via Cross-scale Querying "
            "Transformer"
        ),
        year=2024,
        arxiv="2409.06322",
        family="generative",
        kind="system",
        summary=(
            "Generates 3-D shapes scale by scale: learned queries shrink a point cloud's unordered latents "
            "to a pyramid of quantized residual tokens."
        ),
        part="lightformers.models.generative.g3pt:G3PT",
    ),
)
