"""Electric signals of the body."""

from __future__ import annotations

from lightformers.papers.record import Paper

PAPERS = (
    Paper(
        slug="at-at",
        title="Removing Neural Signal Artifacts with Autoencoder-Targeted Adversarial Transformers (AT-AT)",
        year=2025,
        arxiv="2502.05332",
        family="biosignal",
        kind="system",
        summary=(
            "Cleans EEG with an autoencoder, uses how much it had to change as noise estimate, and sends "
            "only badly contaminated segments to a small adversarial transformer."
        ),
        part="lightformers.models.biosignal.at_at:ATAT",
    ),
    Paper(
        slug="tfm-tokenizer",
        title="Tokenizing Single-Channel EEG with Time-Frequency Motif Learning",
        year=2025,
        arxiv="2502.16060",
        family="biosignal",
        kind="system",
        summary=(
            "Turns each EEG channel into discrete tokens by a vector-quantised autoencoder that joins a "
            "masked spectrogram path with a raw-signal path."
        ),
        part="lightformers.models.biosignal.tfm_tokenizer:TFMTokenizer",
    ),
)
