"""Small decoders and tokens for tests of the skeleton."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lightformers.models.language.decoder import Decoder, DecoderConfig

ATTENTION = {"kind": "attention", "heads": 2}
LAYER = {"mixer": ATTENTION, "ffn": {"kind": "mlp", "hidden": 24}}
WINDOW = {"mixer": {**ATTENTION, "window": 4, "kv_heads": 1}, "ffn": {"kind": "swiglu", "hidden": 16}}


def made(seed: int = 0, **fields: Any) -> Decoder:
    torch.manual_seed(seed)
    model = Decoder(DecoderConfig(**{"vocab_size": 40, "hidden_size": 16, "layers": [LAYER, WINDOW], **fields})).eval()  # fmt: skip
    with torch.no_grad():  # as drawn, so small a model says almost the same everywhere
        for p in model.parameters():
            p.mul_(8 if p.ndim > 1 else 1)
    return model


def tokens(batch: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 40, (batch, n), generator=torch.Generator().manual_seed(seed))


def tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "word": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        folder
    )


def greedy(model: Decoder, ids: torch.Tensor, more: int) -> torch.Tensor:
    for _ in range(more):
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    return ids


LEARNED = {"positions": "learned", "max_position_embeddings": 32, "norm": "layer"}
