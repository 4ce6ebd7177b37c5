"""Who writes to a model's residual stream and who reads it, found by one forward on made-up inputs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.anatomy import Anatomy, Block
from lightformers.anatomy.find import host
from lightformers.compress import calibration
from lightformers.errors import ModelError
from lightformers.runners.named import named, plain_arguments


@dataclass(frozen=True)
class Stream:
    """A residual stream that only LayerNorms read.

    readers: path of a block's norm -> paths of the projections that read it. writers: the projections that write to
    the stream. scales: path of a per-channel scale (LayerScale) -> the writer it follows. entry: the dropout between
    the embeddings and the first block. final: the norm behind the last block. head: the output layer, where it alone
    reads the final norm.
    """

    readers: Mapping[str, tuple[str, ...]]
    writers: tuple[str, ...]
    scales: Mapping[str, str]
    entry: str
    final: str
    head: str | None


def made_up(model: nn.Module) -> dict[str, Tensor]:
    """Small inputs for a model of texts or images, always the same. Raises ModelError for other inputs."""
    owner: Any = host(model)[1]
    name = getattr(owner, "main_input_name", "input_ids")
    config = getattr(owner, "config", None)
    weight = next(owner.parameters())
    generator = torch.Generator().manual_seed(0)
    if name == "input_ids" and config is not None:
        size = int(config.get_text_config().vocab_size)
        ids = torch.randint(size, (2, 7), generator=generator).to(weight.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name == "pixel_values" and config is not None:
        size = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
        pixels = torch.randn(2, config.num_channels, size, size, generator=generator)
        return {"pixel_values": pixels.to(weight)}
    raise ModelError(f"{type(owner).__name__} takes {name}: only models of texts and images can be probed")


def outputs(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a model gives, without dropout and gradients, by name."""
    with calibration.evaluating(module):
        return named(module(**inputs, **plain_arguments(module)))


@dataclass
class _Seen:
    """Tensors as modules met them; they are held, so that no address is used twice."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.data_ptr() == b.data_ptr() and a.numel() == b.numel()


def find(model: nn.Module, module: nn.Module) -> Stream:
    """The residual stream of a pre-norm model. module: what is run (`bundle.module()`).

    Raises ModelError, with the reason, where the mean of the stream matters or parts of it cannot be found.
    """
    found = anatomy.of(model)
    final, writers, scales = _structure(model, found)
    norms = [n for block in found.blocks for n in block.norms]
    projections = [p for block in found.blocks for p in _projections(block)]
    outside = [
        name
        for name, part in model.named_modules()
        if isinstance(part, nn.Dropout) and not any(name.startswith(b.path + ".") for b in found.blocks)
    ]
    watched = [*norms, *projections, *outside, final, *([found.head] if found.head else [])]
    seen = _watch(model, module, watched, found.blocks[0].path)
    readers: dict[str, tuple[str, ...]] = {}
    for block in found.blocks:
        entering = [p for p in _projections(block) if p not in writers]
        for norm in block.norms:
            readers[norm] = tuple(p for p in entering if _same(seen.inputs.get(p), seen.outputs.get(norm)))
        if loose := [p for p in entering if not any(p in group for group in readers.values())]:
            raise ModelError(
                f"{loose[0]} reads the residual stream itself, not its normalised form: this is a post-norm model (as "
                "BERT is), in which the mean of the stream matters"
            )
        if empty := [norm for norm in block.norms if not readers[norm]]:
            raise ModelError(f"what reads {empty[0]} was not found: its gain cannot be folded")
    first = seen.inputs.get(found.blocks[0].path)
    entry = [name for name in outside if _same(seen.outputs.get(name), first)]
    if not entry:
        raise ModelError(
            f"there is no dropout between the embeddings and the blocks of this {found.family} model, whose place the "
            "re-centring could take"
        )
    head = found.head if found.head and _same(seen.inputs.get(found.head), seen.outputs[final]) else None
    return Stream(readers, tuple(writers), scales, entry[-1], final, head)


def _projections(block: Block) -> tuple[str, ...]:
    attention = block.attention.projections if block.attention else ()
    return (*attention, *(block.feed_forward.projections if block.feed_forward else ()))


def _structure(model: nn.Module, found: Anatomy) -> tuple[str, set[str], dict[str, str]]:
    """What can be refused without running anything: (final norm, writers, scales)."""
    if len(found.stacks) > 1 or any(b.cross_attention for b in found.blocks):
        raise ModelError(
            "a model of several stacks or with cross-attention is not converted: only one stack is"
        )
    if found.stacks[0].shared:
        raise ModelError(
            "one shared block runs many times: this is a post-norm model, as all of that kind are"
        )
    norms = [n for b in found.blocks for n in b.norms] + ([found.final_norm] if found.final_norm else [])
    for path in norms:
        norm = anatomy.get(model, path)
        if not isinstance(norm, nn.LayerNorm):
            raise ModelError(
                f"{path} is a {type(norm).__name__}, no LayerNorm: it subtracts no mean, there is nothing to convert"
            )
    if found.final_norm is None:
        raise ModelError(
            f"no norm stands behind the last block of this {found.family} model: it is post-norm, and the mean of its "
            "residual stream matters"
        )
    writers: set[str] = set()
    scales: dict[str, str] = {}
    for block in found.blocks:
        if block.attention is None or block.feed_forward is None:
            raise ModelError(f"{block.path} has no attention or no feed-forward")
        own = (block.attention.o, block.feed_forward.down)
        writers.update(own)
        scales.update(zip(_scales(model, block, found.width), own))
    return found.final_norm, writers, scales


def _scales(model: nn.Module, block: Block, width: int) -> list[str]:
    """Paths of the block's LayerScales, in order; ModelError for any other parameter that nobody knows."""
    attention = block.attention
    known = (
        *_projections(block),
        *block.norms,
        *(p for p in (attention and attention.q_norm, attention and attention.k_norm) if p),
    )
    places = []
    for name, parameter in anatomy.get(model, block.path).named_parameters():
        path = f"{block.path}.{name}"
        if any(path.startswith(k + ".") for k in known):
            continue
        owner = path.rpartition(".")[0]
        if parameter.shape != (width,) or not type(anatomy.get(model, owner)).__name__.endswith("LayerScale"):
            raise ModelError(f"{path} is a parameter whose part in the residual stream is not known")
        places.append(owner)
    if len(places) not in (0, 2):
        raise ModelError(
            f"{block.path} has {len(places)} scales; one behind attention and one behind feed-forward are known"
        )
    return places


def _watch(model: nn.Module, module: nn.Module, paths: list[str], first: str) -> _Seen:
    seen = _Seen()
    with ExitStack() as stack:
        for path in (*paths, first):

            def hook(part: nn.Module, args: Any, kwargs: Any, output: Any, path: str = path) -> None:
                given = args[0] if args else kwargs.get("hidden_states")
                if isinstance(given, Tensor):
                    seen.inputs[path] = given
                seen.outputs[path] = output if isinstance(output, Tensor) else output[0]

            handle = anatomy.get(model, path).register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        outputs(module, made_up(model))
    return seen
