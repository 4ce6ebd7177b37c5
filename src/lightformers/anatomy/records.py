"""What `anatomy.of` returns: plain records of paths and sizes, no modules and no tensors.

Paths are dotted and relative to the model that was given. Sizes are read off the live modules, so a record
taken after a cut describes the model as it now is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Fused = Literal["", "thirds", "per_head", "kv", "packed", "unknown"]
"""How a fused projection is laid out along its output.

"": not fused. "thirds": all queries, all keys, all values (gpt2). "per_head": query, key, value of head 0,
then of head 1, ... (gpt_neox). "kv": keys then values, the queries apart (gpt2's cross-attention).
"packed": torch's `nn.MultiheadAttention`, whose projection is a bare parameter and can't be cut. "unknown": fused
in a model that no row knows; blocks and channels can be cut, heads only once it is described.
"""


@dataclass(frozen=True)
class Attention:
    """One attention. `q`, `k`, `v` are None where they lie in the fused projection `qkv`.

    heads: query heads; kv_heads: key/value heads (heads // kv_heads query heads share one).
    head_dim: size of one head; out_features: heads * head_dim, the input size of `o`.
    """

    path: str
    q: str | None
    k: str | None
    v: str | None
    o: str
    qkv: str | None
    fused: Fused
    heads: int
    kv_heads: int
    head_dim: int
    q_norm: str | None = None
    k_norm: str | None = None

    @property
    def out_features(self) -> int:
        return self.heads * self.head_dim

    @property
    def projections(self) -> tuple[str, ...]:
        """Paths of the linears that are there, each once: q, k, v or qkv, then o."""
        return tuple(p for p in (self.q, self.k, self.v, self.qkv, self.o) if p is not None)


@dataclass(frozen=True)
class FeedForward:
    """`down(act(up(x)))`, or `down(act(gate(x)) * up(x))` where there is a gate.

    width: inner channels. packed: `up` holds gate and up, one after the other (2 * width outputs).
    """

    path: str
    up: str
    gate: str | None
    down: str
    activation: str
    width: int
    packed: bool = False

    @property
    def projections(self) -> tuple[str, ...]:
        return tuple(p for p in (self.gate, self.up, self.down) if p is not None)


@dataclass(frozen=True)
class Block:
    """One transformer block. `index` counts within its stack; `norms` are paths of its normalisations.

    others: paths of parts that are neither (a recurrence, say): they go with the block and are not cut.
    """

    path: str
    index: int
    stack: str
    attention: Attention | None
    cross_attention: Attention | None
    feed_forward: FeedForward | None
    norms: tuple[str, ...]
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stack:
    """A run of blocks. depth: how often a block is executed (more than the blocks there are, if shared)."""

    name: str
    path: str
    depth: int
    width: int
    shared: bool
    embeddings: str | None
    positions: str | None
    embedding_norm: str | None
    final_norm: str | None


@dataclass(frozen=True)
class Native:
    """Per cut: None if the result reloads in plain transformers, else the reason why it does not.

    channels_multiple: the feed-forward widths that reload are multiples of this.
    """

    blocks: str | None
    heads: str | None
    channels: str | None
    width: str | None
    vocabulary: str | None
    channels_multiple: int = 1


@dataclass(frozen=True)
class Anatomy:
    """Where the pieces of a model are.

    blocks: all blocks, stack after stack; cuts of heads and channels name a block by its place here.
    embeddings: the word embedding, wherever there is one. positions, embedding_norm, final_norm: of the first
    stack (None: there is none; `positions` may be the path of a bare parameter). head: the output layer of the task, if any.
    tied: the head shares its weight with the word embedding. width: hidden size of the first stack.
    """

    family: str
    blocks: tuple[Block, ...]
    stacks: tuple[Stack, ...]
    embeddings: str | None
    positions: str | None
    embedding_norm: str | None
    final_norm: str | None
    head: str | None
    tied: bool
    width: int
    native: Native

    def stack(self, name: str) -> tuple[Block, ...]:
        """The blocks of one stack, in order."""
        return tuple(block for block in self.blocks if block.stack == name)
