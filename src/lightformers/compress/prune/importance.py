"""How strongly each channel, head and hidden dimension of a model is used, from forward passes alone.

The score of Minitron (Muralidharan et al., 2024, arXiv 2407.14679): `sqrt(sum_b (mean_s |a[b, s, c]|)^2)` over
sequences b, without padding, in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.compress import calibration
from lightformers.compress.layers import input_of
from lightformers.errors import ModelError
from lightformers.memory import release
from lightformers.steps import Run


@dataclass
class Importance:
    """Scores; more is more important.

    channels: place of a block -> (feed-forward width,). heads: (place, own) -> (query heads,), own False for
    cross-attention. hidden: (hidden size,), one ranking for the whole model; empty where stacks differ in width.
    """

    channels: dict[int, Tensor] = field(default_factory=dict)
    heads: dict[tuple[int, bool], Tensor] = field(default_factory=dict)
    hidden: Tensor = field(default_factory=lambda: torch.zeros(0))


def sequence_means(a: Tensor, mask: Tensor | None) -> Tensor:
    """(B, S, C), (B, S) or None -> (B, C): mean of |a| over the tokens that are no padding, fp32."""
    size = a.float().abs()
    if size.dim() == 2:
        return size
    if mask is None or mask.shape != size.shape[:2]:
        return size.mean(1)
    weight = mask.to(size.dtype)[..., None]
    return (size * weight).sum(1) / weight.sum(1).clamp(min=1)


def head_scores(channels: Tensor, heads: int) -> Tensor:
    """(heads * size,) scores of what enters the output projection -> (heads,): the norm over each head's channels."""
    return channels.reshape(heads, -1).norm(dim=1)


def measure(bundle: Bundle, task: Any, run: Run, examples: int) -> Importance:
    """Run calibration examples through the model once. Raises UserError without a task, ModelError for fp16 weights."""
    model, found = bundle.model, anatomy.of(bundle.model)
    if next(model.parameters()).dtype == torch.float16:
        raise ModelError("activations of fp16 weights overflow when they are scored: load the model in fp32")
    downs = {i: b.feed_forward.down for i, b in enumerate(found.blocks) if b.feed_forward}
    attentions = {
        (i, own): attention
        for i, b in enumerate(found.blocks)
        for own, attention in ((True, b.attention), (False, b.cross_attention))
        if attention
    }
    outputs = {key: a.o for key, a in attentions.items()}
    written = {*downs.values(), *outputs.values()}
    # what attention and feed-forward read is the output of the normalisation before them, in any placement of norms
    readers = sorted(set(input_of(found).values()) - written)
    chosen = calibration.examples_of(task, examples, run.seed)
    squares: dict[str, Tensor] = {}
    current: list[Tensor | None] = [None]
    with ExitStack() as stack:
        for path in (*written, *readers):
            hook = _hook(squares, path, current)
            stack.callback(anatomy.get(model, path).register_forward_pre_hook(hook).remove)
        stack.enter_context(calibration.evaluating(model))
        module = bundle.module().eval()
        for batch in calibration.batches(bundle, chosen):
            current[0] = batch.inputs.get("attention_mask")
            module(**batch.inputs)
    release()
    scores = {path: total.sqrt().cpu() for path, total in squares.items()}
    if missing := sorted({*written, *readers} - scores.keys()):
        raise ModelError(f"the calibration examples never reach {missing[0]}: is it part of the model?")
    hidden = [scores[p] for p in readers if len(scores[p]) == found.width]
    return Importance(
        {i: scores[path] for i, path in downs.items()},
        {key: head_scores(scores[path], attentions[key].heads) for key, path in outputs.items()},
        torch.stack(hidden).sum(0)
        if hidden and len({s.width for s in found.stacks}) == 1
        else torch.zeros(0),
    )


def _hook(squares: dict[str, Tensor], path: str, current: list[Tensor | None]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        # the squares are added up over batches, and the root is taken once at the end
        new = sequence_means(args[0].detach(), current[0]).square().sum(0)
        squares[path] = squares[path] + new if path in squares else new

    return hook
