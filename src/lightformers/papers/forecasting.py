"""Forecasting of time series."""

from __future__ import annotations

from lightformers.papers.record import Paper

PAPERS = (
    Paper(
        slug="tsmixer",
        title="TSMixer: Lightweight MLP-Mixer Model for Multivariate Time Series Forecasting",
        year=2023,
        arxiv="2306.09364",
        family="forecasting",
        kind="system",
        summary=(
            "Forecasts from patches with MLPs alone: they mix patches, features and optionally channels, a "
            "softmax gate re-weights features, and small heads reconcile the forecasts."
        ),
        part="lightformers.models.forecasting.tsmixer:TSMixer",
    ),
    Paper(
        slug="tempo",
        title="TEMPO: Prompt-based Generative Pre-trained Transformer for Time Series Forecasting",
        year=2023,
        arxiv="2310.04948",
        family="forecasting",
        kind="system",
        summary=(
            "Forecasts with six GPT-2 layers on trend, season and residual, each patched separately and "
            "preceded by a prompt of its own."
        ),
        part="lightformers.models.forecasting.tempo:Tempo",
    ),
    Paper(
        slug="itransformer",
        title="iTransformer: Inverted Transformers Are Effective for Time Series Forecasting",
        year=2023,
        arxiv="2310.06625",
        family="forecasting",
        kind="system",
        summary=(
            "Turns the transformer around for many-variate forecasting: each variate's whole history is a "
            "token, and attention mixes the variates."
        ),
        part="lightformers.models.forecasting.itransformer:ITransformer",
    ),
    Paper(
        slug="gpht",
        title="Generative Pretrained Hierarchical Transformer for Time Series Forecasting",
        year=2024,
        arxiv="2402.16516",
        family="forecasting",
        kind="system",
        summary=(
            "Forecasts any horizon segment by segment with causal stages from coarse to fine time "
            "resolution, each taking away what it has explained."
        ),
        part="lightformers.models.forecasting.gpht:GPHT",
    ),
    Paper(
        slug="ttm",
        title=(
            "Tiny Time Mixers (TTMs): Fast Pre-trained Models for Enhanced Zero/Few-Shot Forecasting of "
            "Multivariate Time Series"
        ),
        year=2024,
        arxiv="2401.03955",
        family="forecasting",
        kind="system",
        summary=(
            "Forecasts unseen series with under a million weights: mixer blocks with adaptive patching, "
            "down-sampled training data and a resolution prefix."
        ),
        part="lightformers.models.forecasting.ttm:TinyTimeMixer",
    ),
)
