"""Train a small vision transformer on ten thousand CIFAR-10 images: six blocks of width 192, 2.7 M parameters.

    python benchmarks/train_small_vit.py [--out out/small-vit] [--epochs 12] [--seconds 480] [--seed 0]

Never more than `--seconds` of training; under ten minutes on two idle cores with AMX. From scratch on so few images it
gets about half of them right; what it is for is to be compressed. Images are turned over at random. The folder opens
in plain transformers, image processor and all. Killed at any moment, the same command goes on from the last tenth.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import training

from lightformers import reproduce, tasks
from lightformers.bundle import Batch, Bundle

FOLDER = Path("out") / "small-vit"
SIDE, PATCH = 32, 4


def cifar(bundle: Bundle | None = None) -> Any:
    """The task; a part of the training images is the search split."""
    return tasks.from_data("image-classification", reproduce.data("cifar10"), bundle=bundle)


def vit(labels: tuple[str, ...], seed: int = 0, blocks: int = 6, width: int = 192, heads: int = 6) -> Bundle:
    """A ViT with random weights for 32 x 32 images, and its image processor."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=width, num_hidden_layers=blocks, num_attention_heads=heads, intermediate_size=4 * width,
        image_size=SIDE, patch_size=PATCH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)},
    )  # fmt: skip
    processor = ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return Bundle(ViTForImageClassification(config), processor, "image-classification")


def turned(batch: Batch, seed: int) -> Batch:
    """Half of the images, left and right exchanged."""
    pixels = batch.inputs["pixel_values"]
    chosen = np.random.default_rng(seed).random(len(pixels)) < 0.5
    pixels[chosen] = pixels[chosen].flip(-1)
    return batch


def made(seed: int = 0) -> tuple[Bundle, Any]:
    """The untrained model and the task."""
    task = cifar()
    bundle = vit(task.labels, seed)
    task.check(bundle)
    return bundle, task


def ready(folder: Path, say: Callable[[str], None] = print, **settings: Any) -> Path:
    """The finished folder, trained first where it is not there yet."""
    rest = {
        "seconds": 480.0,
        "epochs": 12.0,
        "lr": 1e-3,
        "dropout": False,
        "max_examples": 64,
        "augment": turned,
        **settings,
    }
    return training.ready(
        folder, "the small vision transformer", lambda: made(settings.get("seed", 0)), say, **rest
    )


def main() -> None:
    given = training.options(__doc__ or "", FOLDER, 12.0, 480.0)
    ready(given.out, epochs=given.epochs, seconds=given.seconds, seed=given.seed)


if __name__ == "__main__":
    sys.exit(training.guarded(main))
