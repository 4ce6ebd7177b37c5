"""A tiny super-network, and images of two kinds that it can learn to tell apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lightformers.bundle import Bundle
from lightformers.models.vision.elasticvit import ElasticViTModel
from lightformers.models.vision.elasticvit_space import ElasticViTSpace, Stage
from lightformers.tasks.image_classification import ImageClassification

CLASSES = 2
SPACE = ElasticViTSpace(
    (12, 16),
    (
        Stage("conv", (1, 2), (8, 16), (1,), kernels=(3, 5)),
        Stage("conv", (1, 2), (8, 16), (2, 3), 2, (3, 5), squeeze=True),
        Stage("attention", (1, 2), (16, 32), (1, 2), 2, values=(1, 2)),
        Stage("attention", (1, 2), (16, 24), (1, 2), 1, values=(1, 2)),
    ),
    classes=CLASSES,
    features=32,
    expansion=2,
    head=8,
)


def network(seed: int = 0, space: ElasticViTSpace = SPACE) -> ElasticViTModel:
    """Random weights large enough for differences to show."""
    torch.manual_seed(seed)
    made = ElasticViTModel(space)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def images(count: int = 6, side: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def pixels(images: list[np.ndarray], return_tensors: str = "np") -> dict[str, np.ndarray]:
    """Bytes (height, width, 3) to floats (3, height, width)."""
    return {"pixel_values": np.stack([i.transpose(2, 0, 1).astype(np.float32) / 128 - 1 for i in images])}


def bundle(seed: int = 0) -> Bundle:
    return Bundle(network(seed), pixels, "image-classification")


def task(count: int = 96) -> ImageClassification:
    """Class 0 has upright stripes, class 1 lying ones, in noise."""
    random = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for i in range(count):
        wave = np.tile(np.where(np.arange(16) % 4 < 2, 60, -60), (16, 1))
        picture = 128 + (wave if i % 2 == 0 else wave.T)[..., None] + random.normal(0, 10, (16, 16, 3))
        rows.append({"image": picture.clip(0, 255).astype(np.uint8), "label": i % 2})
    half, part = count // 2, count // 4
    return ImageClassification.from_examples(
        {"train": rows[:half], "valid": rows[half : half + part], "test": rows[half + part :]}
    )
