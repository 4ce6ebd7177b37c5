"""FlexiBERT's space of encoders (Tuli et al., 2022, arXiv 2205.11656), weights handed between neighbours, finer spaces.

A search, from coarse to fine:

    space = FlexiSpace(depths=(2, 4), widths=(128, 256), heads=(2, 4), hidden=(512, 1024))
    library = library_of(space.sample(500, seed=0))
    found = Boshnas().search(library, score, budget=40)           # score(architecture, start from or None) in [0, 1]
    best = [q.item for q in sorted(found.queries, key=lambda q: -q.score)[:5]]
    finer = library_of(between(best, stack=1))                    # layers alone instead of stacks of two
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from lightformers.compress.elastic.architecture_graph import Architecture, learned_points
from lightformers.compress.elastic.boshnas import Library
from lightformers.errors import ModelError, UserError
from lightformers.models.language.flexibert import FlexiBERT, FlexiBERTConfig, Layer


@dataclass(frozen=True)
class FlexiSpace:
    """Choices of every layer; `stack` layers in a row are alike. The defaults are the paper's test space.

    depths: numbers of layers, each a multiple of `stack`. operations: operation -> variants. inner: numbers of inner
    feed-forward layers; hidden: their widths, alike within a layer unless `unlike`.
    """

    depths: tuple[int, ...] = (2, 4)
    widths: tuple[int, ...] = (128, 256)
    heads: tuple[int, ...] = (2, 4)
    operations: Mapping[str, tuple[str | int, ...]] = field(
        default_factory=lambda: {"sa": ("sdp", "wma"), "l": ("dft", "dct"), "c": (5, 9)}
    )
    inner: tuple[int, ...] = (1, 3)
    hidden: tuple[int, ...] = (512, 1024)
    stack: int = 2
    unlike: bool = False

    def __post_init__(self) -> None:
        if self.stack < 1 or not self.depths or any(d < 1 or d % self.stack for d in self.depths):
            raise UserError(f"depths {self.depths} must be multiples of the stacks of {self.stack} layers")
        if not self.layers():
            raise UserError("this space has no layer: every dimension needs a choice")

    def layers(self) -> list[Layer]:
        """Every layer there is. Raises UserError for one that cannot be (see `Layer`)."""
        kinds: list[Any] = [(op, variant) for op, variants in self.operations.items() for variant in variants]
        return [
            Layer(operation, variant, width, heads, hidden)
            for (operation, variant), width, heads, hidden in itertools.product(
                kinds, self.widths, self.heads, self._hidden()
            )
        ]

    def _hidden(self) -> list[tuple[int, ...]]:
        if self.unlike:
            return [f for n in self.inner for f in itertools.product(self.hidden, repeat=n)]
        return [(f,) * n for n in self.inner for f in self.hidden]

    @property
    def count(self) -> int:
        """How many architectures there are."""
        return sum(len(self.layers()) ** (depth // self.stack) for depth in self.depths)

    def __iter__(self) -> Iterator[Architecture]:
        """Every architecture, shallow ones first. There may be very many: see `count`."""
        for depth in self.depths:
            for chosen in itertools.product(self.layers(), repeat=depth // self.stack):
                yield _stacked(chosen, self.stack)

    def sample(self, number: int, seed: int = 0) -> list[Architecture]:
        """So many different architectures, all alike likely; all of them if there are no more."""
        if self.count <= number:
            return list(self)
        rng, layers = np.random.default_rng(seed), self.layers()
        shares = np.array([float(len(layers)) ** (depth // self.stack) for depth in self.depths])
        drawn: dict[Architecture, None] = {}
        while len(drawn) < number:
            depth = self.depths[int(rng.choice(len(self.depths), p=shares / shares.sum()))]
            chosen = [layers[i] for i in rng.integers(len(layers), size=depth // self.stack)]
            drawn[_stacked(chosen, self.stack)] = None
        return list(drawn)


def _stacked(layers: Sequence[Layer], stack: int) -> Architecture:
    return tuple(layer for layer in layers for _ in range(stack))


def homogeneous(architecture: Architecture) -> bool:
    """Whether all layers are alike."""
    return len(set(architecture)) == 1


def between(best: Sequence[Architecture], stack: int = 1) -> list[Architecture]:
    """The next, finer level: every mixture of two of the best of equal depth, those included.

    stack: layers that are exchanged together; 2^(depth / stack) mixtures of each two.
    """
    out: dict[Architecture, None] = dict.fromkeys(best)
    for a, b in itertools.combinations(best, 2):
        if len(a) != len(b) or len(a) % stack:
            continue
        places = range(0, len(a), stack)
        for pieces in itertools.product(*((a[i : i + stack], b[i : i + stack]) for i in places)):
            out[tuple(layer for piece in pieces for layer in piece)] = None
    return list(out)


def refined(best: Sequence[Architecture], hidden: Sequence[int]) -> list[Architecture]:
    """The last level: feed-forwards of unlike inner widths. All that differ from one of the best in one layer's, and those."""
    out: dict[Architecture, None] = dict.fromkeys(best)
    for architecture in best:
        for i, layer in enumerate(architecture):
            for widths in itertools.product(hidden, repeat=len(layer.hidden)):
                out[(*architecture[:i], replace(layer, hidden=widths), *architecture[i + 1 :])] = None
    return list(out)


