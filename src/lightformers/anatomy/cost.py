"""Parameters and multiply-adds of each piece of a model, from shapes alone (works without weights)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from lightformers.anatomy.access import features, find, get
from lightformers.anatomy.find import host, of
from lightformers.anatomy.records import Anatomy, Attention, Block, FeedForward


@dataclass(frozen=True)
class Cost:
    """parameters: stored numbers, what is tied counted once. flops: of one sequence (2 per multiply-add)."""

    parameters: int
    flops: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.parameters + other.parameters, self.flops + other.flops)


def parameters_of(model: nn.Module, paths: str | Iterable[str] = "") -> int:
    """Number of parameters below one or several paths, each counted once."""
    paths = [paths] if isinstance(paths, str) else list(paths)
    seen = {}
    for path in paths:
        found = find(model, path)
        if isinstance(found, nn.Module):
            seen.update({id(p): p.numel() for p in found.parameters()})
        elif found is not None:
            seen[id(found)] = found.numel()
    return sum(seen.values())


def sequence_length(model: nn.Module) -> int:
    """How long a usual input is, in positions: patches of an image, frames of 10 s of sound, else 128 tokens."""
    config = getattr(host(model)[1], "config", None)
    for section in (config, getattr(config, "vision_config", None)):
        image, patch = getattr(section, "image_size", None), getattr(section, "patch_size", None)
        if image and patch and not hasattr(config, "text_config"):
            height, width = image if isinstance(image, (list, tuple)) else (image, image)
            down, across = patch if isinstance(patch, (list, tuple)) else (patch, patch)
            return int((height // down) * (width // across) + 1)
    strides = getattr(config, "conv_stride", None)
    if strides:
        length = 160_000
        for stride in strides:
            length //= stride
        return length
    return 128


def attention_cost(model: nn.Module, attention: Attention, length: int, source: int | None = None) -> Cost:
    """One attention over `length` queries. source: keys, if they are another sequence's."""
    keys = length if source is None else source
    flops = 0
    for path in attention.projections:
        into, out = features(get(model, path))
        other = source is not None and path in (attention.k, attention.v, attention.qkv)
        flops += 2 * into * out * (keys if other else length)
    if attention.fused == "packed":
        flops += 2 * length * features(get(model, attention.o))[1] * 3 * attention.out_features
    flops += 4 * length * keys * attention.out_features
    paths = [attention.path] if attention.fused == "packed" else [*attention.projections]
    return Cost(
        parameters_of(model, [*paths, *(p for p in (attention.q_norm, attention.k_norm) if p)]), flops
    )


def feed_forward_cost(model: nn.Module, forward: FeedForward, length: int) -> Cost:
    """One feed-forward over `length` positions."""
    flops = 0
    for path in forward.projections:
        into, out = features(get(model, path))
        flops += 2 * into * out * length
    return Cost(parameters_of(model, forward.projections), flops)


def block_cost(model: nn.Module, block: Block, length: int) -> Cost:
    """A whole block over `length` positions (cross-attention: over as many source positions)."""
    flops = 0
    if block.attention:
        flops += attention_cost(model, block.attention, length).flops
    if block.cross_attention:
        flops += attention_cost(model, block.cross_attention, length, length).flops
    if block.feed_forward:
        flops += feed_forward_cost(model, block.feed_forward, length).flops
    for path in block.others:  # its matrices; what a recurrence or the like does between them is not counted
        linears = [m for m in get(model, path).modules() if isinstance(m, nn.Linear)]
        flops += sum(2 * m.in_features * m.out_features for m in linears) * length
    return Cost(parameters_of(model, block.path), flops)


def head_cost(model: nn.Module, anatomy: Anatomy, length: int) -> Cost:
    """The output layer: at every position for a language model, else once. What is tied counts elsewhere."""
    if anatomy.head is None:
        return Cost(0, 0)
    into, out = features(get(model, anatomy.head))
    words = find(model, anatomy.embeddings) if anatomy.embeddings else None
    per_token = words is not None and out == getattr(words, "num_embeddings", None)
    shared = [anatomy.embeddings] if anatomy.embeddings else []
    parameters = parameters_of(model, [anatomy.head, *shared]) - parameters_of(model, shared)
    return Cost(parameters, 2 * into * out * (length if per_token else 1))


def total(model: nn.Module, length: int | None = None) -> Cost:
    """The whole model: all parameters; flops of blocks and output layer (lookups and norms are negligible)."""
    anatomy = of(model)
    length = sequence_length(model) if length is None else length
    flops = head_cost(model, anatomy, length).flops
    for stack in anatomy.stacks:
        blocks = anatomy.stack(stack.name)
        each = sum(block_cost(model, block, length).flops for block in blocks)
        flops += each * stack.depth // len(blocks)
    return Cost(parameters_of(model), flops)
