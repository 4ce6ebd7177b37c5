"""How many bytes the blocks of a model hold, and what share of a part of them fits a wanted size.

Pure counting: methods that cut differently (blocks, channels, ranks, bits) are brought to one size with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lightformers import anatomy
from lightformers.anatomy.find import host
from lightformers.bundle import Bundle
from lightformers.compress.layers import linears
from lightformers.errors import UserError

#: A size counts as met if it is exceeded by no more than this, relative: cuts come in whole blocks, heads and bytes.
TOLERANCE = 0.1


def bytes_of(model: nn.Module, paths: Sequence[str]) -> int:
    """Bytes of everything that is stored below some paths, parameters and buffers, each tensor once."""
    held: dict[int, Tensor] = {}
    for path in paths:
        state = anatomy.get(model, path).state_dict(keep_vars=True)
        held.update({id(t): t for t in state.values() if isinstance(t, Tensor)})
    return sum(t.numel() * t.element_size() for t in held.values())


def block_bytes(model: nn.Module) -> int:
    """Bytes that all blocks of a model hold, as they are stored now (packed layers count packed)."""
    return bytes_of(model, [b.path for b in anatomy.of(model).blocks])


@dataclass(frozen=True)
class Weights:
    """Bytes of a model's blocks. blocks: all of them; attention, ffn: their projections with biases.

    shapes: path of a projection -> (out, in). element: bytes of one number.
    """

    blocks: int
    attention: int
    ffn: int
    shapes: dict[str, tuple[int, int]]
    element: int

    @property
    def matrices(self) -> int:
        """Bytes of the weight matrices of all projections, without biases."""
        return self.element * sum(out * into for out, into in self.shapes.values())

    def share(self, ratio: float, part: int, what: str) -> float:
        """What share of `part` (bytes of the blocks) may stay so that the blocks come to `ratio`, in (0, 1).

        Raises UserError where the rest alone is larger than that.
        """
        left = (ratio * self.blocks - (self.blocks - part)) / part if part else 0.0
        if left <= 0:
            raise UserError(
                f"{what} are {part / self.blocks:.0%} of the blocks' bytes: cut alone they cannot bring the blocks to "
                f"{ratio:.0%}, at best to a little more than {1 - part / self.blocks:.0%}"
            )
        return min(left, 1.0)


def weights_of(model: nn.Module) -> Weights:
    """Count a model whose projections are plain linear layers. Raises ModelError for others."""
    found = anatomy.of(model)
    parts: dict[str, list[str]] = {"attention": [], "ffn": []}
    for block in found.blocks:
        for attention in (block.attention, block.cross_attention):
            parts["attention"] += attention.projections if attention else ()
        parts["ffn"] += block.feed_forward.projections if block.feed_forward else ()
    shapes: dict[str, tuple[int, int]] = {}
    element = 4
    for path in linears(found):
        weight = anatomy.linear(model, path)[0]
        shapes[path], element = (weight.shape[0], weight.shape[1]), weight.element_size()
    return Weights(
        block_bytes(model),
        bytes_of(model, parts["attention"]),
        bytes_of(model, parts["ffn"]),
        shapes,
        element,
    )


def largest(sizes: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The largest of ascending sizes that fits, where all smaller ones fit too; None if none does."""
    low, high = 0, len(sizes)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if fits(sizes[middle]) else (low, middle)
    return sizes[low - 1] if low else None


def blocks_that_fit(depth: int, ratio: float) -> int:
    """How many of `depth` equal blocks come to `ratio` (within `TOLERANCE`). Raises UserError where not even one does."""
    count = int(depth * ratio * (1 + TOLERANCE) + 1e-9)
    if count < 1:
        raise UserError(
            f"one of {depth} blocks is {1 / depth:.0%} of them: whole blocks cannot come to {ratio:.0%}"
        )
    return min(count, depth - 1) if depth > 1 else depth


def low_rank_share(shapes: Sequence[tuple[int, int]], share: float) -> float:
    """The rank, as a share of each matrix's smaller side, at which pairs hold `share` of the matrices' weights.

    A matrix whose pair would be no smaller stays as it is. Raises UserError where even rank 1 is too much.
    """
    wanted = share * sum(out * into for out, into in shapes)

    def fits(thousandths: int) -> bool:
        held = 0
        for out, into in shapes:
            rank = max(1, round(thousandths / 1000 * min(out, into)))
            held += min(rank * (out + into), out * into)
        return held <= wanted

    found = largest(range(1, 1000), fits)
    if found is None:
        raise UserError(
            f"pairs of rank 1 hold more than {share:.0%} of these matrices: they are too small for this"
        )
    return found / 1000


def width_that_fits(bundle: Bundle, ratio: float) -> int:
    """The largest hidden size at which the blocks come to `ratio`, tried on copies without weights.

    Raises ModelError where the family's hidden size cannot be cut, UserError where no size is small enough.
    """
    found = anatomy.of(bundle.model)
    owner = host(bundle.model)[1]
    first = next((b.attention for b in found.blocks if b.attention), None)
    size = first.head_dim if first else 1
    whole = block_bytes(anatomy.twin(owner))

    def fits(width: int) -> bool:
        small = anatomy.twin(owner)
        anatomy.surgery.keep_width(small, range(width))
        return block_bytes(small) <= ratio * (1 + TOLERANCE) * whole

    width = largest(range(size, found.width, size), fits)
    if width is None:
        raise UserError(f"a hidden size of {size}, one head, is still more than {ratio:.0%} of the blocks")
    return width
