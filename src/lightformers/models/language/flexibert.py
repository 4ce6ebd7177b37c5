"""FlexiBERT (Tuli et al., 2022, arXiv 2205.11656): encoders whose layers differ in width, operation, heads and FFN."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from lightformers.errors import UserError
from lightformers.models import plain
from lightformers.parts.mixers.mixed import MixedAttention
from lightformers.parts.mixers.multiplicative import MultiplicativeAttention
from lightformers.parts.mixers.spectral import SpectralMixer

Operation = Literal["sa", "l", "c"]
#: Operation -> its variants; a convolution's is its number of places, any odd one.
VARIANTS: Mapping[str, tuple[str, ...]] = {"sa": ("sdp", "wma"), "l": ("dft", "dct"), "c": ()}


@dataclass(frozen=True)
class Layer:
    """One layer of an encoder.

    operation, variant: "sa" attention by "sdp" (dot product) or "wma" (weighted); "l" linear mixing by "dft" or "dct";
    "c" ConvBERT's mixed attention, whose variant is the kernel's number of places (odd).
    hidden: widths of the feed-forward's inner layers, one or more. Raises UserError where this does not fit together.
    """

    operation: Operation
    variant: str | int
    width: int
    heads: int
    hidden: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if self.operation not in VARIANTS:
            raise UserError(f"unknown operation {self.operation!r}: it is one of {', '.join(VARIANTS)}")
        if self.operation == "c":
            if not str(self.variant).isdigit() or int(self.variant) % 2 == 0:
                raise UserError(f"a convolution's kernel is an odd number of places, not {self.variant!r}")
            object.__setattr__(self, "variant", int(self.variant))
            if self.heads % 2:
                raise UserError(f"half of a convolution's heads attend: {self.heads} is odd")
        elif self.variant not in VARIANTS[self.operation]:
            allowed = ", ".join(VARIANTS[self.operation])
            raise UserError(f"{self.operation!r} knows {allowed}, not {self.variant!r}")
        if not self.hidden or min(self.width, self.heads, *self.hidden) < 1:
            raise UserError(f"a layer needs a width, heads and inner widths of at least 1, got {self}")
        if self.width % self.heads:
            raise UserError(f"{self.heads} heads do not divide a width of {self.width}")

    @property
    def label(self) -> str:
        """What its heads are called in the graph of an architecture: "sa_h256_p-sdp"."""
        return f"{self.operation}_h{self.width}_p-{self.variant}"


@dataclass(frozen=True)
class FlexiBERTConfig:
    """layers: from the bottom. words, types, length: rows of the tables; length is also the most positions.

    relative: keys of relative positions in every layer, else a table of absolute ones added to the words.
    pooler: whether the first word's last state goes through one more layer, as `pooler_output`.
    """

    layers: tuple[Layer, ...]
    words: int = 30522
    length: int = 512
    types: int = 2
    relative: bool = True
    dropout: float = 0.1
    padding: int = 0
    eps: float = 1e-12
    pooler: bool = True

    def __post_init__(self) -> None:
        rows = (x if isinstance(x, Layer) else Layer(**x) for x in self.layers)
        object.__setattr__(self, "layers", tuple(rows))
        if not self.layers or min(self.words, self.length, self.types) < 1:
            raise UserError("an encoder needs layers, words, types and positions")

    @classmethod
    def from_model(cls, model: Mapping[str, Any], **fields: Any) -> FlexiBERTConfig:
        """From the paper's model dictionary {"l", "o", "h", "n", "f", "p"}: layers, and one entry per layer."""
        lists = [model[key] for key in ("o", "p", "h", "n", "f")]
        if any(len(entries) != model["l"] for entries in lists):
            lengths = ", ".join(str(len(entries)) for entries in lists)
            raise UserError(f"a model of {model['l']} layers has lists of {lengths} entries (o, p, h, n, f)")
        return cls(tuple(Layer(*row) for row in zip(*lists)), **fields)

    def to_model(self) -> dict[str, Any]:
        """The paper's model dictionary."""
        names = {"o": "operation", "p": "variant", "h": "width", "n": "heads", "f": "hidden"}
        return {"l": len(self.layers)} | {k: [getattr(x, n) for x in self.layers] for k, n in names.items()}


#: FlexiBERT-Mini has 10,922,944 parameters here and 11,119,808 in the paper's code, whose difference nothing reads:
#: absolute positions beside relative ones, W in "sdp" layers, keys in "l" layers. BERT-Mini alike: 11,301,376 and
#: 11,448,832.
PRESETS: Mapping[str, FlexiBERTConfig] = {
    "flexibert_mini": FlexiBERTConfig.from_model(
        {
            "l": 4,
            "o": ["sa", "sa", "l", "l"],
            "p": ["sdp", "sdp", "dct", "dct"],
            "h": [256, 256, 128, 128],
            "n": [2, 2, 4, 4],
            "f": [[512] * 3, [512] * 3, [1024], [1024]],
        }
    ),
    "bert_mini": FlexiBERTConfig((Layer("sa", "sdp", 256, 4, (1024,)),) * 4),
}


