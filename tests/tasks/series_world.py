"""Small series, and runners that forecast them without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightformers.bundle import Bundle


def hours(rows: int, start: str = "2016-07-01T00") -> np.ndarray:
    return np.datetime64(start, "s") + np.arange(rows) * np.timedelta64(3600, "s")


def waves(rows: int, channels: int = 2, seed: int = 0) -> np.ndarray:
    """(rows, channels): a day's wave, another level and size per channel, and noise."""
    drawn = np.random.default_rng(seed)
    phase = np.arange(rows)[:, None] * 2 * np.pi / 24 + np.arange(channels)
    return (
        (1 + np.arange(channels)) * np.sin(phase)
        + 5 * np.arange(channels)
        + 0.1 * drawn.standard_normal((rows, channels))
    )


def csv(path: Path, columns: dict[str, Sequence[Any]]) -> Path:
    lines = [
        ",".join(columns),
        *(",".join("" if c is None else str(c) for c in row) for row in zip(*columns.values())),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


class ForecastRunner:
    """Answers with `answer(past_values) -> (batch, horizon, channels)` on standardised windows, `batch` at a time."""

    def __init__(
        self, bundle: Bundle, answer: Callable[[torch.Tensor], torch.Tensor], batch: int = 32
    ) -> None:
        self.bundle, self.answer, self.batch = bundle, answer, batch

    def encode(self, examples: Sequence[Any]) -> list[Any]:
        return self.bundle.encode(examples)

    def run(self, encoded: Sequence[Any], reduce: Any) -> list[Any]:
        out: list[Any] = []
        for i in range(0, len(encoded), self.batch):
            batch = self.bundle.pad(encoded[i : i + self.batch])
            out.extend(reduce({"prediction": self.answer(batch.inputs["past_values"])}, batch))
        return out

    def __call__(self, examples: Sequence[Any], reduce: Any) -> list[Any]:
        return self.run(self.encode(examples), reduce)


def repeat(horizon: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The last value for the whole horizon."""
    return lambda past: past[:, -1:].expand(-1, horizon, -1)


def patch_mixer(context: int = 24, horizon: int = 6, channels: int = 2, seed: int = 0) -> Any:
    """transformers' own PatchTSMixer, tiny."""
    from transformers import PatchTSMixerConfig, PatchTSMixerForPrediction

    torch.manual_seed(seed)
    return PatchTSMixerForPrediction(
        PatchTSMixerConfig(
            context_length=context,
            prediction_length=horizon,
            num_input_channels=channels,
            patch_length=4,
            patch_stride=4,
            d_model=8,
            num_layers=2,
            expansion_factor=2,
            dropout=0.0,
            head_dropout=0.0,
            scaling="std",
        )
    ).eval()


def patch_tst(context: int = 24, horizon: int = 6, channels: int = 2, seed: int = 0, **more: Any) -> Any:
    """transformers' own PatchTST, tiny."""
    from transformers import PatchTSTConfig, PatchTSTForPrediction

    torch.manual_seed(seed)
    sizes = {
        "d_model": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "ffn_dim": 32,
        "patch_length": 4,
        "patch_stride": 4,
    }
    return PatchTSTForPrediction(
        PatchTSTConfig(
            context_length=context,
            prediction_length=horizon,
            num_input_channels=channels,
            scaling="std",
            **{**sizes, **more},
        )
    ).eval()
