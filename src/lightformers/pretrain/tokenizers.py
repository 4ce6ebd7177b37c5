"""Tokenizers made from the text itself: byte-level pairs, plain bytes, characters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightformers.errors import UserError

END = "<|endoftext|>"
KINDS = ("bpe", "bytes", "characters")
BYTES = 257  # the byte alphabet and END


def made(kind: str, texts: Iterable[str], vocabulary: int, length: int) -> Any:
    """A tokenizer of `kind`, trained on `texts`: at most `vocabulary` tokens, of which the first ends a document.

    bpe: byte-level byte-pair encoding; nothing is unknown to it. bytes: each byte is a token. characters: those of the
    texts; another one is read as END. length: the longest text that it announces to fit its model.
    Raises UserError for an unknown kind or a vocabulary that is too small.
    """
    from transformers import PreTrainedTokenizerFast

    if kind not in KINDS:
        raise UserError(f"tokenizer {kind!r} is none of {', '.join(KINDS)}, nor a folder that holds one")
    raw = (
        _characters(texts)
        if kind == "characters"
        else _pairs(texts, BYTES if kind == "bytes" else vocabulary)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=END, eos_token=END, pad_token=END, model_max_length=length,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _pairs(texts: Iterable[str], vocabulary: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocabulary < BYTES:
        raise UserError(f"a byte-level vocabulary needs at least {BYTES} tokens, not {vocabulary}")
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    raw.train_from_iterator(texts, trainer)
    return raw


def _characters(texts: Iterable[str]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    found = sorted({character for text in texts for character in text})
    raw = Tokenizer(models.WordLevel({t: i for i, t in enumerate([END, *found])}, unk_token=END))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    raw.decoder = decoders.Fuse()
    return raw