def mixer(layer: Layer, relative: int = 0, dropout: float = 0.0) -> nn.Module:
    """The sequence mixer of a layer; relative: most positions of its relative keys, 0 for none."""
    if layer.operation == "sa":
        weighted = layer.variant == "wma"
        return MultiplicativeAttention(layer.width, layer.heads, weighted, relative, dropout)
    if layer.operation == "l":
        kind: Any = layer.variant
        return SpectralMixer(layer.width, layer.heads, kind, relative, dropout)
    return MixedAttention(layer.width, layer.heads, int(layer.variant), relative, dropout)


class Block(nn.Module):
    """Mixer and feed-forward, each with residual and LayerNorm behind, then a map to the next layer's width if it differs."""

    def __init__(self, layer: Layer, following: int, config: FlexiBERTConfig) -> None:
        super().__init__()
        self.mixer = mixer(layer, config.length if config.relative else 0, config.dropout)
        self.mixer_norm = nn.LayerNorm(layer.width, eps=config.eps)
        widths = (layer.width, *layer.hidden)
        inner = [m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), nn.GELU())]
        self.feed_forward = nn.Sequential(*inner, nn.Linear(widths[-1], layer.width))
        self.feed_forward_norm = nn.LayerNorm(layer.width, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)
        self.project = nn.Linear(layer.width, following) if following != layer.width else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.mixer_norm(x + self.dropout(self.mixer(x, mask)))
        x = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        return x if self.project is None else self.project(x)


class FlexiBERT(nn.Module, PyTorchModelHubMixin):
    """A heterogeneous encoder. (batch, n) words -> last_hidden_state (batch, n, width of the last layer), pooler_output.

    config: a `FlexiBERTConfig` (`PRESETS` has the paper's), or its fields as a mapping. `from_pretrained` and
    `save_pretrained` come from huggingface_hub.
    Differences from the paper's code: weights that nothing reads do not exist, and padding has no influence on words
    (see `parts.mixers`). Sequences longer than config.length are refused (UserError).
    """

    def __init__(self, config: FlexiBERTConfig) -> None:
        super().__init__()
        if isinstance(config, Mapping):  # as huggingface_hub reads it from disk
            config = FlexiBERTConfig(**plain.fields(config))
        self.config = config
        width = config.layers[0].width
        self.words = nn.Embedding(config.words, width, padding_idx=config.padding)
        self.types = nn.Embedding(config.types, width)
        self.positions = None if config.relative else nn.Embedding(config.length, width)
        self.norm = nn.LayerNorm(width, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)
        following = [layer.width for layer in (*config.layers[1:], config.layers[-1])]
        self.blocks = nn.ModuleList(Block(x, wide, config) for x, wide in zip(config.layers, following))
        self.pooler = nn.Linear(self.width, self.width) if config.pooler else None
        self.apply(initialize)

    def _save_pretrained(self, save_directory: Path) -> None:
        plain.write(self, save_directory, asdict(self.config))

    @property
    def width(self) -> int:
        """Of the last hidden states."""
        return self.config.layers[-1].width

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> BaseModelOutputWithPooling:
        """input_ids, token_type_ids (default 0): (batch, n); attention_mask: (batch, n), 0 at padding."""
        if input_ids.shape[1] > self.config.length:
            raise UserError(
                f"{input_ids.shape[1]} words are more than the {self.config.length} there are positions for"
            )
        kinds = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        x = self.words(input_ids) + self.types(kinds)
        if self.positions is not None:
            x = x + self.positions(torch.arange(input_ids.shape[1], device=input_ids.device))
        x = self.dropout(self.norm(x))
        for block in self.blocks:
            x = block(x, attention_mask)
        pooled = None if self.pooler is None else torch.tanh(self.pooler(x[:, 0]))
        return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=pooled)


class FlexiBERTForMaskedLM(nn.Module, PyTorchModelHubMixin):
    """The encoder with the head of its pre-training. (batch, n) words -> {"logits": (batch, n, words)}.

    The head maps to the width of the word table, which is also its last matrix, whatever the last layer's width.
    """

    def __init__(self, config: FlexiBERTConfig) -> None:
        super().__init__()
        if isinstance(config, Mapping):
            config = FlexiBERTConfig(**plain.fields(config))
        self.config = replace(config, pooler=False)  # nothing would train one
        self.encoder = FlexiBERT(self.config)
        width = self.config.layers[0].width
        self.map = nn.Linear(self.encoder.width, width)
        self.norm = nn.LayerNorm(width, eps=self.config.eps)
        self.bias = nn.Parameter(torch.zeros(self.config.words))
        initialize(self.map)

    def _save_pretrained(self, save_directory: Path) -> None:
        plain.write(self, save_directory, asdict(self.config))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None) -> dict[str, Tensor]:  # fmt: skip
        x = self.encoder(input_ids, attention_mask, token_type_ids).last_hidden_state
        x = self.norm(nn.functional.gelu(self.map(x)))
        return {"logits": nn.functional.linear(x, self.encoder.words.weight, self.bias)}


def initialize(module: nn.Module) -> None:
    """BERT's: weights of linear maps, convolutions and tables from N(0, 0.02), biases and the padding row 0."""
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()
        elif not isinstance(module, nn.Embedding) and module.bias is not None:
            nn.init.zeros_(module.bias)
