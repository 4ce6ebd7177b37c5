"""Train a small GPT-style decoder on thirteen English novels: a tokenizer of their own, six blocks, 5.9 M parameters.

    python benchmarks/train_small_gpt.py [--out out/small-gpt] [--epochs 2] [--seconds 450] [--seed 0]

Never more than `--seconds` of training; under ten minutes on two idle cores with AMX. Doyle's `The Lost World` is the
search split, Stevenson's `Treasure Island` the test, the other books are trained on. The folder opens in plain
transformers. Killed at any moment, the same command goes on from the last tenth.
"""

from __future__ import annotations

import gzip
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import training

from lightformers import reproduce
from lightformers.bundle import Bundle
from lightformers.tasks.causal_lm import CausalLM
from lightformers.tasks.pieces import cut

FOLDER = Path("out") / "small-gpt"
VALID, TEST = "doyle_lost_1912", "stevenson_treasure_1883"
LENGTH, WORDS, VOCABULARY = 128, 85, 4096
END = "<|endoftext|>"
GROUP = 8  # neighbouring pieces of a book that are resampled together


def paragraphs(file: Path) -> list[str]:
    """The paragraphs of a book, each on one line."""
    text = gzip.decompress(file.read_bytes()).decode("utf-8")
    parts = (" ".join(p.split()) for p in re.split(r"\n\s*\n", text))
    return [p for p in parts if p]


def books(folder: Path, words: int = WORDS) -> CausalLM:
    """The task: pieces of about `words` words; every book is in one split."""
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "valid": [], "test": []}
    for file in sorted(folder.glob("*.txt.gz")):
        name = file.name.removesuffix(".txt.gz")
        split = {VALID: "valid", TEST: "test"}.get(name, "train")
        pieces = cut(paragraphs(file), words)
        splits[split] += [{"text": piece, "group": f"{name} {i // GROUP}"} for i, piece in enumerate(pieces)]
    return CausalLM.from_examples(splits)


def tokenizer(texts: Sequence[str], size: int = VOCABULARY) -> Any:
    """A byte-level BPE tokenizer trained on these texts; byte level, so nothing is unknown to it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=END, eos_token=END, pad_token=END, model_max_length=LENGTH
    )


def decoder(words: Any, seed: int = 0, blocks: int = 6, width: int = 256, heads: int = 8) -> Bundle:
    """A GPT-2 form with random weights over this tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(words), n_positions=LENGTH, n_embd=width, n_layer=blocks, n_head=heads, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return Bundle(GPT2LMHeadModel(config), words, "causal-lm", max_length=LENGTH)


def made(folder: Path, seed: int = 0, **shape: int) -> tuple[Bundle, CausalLM]:
    """The untrained decoder and the task over the books in `folder`."""
    task = books(folder)
    words = tokenizer([e["text"] for e in task.splits["train"]])
    return decoder(words, seed, **shape), task


def ready(folder: Path, say: Callable[[str], None] = print, **settings: Any) -> Path:
    """The finished folder, trained first where it is not there yet."""
    rest = {"seconds": 450.0, "epochs": 2.0, "lr": 1.5e-3, "dropout": False, "max_tokens": 4096, **settings}
    return training.ready(
        folder, "the small decoder", lambda: made(reproduce.data("gutenberg_books"), settings.get("seed", 0)), say, **rest
    )  # fmt: skip


def main() -> None:
    given = training.options(__doc__ or "", FOLDER, 2.0, 450.0)
    ready(given.out, epochs=given.epochs, seconds=given.seconds, seed=given.seed)


if __name__ == "__main__":
    sys.exit(training.guarded(main))
