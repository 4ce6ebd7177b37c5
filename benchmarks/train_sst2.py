"""Train the SST-2 classifier that `slim_vs_peers.py` slims: all-MiniLM-L6-v2 with a new head of two classes.

    python benchmarks/train_sst2.py [--out out/sst2-minilm] [--epochs 4] [--seconds 540] [--seed 0]

About five minutes on two idle cores with AMX, never more than `--seconds`. Killed at any moment, the same command goes
on from the last tenth; a finished folder is left as it is. Nothing of the test split is looked at before the end.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import training
from training import DONE, guarded, train

from lightformers import reproduce, tasks
from lightformers.bundle import Bundle
from lightformers.loading import packaged_model
from lightformers.telemetry import quiet

__all__ = ["DONE", "FOLDER", "classifier", "guarded", "ready", "sst2", "train"]
FOLDER = Path("out") / "sst2-minilm"


def classifier(source: Path, seed: int = 0) -> Bundle:
    """The packaged model with a new head; its weights are drawn from `seed`."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(seed)
    names = {0: "negative", 1: "positive"}
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(
            source, id2label=names, label2id={v: k for k, v in names.items()}
        )
        tokenizer = AutoTokenizer.from_pretrained(source)
    return Bundle(model, tokenizer, "text-classification", max_length=128)


def sst2(bundle: Bundle | None = None) -> Any:
    """The task: the original train, dev (search) and test (verify) splits of whole sentences."""
    return tasks.from_data(
        "text-classification", reproduce.data("sst2"), text="text", label="label", bundle=bundle
    )


def ready(folder: Path, say: Callable[[str], None] = print, **settings: Any) -> Path:
    """The finished folder, trained first where it is not there yet."""

    def make() -> tuple[Bundle, Any]:
        bundle = classifier(packaged_model(), settings.get("seed", 0))
        return bundle, sst2(bundle)

    return training.ready(folder, "the SST-2 classifier", make, say, **settings)


def main() -> None:
    given = training.options(__doc__ or "", FOLDER, 4.0, 540.0)
    ready(given.out, epochs=given.epochs, seconds=given.seconds, seed=given.seed)


if __name__ == "__main__":
    sys.exit(guarded(main))
