"""Weather, proteins and scenes."""

from __future__ import annotations

from lightformers.papers.record import Paper

PAPERS = (
    Paper(
        slug="omni-recon",
        title="Omni-Recon: Harnessing Image-based Rendering for General-Purpose Neural Radiance Fields",
        year=2024,
        arxiv="2403.11131",
        family="science",
        kind="system",
        summary=(
            "Renders new scenes by blending pixels of posed views: a heavy branch finds geometry, a light "
            "one the weights, which lift any 2-D prediction to 3-D too."
        ),
        part="lightformers.models.science.omni_recon:OmniRecon",
    ),
    Paper(
        slug="protenix-mini",
        title=(
            "Protenix-Mini: Efficient Structure Predictor via Compact Architecture, Few-Step Diffusion and "
            "Switchable pLM"
        ),
        year=2025,
        arxiv="2507.11839",
        family="science",
        kind="system",
        summary=(
            "Shrinks an all-atom structure predictor by a few-step ODE sampler, removal of weak blocks and a "
            "protein language model in place of alignments."
        ),
        part="lightformers.models.science.protenix_mini:ProtenixMini",
    ),
    Paper(
        slug="stormer",
        title=(
            "Scaling transformer neural networks for skillful and reliable medium-range weather forecasting"
        ),
        year=2023,
        arxiv="2312.03876",
        family="science",
        kind="system",
        summary=(
            "Forecasts weather with a plain transformer: embeds each variable, predicts the change over "
            "random intervals with pressure weights, and averages interval mixes."
        ),
        part="lightformers.models.science.stormer:Stormer",
    ),
)