def library_of(
    architectures: Sequence[Architecture], pairs: float = 0.01, steps: int = 2000, seed: int = 0
) -> Library[Architecture]:
    """What `Boshnas` searches: the architectures, points learned from a share of their pairs' distances, `share`."""
    return Library(list(architectures), learned_points(architectures, pairs, steps=steps, seed=seed), share)


def transfer(target: FlexiBERT, source: FlexiBERT) -> float:
    """Copy into `target` what it has in common with `source`, from the bottom; returns the share of its tensors.

    The embeddings, if as wide, then layer after layer as long as operation, variant, width and heads agree; where the
    inner widths do not, the mixer is the last to be copied. Embeddings of other width give their first columns, which are not
    counted. Raises ModelError, before anything is changed, where words, types or positions differ.
    """
    names = _common(target, source)
    given, own = source.state_dict(), target.state_dict()
    with torch.no_grad():
        for name in own.keys() & given.keys():
            if name in names:
                own[name].copy_(given[name])
            elif not name.startswith(("blocks", "pooler")):
                columns = min(own[name].shape[-1], given[name].shape[-1])
                own[name][..., :columns].copy_(given[name][..., :columns])
    return len(names) / _tensors(target)


def share(target: Architecture, source: Architecture) -> float:
    """What `transfer` would return for models of these architectures."""
    a, b = _hollow(target), _hollow(source)
    return len(_common(a, b)) / _tensors(a)


@functools.lru_cache(maxsize=1024)
def _hollow(architecture: Architecture) -> FlexiBERT:
    with torch.device("meta"):
        return FlexiBERT(FlexiBERTConfig(architecture, words=2, length=2, pooler=False))


def _tensors(model: FlexiBERT) -> int:
    return sum(not name.startswith("pooler") for name in model.state_dict())


def _common(target: FlexiBERT, source: FlexiBERT) -> set[str]:
    """Names of the tensors that are handed on."""
    a, b = target.config, source.config
    for name in ("words", "types", "length", "relative"):
        if getattr(a, name) != getattr(b, name):
            raise ModelError(
                f"weights go between encoders of equal {name}: {getattr(a, name)} here, {getattr(b, name)} there"
            )
    prefixes = [] if a.layers[0].width != b.layers[0].width else ["words.", "types.", "positions.", "norm."]
    for i, (mine, other) in enumerate(zip(a.layers, b.layers)):
        if replace(mine, hidden=other.hidden) != other:
            break
        prefixes += [f"blocks.{i}.mixer.", f"blocks.{i}.mixer_norm."]
        if mine.hidden != other.hidden:
            break
        prefixes += [f"blocks.{i}.feed_forward.", f"blocks.{i}.feed_forward_norm.", f"blocks.{i}.project."]
    shapes = {name: value.shape for name, value in source.state_dict().items()}
    return {
        name
        for name, value in target.state_dict().items()
        if name.startswith(tuple(prefixes)) and shapes.get(name) == value.shape
    }
