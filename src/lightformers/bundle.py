"""A bundle: what a person really has. Model, processor, pooling, limits, and where each piece came from."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lightformers.errors import DataError, ModelError
from lightformers.processors import Processor

Example = Mapping[str, Any]
Encoded = dict[str, Any]
#: Fields of an example that are not inputs of the model; they travel through `encode` to the batch's targets.
_INPUT_FIELDS = frozenset({"text", "text_pair", "words", "image"})


@dataclass
class Batch:
    """inputs: keyword arguments of the model, tensors of shape (batch, ...). targets: whatever the loss needs."""

    inputs: dict[str, Tensor]
    targets: dict[str, Any]

    def to(self, device: str | torch.device) -> Batch:
        move = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.targets.items()}
        return Batch({k: v.to(device) for k, v in self.inputs.items()}, move)


@dataclass(frozen=True)
class Pooling:
    """How token states become one vector: (batch, length, width) -> (batch, width)."""

    mode: Literal["mean", "cls", "max", "last"] = "mean"
    normalize: bool = True


@dataclass(frozen=True)
class Origin:
    """Where the pieces of an edited model came from in the model that was loaded.

    blocks: stack ("encoder", "decoder") -> source index of each block that is left.
    vocabulary: source row of each embedding row that is left, or None if none was cut.
    """

    blocks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    vocabulary: tuple[int, ...] | None = None


class Embedder(nn.Module):
    """A backbone with its pooling in one graph: `forward(**inputs) -> {"embedding": (batch, width)}`."""

    def __init__(self, backbone: nn.Module, pooling: Pooling) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        states = self.backbone(**inputs).last_hidden_state
        return {"embedding": pool(states, inputs["attention_mask"], self.pooling)}


def pool(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """(batch, length, width), (batch, length) -> (batch, width). Padding (mask 0) never counts."""
    weights = mask.unsqueeze(-1).to(states.dtype)
    if pooling.mode == "mean":
        out = (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
    elif pooling.mode == "cls":
        out = states[:, 0]
    elif pooling.mode == "max":
        out = states.masked_fill(weights == 0, torch.finfo(states.dtype).min).amax(1)
    else:  # the last token that is no padding, on whichever side the padding stands
        positions = torch.arange(mask.shape[1], device=mask.device) * mask
        out = states[torch.arange(len(states), device=states.device), positions.argmax(1)]
    return nn.functional.normalize(out, dim=-1) if pooling.normalize else out


@dataclass
class Bundle:
    """Model, processor, pooling, limits, origin.

    task: what the head is for ("embedding", "text-classification", ...), or None for a bare backbone.
    max_length: the most tokens of an example; longer ones are truncated.
    prompts: texts put before an example with that `role` (sentence-transformers prompts).
    deploy: how the model is to be run (`steps.Deploy`), set by a recipe. history: what each step did.
    """

    model: nn.Module
    processor: Any = None
    task: str | None = None
    pooling: Pooling | None = None
    max_length: int | None = None
    origin: Origin = field(default_factory=Origin)
    source: str | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    deploy: Any = None
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        """How many numbers the model holds; tied weights count once."""
        return sum(p.numel() for p in self.model.parameters())

    def module(self) -> nn.Module:
        """What runners run: the model, or model and pooling in one. Shares weights with `model`."""
        return Embedder(self.model, self.pooling) if self.pooling else self.model

    def copy(self) -> Bundle:
        """An independent copy: editing it leaves this one as it is. The processor is shared; steps replace it."""
        return dataclasses.replace(self, model=copy.deepcopy(self.model), history=list(self.history))

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Tokenize (or prepare images) without padding; target fields are carried along."""
        if not examples:
            return []
        if self.processor is None:
            raise ModelError(
                "this bundle has no processor: give Bundle(processor=...) a tokenizer or image processor"
            )
        fields = _INPUT_FIELDS
        if isinstance(self.processor, Processor):
            inputs, fields = self.processor.encode_examples(examples), self.processor.inputs
        else:
            inputs = self._images(examples) if "image" in examples[0] else self._texts(examples)
        for encoded, example in zip(inputs, examples):
            encoded.update({k: v for k, v in example.items() if k not in fields})
        return inputs

    def _texts(self, examples: Sequence[Example]) -> list[Encoded]:
        split = "words" in examples[0]
        try:
            first: list[Any] = [e["words"] if split else self._prompt(e) + e["text"] for e in examples]
        except KeyError as error:
            raise DataError(f"an example has no field {error}; it has {sorted(examples[0])}") from error
        second = [e["text_pair"] for e in examples] if "text_pair" in examples[0] else None
        out = self.processor(
            first, second, truncation=self.max_length is not None, max_length=self.max_length,
            is_split_into_words=split, padding=False, return_attention_mask=False,
        )  # fmt: skip
        encoded = [{k: out[k][i] for k in out} for i in range(len(first))]
        if split:
            for i, item in enumerate(encoded):
                item["word_ids"] = out.word_ids(i)
        return encoded

    def _prompt(self, example: Example) -> str:
        return self.prompts.get(example.get("role", ""), "") if self.prompts else ""

    def _images(self, examples: Sequence[Example]) -> list[Encoded]:
        pixels = self.processor(images=[e["image"] for e in examples], return_tensors="np")["pixel_values"]
        return [{"pixel_values": p} for p in pixels]

    def length(self, encoded: Encoded) -> int:
        """Tokens of one encoded example (1 for images, series and rows: they all cost the same)."""
        return len(encoded["input_ids"]) if "input_ids" in encoded else 1

    def pad(self, encoded: Sequence[Encoded], multiple: int = 1) -> Batch:
        """Pad to the longest (rounded up to `multiple`) and stack. Targets: label, word_starts, lengths, examples."""
        targets: dict[str, Any] = {"examples": list(encoded)}
        if all("label" in e for e in encoded):
            targets["label"] = torch.tensor([e["label"] for e in encoded])
        if isinstance(self.processor, Processor):
            inputs, found = self.processor.pad_encoded(encoded)
            return Batch(inputs, {**targets, **found})
        if "pixel_values" in encoded[0]:
            pixels = torch.from_numpy(np.stack([e["pixel_values"] for e in encoded]))
            return Batch({"pixel_values": pixels}, targets)
        lengths = np.array([len(e["input_ids"]) for e in encoded])
        width = max(-(-int(lengths.max()) // multiple) * multiple, 1)
        if self.max_length:
            width = min(width, max(self.max_length, self._positions(), int(lengths.max())))
        left = getattr(self.processor, "padding_side", "right") == "left"
        shape = (len(encoded), width)
        slots = [slice(width - n, width) if left else slice(0, n) for n in lengths]

        def table(key: str, fill: int) -> np.ndarray:
            rows = np.full(shape, fill, dtype=np.int64)
            for row, item, slot in zip(rows, encoded, slots):
                row[slot] = item[key]
            return rows

        mask = np.zeros(shape, dtype=np.int64)
        for row, slot in zip(mask, slots):
            row[slot] = 1
        inputs = {
            "input_ids": torch.from_numpy(table("input_ids", self._pad_id())),
            "attention_mask": torch.from_numpy(mask),
        }
        if "token_type_ids" in encoded[0]:
            inputs["token_type_ids"] = torch.from_numpy(table("token_type_ids", 0))
        if "word_ids" in encoded[0]:
            starts = np.full(shape, -1, dtype=np.int64)
            for row, item, slot in zip(starts, encoded, slots):
                row[slot] = _word_starts(item["word_ids"])
            targets["word_starts"] = torch.from_numpy(starts)
        targets["lengths"] = torch.from_numpy(lengths)
        return Batch(inputs, targets)

    def _positions(self) -> int:
        """Positions that the model surely has beyond `max_length`; two may be kept for padding (RoBERTa's)."""
        return int(getattr(getattr(self.model, "config", None), "max_position_embeddings", None) or 0) - 2

    def _pad_id(self) -> int:
        for name in ("pad_token_id", "eos_token_id"):
            if (value := getattr(self.processor, name, None)) is not None:
                return int(value)
        return 0

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Raw examples -> one padded batch."""
        return self.pad(self.encode(examples))


def _word_starts(word_ids: Sequence[int | None]) -> list[int]:
    """Index of the word whose first sub-token stands at each position, else -1."""
    return [-1 if w is None or (i and word_ids[i - 1] == w) else w for i, w in enumerate(word_ids)]


def load(
    path: str | Path, task: str | None = None, trust_remote_code: bool = False, processor: Any = None
) -> Bundle:
    """Load a Hugging Face folder or hub name, a sentence-transformers folder, or a folder lightformers wrote.

    task: which head is wanted; None takes the architecture that the config names. processor: a tokenizer or other
    processor instead of the folder's own.
    Raises ModelError for pickle-only checkpoints, models that need remote code, NaN weights, wrong heads.
    """
    from lightformers.loading import load_bundle

    return load_bundle(str(path), task, trust_remote_code, processor)
