"""Audio for elastic speech encoders: batches of waveforms, masked spans, the teacher's hidden states."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Batch, Bundle
from lightformers.compress.distill import common
from lightformers.compress.elastic.shared import Shared
from lightformers.compress.elastic.size import Size
from lightformers.errors import DataError, ModelError, UserError
from lightformers.steps import Run
from lightformers.train import Feed
from lightformers.train.capture import Capture
from lightformers.train.loop import count

RATE = 16_000


def check(bundle: Bundle, masked: bool) -> None:
    """Raises ModelError unless the bundle is a bare encoder of waveforms; masked: that can also mask its frames."""
    model: Any = bundle.model
    takes = inspect.signature(type(model).forward).parameters
    if not {"input_values", "mask_time_indices"} <= set(takes) or bundle.pooling:
        raise ModelError(
            f"{type(model).__name__} is no bare speech encoder (hubert, wav2vec2): give its backbone, model.base_model, "
            "without pooling"
        )
    if masked and (
        getattr(model, "masked_spec_embed", None) is None
        or not getattr(model.config, "apply_spec_augment", True)
    ):
        raise ModelError(
            "this model has no vector for masked frames: build it with mask_time_prob > 0 and apply_spec_augment, "
            "or train with mask=0"
        )


def collate(clips: Sequence[np.ndarray]) -> Batch:
    """Clips of samples, each brought to mean 0 and variance 1, padded with 0: `input_values`, `attention_mask`."""
    longest = max(len(clip) for clip in clips)
    values = np.zeros((len(clips), longest), dtype=np.float32)
    mask = np.zeros((len(clips), longest), dtype=np.int64)
    for row, real, clip in zip(values, mask, clips):
        audio = np.asarray(clip, dtype=np.float32)
        row[: len(clip)] = (audio - audio.mean()) / np.sqrt(audio.var() + 1e-7)
        real[: len(clip)] = 1
    return Batch({"input_values": torch.from_numpy(values), "attention_mask": torch.from_numpy(mask)}, {})


def feed(task: Any, model: nn.Module, run: Run, max_seconds: float) -> Any:
    """Batches without end of a task's examples with "audio"; a `Feed` or a sequence of batches is taken as it is.

    Raises DataError for examples without audio, or with clips too short for one frame.
    """
    if hasattr(task, "batch"):
        return task
    if isinstance(task, Sequence):
        if not len(task) or not isinstance(task[0], Batch):
            raise UserError("give batches, or a task with training examples")
        return _Numbered(task)
    examples = task.training_examples(False)
    if not examples or "audio" not in examples[0]:
        raise DataError("the training examples have no field 'audio': rows of samples are needed")
    clips = [np.asarray(e["audio"]) for e in examples]
    least = next(n for n in range(1, 10**6) if _frames_of(model, np.array([n]))[0] >= 1)
    if any(c.ndim != 1 or len(c) < least for c in clips):
        raise DataError(
            f"a clip is one row of at least {least} samples for this model: leave shorter ones out"
        )
    lengths = np.array([len(c) for c in clips])
    return Feed(
        clips, lambda items, _: collate(items), lengths, max(int(max_seconds * RATE), 1), seed=run.seed
    )


class _Numbered:
    """A sequence of batches gone through again and again, each with its position."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches
        self.lengths = np.array([count(b) for b in batches])

    def batch(self, position: int) -> Batch:
        found = self.batches[position % len(self.batches)]
        return Batch(found.inputs, {**found.targets, "position": position})


def _frames_of(model: nn.Module, samples: np.ndarray) -> np.ndarray:
    config: Any = model.config
    for kernel, stride in zip(config.conv_kernel, config.conv_stride):
        samples = np.maximum((samples - kernel) // stride + 1, 0)
    return samples


def frames(model: nn.Module, batch: Batch) -> np.ndarray:
    """(B,) real frames of each clip."""
    values, mask = batch.inputs["input_values"], batch.inputs.get("attention_mask")
    return _frames_of(model, np.full(*values.shape) if mask is None else mask.sum(-1).cpu().numpy())


def inputs_of(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """What the model is given: models whose extractor has a group norm never learnt to be told of padding."""
    inputs = dict(batch.inputs)
    if getattr(model.config, "feat_extract_norm", "layer") == "group":
        inputs.pop("attention_mask", None)
    return inputs


def spans(
    frames: Sequence[int], length: int, share: float, span: int, least: int, rng: np.random.Generator
) -> np.ndarray:
    """(B, length) bool: spans of `span` frames, which may overlap, so many that `share` of the frames would be in one.

    As HuBERT draws them (Hsu et al., 2021, arXiv 2106.07447): a fraction of a span is rounded by chance, at least
    `least` spans, starts without repetition. Clips of fewer than `least * span` frames stay unmasked.
    """
    masked = np.zeros((len(frames), length), dtype=bool)
    for row, real in zip(masked, frames):
        if real < least * span:
            continue
        number = max(int(share * real / span + rng.random()), least)
        starts = rng.choice(real - span + 1, min(number, real - span + 1), replace=False)
        row[(starts[:, None] + np.arange(span)).reshape(-1)] = True
    return masked


class Target:
    """The teacher's hidden states on unmasked audio: the last ones, or the mean of the last `layers` blocks' outputs."""

    def __init__(self, teacher: Bundle, layers: int) -> None:
        self.teacher, self.layers, self.anatomy = teacher, layers, anatomy.of(teacher.model)
        if layers > len(self.anatomy.blocks):
            raise ModelError(f"the teacher has {len(self.anatomy.blocks)} blocks, not {layers}")

    @contextmanager
    def open(self, device: str) -> Iterator[Callable[[Batch], Tensor]]:
        """A function of batches that gives (B, T, width), while the block runs."""
        last = len(self.anatomy.blocks)
        wanted = list(range(last - self.layers, last)) if self.layers > 1 else []
        with ExitStack() as stack:
            call: Any = stack.enter_context(common.live(self.teacher, device))
            caught = stack.enter_context(Capture(self.teacher.model, self.anatomy, hidden=wanted))

            def states(batch: Batch) -> Tensor:
                found: Tensor = call(inputs_of(self.teacher.model, batch))["last_hidden_state"]
                if wanted:
                    found = torch.stack([caught.hidden(i) for i in wanted]).mean(0)
                    caught.clear()
                return found

            yield states


@torch.no_grad()
def unexplained(shared: Shared, size: Size, batches: Sequence[Batch], goals: Sequence[Tensor]) -> float:
    """Mean squared error of the teacher's states given a sub-network's, over real frames, by least squares.

    goals: (B, T, width) of each batch. A little ridge keeps the solution defined.
    """
    model = shared.bundle.model
    states, targets = [], []
    for batch, goal in zip(batches, goals):
        real = torch.arange(goal.shape[1])[None] < torch.from_numpy(frames(model, batch))[:, None]
        found = shared(size, **inputs_of(model, batch)).last_hidden_state
        states.append(found[real.to(found.device)].double())
        targets.append(goal[real.to(goal.device)].double())
    x, y = torch.cat(states), torch.cat(targets)
    gram = x.T @ x + 1e-4 * len(x) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return float((x @ torch.linalg.solve(gram, x.T @ y) - y).pow(2).mean())
