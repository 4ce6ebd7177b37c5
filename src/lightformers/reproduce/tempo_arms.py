"""What learns in the experiment of TEMPO: a small decoder of text, TEMPO around it with one idea less each, and DLinear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightformers.bundle import Batch
from lightformers.models.forecasting.linear import LinearForecaster, LinearForecasterConfig
from lightformers.models.forecasting.tempo import Tempo, sentences
from lightformers.models.language.decoder import Decoder, DecoderConfig
from lightformers.reproduce import common
from lightformers.reproduce.decoders import attention, mlp
from lightformers.train import Settings, fit

LENGTH, HORIZON, PATCH = 192, 48, 24
WIDTH, DEPTH, RANK = 128, 4, 16
_TOKENS, _VOCABULARY, _LR = 128, 2000, 2e-3
#: Shorter than the paper's, as a step costs what is read.
SENTENCE = "predict the {}"
FULL, RANDOM, LINEAR = "TEMPO", "random decoder", "DLinear"
WHOLE, BARE, NONE = "without decomposition", "without prompts", "without a decoder"
ARMS = (FULL, WHOLE, BARE, RANDOM, NONE, LINEAR)


@dataclass(frozen=True)
class Text:
    """WikiText-2 in byte pairs. train, valid: token numbers. share: how often each token comes."""

    tokenizer: Any
    train: Tensor
    valid: Tensor
    share: Tensor

    @staticmethod
    def of(letters: int) -> Text:
        """Of so many letters to learn from."""
        from tokenizers import ByteLevelBPETokenizer

        parts = {part: common.text("wikitext2_small", part) for part in ("train", "valid")}
        parts["train"] = parts["train"][:letters]
        tokenizer = ByteLevelBPETokenizer()
        tokenizer.train_from_iterator(
            parts["train"].splitlines(), vocab_size=_VOCABULARY, show_progress=False
        )
        train, valid = (torch.tensor(tokenizer.encode(parts[p]).ids) for p in ("train", "valid"))
        share = (torch.bincount(train, minlength=_VOCABULARY) + 1.0) / (len(train) + _VOCABULARY)
        return Text(tokenizer, train, valid, share)

    @property
    def common(self) -> float:
        """Nats per held-out token of frequencies alone."""
        return float(-self.share[self.valid].log().mean())

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        """As a tokenizer of transformers is called."""
        return {"input_ids": self.tokenizer.encode(text).ids}

    def batch(self, position: int) -> Batch:
        """16 pieces from anywhere."""
        starts = np.random.default_rng((0, position)).integers(len(self.train) - _TOKENS, size=16)
        return Batch({"input_ids": torch.stack([self.train[i : i + _TOKENS] for i in starts])}, {})

    def learn(self, seconds: float) -> tuple[Decoder, float]:
        """A decoder trained for so long, and its nats per token of held-out text."""
        model = decoder(0)

        def objective(module: nn.Module, batch: Batch) -> Tensor:
            loss: Tensor = module(**batch.inputs, labels=batch.inputs["input_ids"]).loss
            return loss

        settings = Settings(
            seconds=seconds, lr=_LR, warmup=0.05, schedule="cosine", precision=common.precision()
        )
        fit(model, self, objective, settings)
        held = self.valid[: 60 * _TOKENS].view(-1, _TOKENS)
        with torch.no_grad():
            return model, float(model.eval()(input_ids=held, labels=held).loss)


def decoder(seed: int) -> Decoder:
    """The language model, with random weights."""
    layer = {"mixer": {**attention(), "rotary": False}, "ffn": mlp()}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Decoder(
            DecoderConfig(
                _VOCABULARY, WIDTH, [layer] * DEPTH, "layer", positions="learned", max_position_embeddings=_TOKENS
            )
        )  # fmt: skip


class Copies(nn.Module):
    """No decomposition, and as many parameters: three times the window, changed by an MLP. (batch, n) -> (batch, 3, n)."""

    def __init__(self, length: int) -> None:
        super().__init__()
        hidden = (9 * length * length + 5 * length) // (2 * length + 1)
        self.change = nn.Sequential(nn.Linear(length, hidden), nn.ReLU(), nn.Linear(hidden, length))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.change(x))[:, None].expand(-1, 3, -1)


def make(arm: str, read: Decoder, text: Text, seed: int) -> nn.Module:
    """An arm before training; `read`: the decoder that learned text."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if arm == LINEAR:
            return LinearForecaster(LinearForecasterConfig(LENGTH, HORIZON))
        sizes: dict[str, Any] = {
            "context_length": LENGTH, "prediction_length": HORIZON, "num_input_channels": 1, "patch_length": PATCH,
            "stride": PATCH, "lora_rank": RANK, "prompt_tokens": sentences(text, SENTENCE),
        }  # fmt: skip
        if arm == BARE:  # wider updates for the prompts' maps: as many parameters
            maps, rank = 3 * (WIDTH + 1) * WIDTH, 6 * WIDTH * DEPTH
            sizes |= {"prompt": None, "lora_rank": RANK + round(maps / rank), "lora_alpha": float(RANK + round(maps / rank))}  # fmt: skip
        model = Tempo.prompted(decoder(1000 + seed) if arm == RANDOM else read, **sizes)
        if arm == WHOLE:
            model.decomposition = Copies(LENGTH)
        if arm == NONE:
            model.language_model.layers = nn.ModuleList()
        return model


def trained(model: nn.Module) -> int:
    """How many parameters are."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
