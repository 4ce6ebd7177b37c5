"""Queries, keys, values and hidden states of any family, caught by hooks at the paths that anatomy gives.

Fused attention hides its probabilities, so they are recomputed from Q and K (`losses.relation_log_probs`). What
is caught is what the projections (and query/key norms, where there are any) put out: positions that are rotated
in later, and biases added to the scores (t5), are not in it. Of a rotary model the relations are those before
rotation, alike for teacher and student.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from lightformers.anatomy.access import get, rows
from lightformers.anatomy.records import Anatomy, Attention
from lightformers.errors import ModelError


class Capture:
    """While the block runs, every forward of `model` leaves its inner tensors here.

    model: the module that `anatomy` describes. relations, hidden: indices into `anatomy.blocks` whose Q, K, V (each
    (B, heads, S, head_dim), shared key/value heads repeated) and whose output (B, S, width) are kept.
    Gradients flow through what is kept, unless the forward ran without them.
    """

    def __init__(
        self, model: nn.Module, anatomy: Anatomy, relations: Sequence[int] = (), hidden: Sequence[int] = ()
    ) -> None:
        self.model, self.anatomy = model, anatomy
        self._relations, self._hidden = tuple(relations), tuple(hidden)
        self._kept: dict[tuple[int, str], Tensor] = {}
        self._handles: list[Any] = []
        for i in self._relations:
            if anatomy.blocks[i].attention is None or anatomy.blocks[i].attention.fused == "packed":  # type: ignore[union-attr]
                raise ModelError(
                    f"{anatomy.blocks[i].path} has no attention whose queries, keys and values can be caught"
                )

    def __enter__(self) -> Capture:
        for i in self._relations:
            attention = self.anatomy.blocks[i].attention
            assert attention is not None
            for piece in ("q", "k", "v"):
                path, index = rows(attention, piece)
                norm = {"q": attention.q_norm, "k": attention.k_norm}.get(piece)
                fused = None if norm or path != attention.qkv else index
                self._hook(norm or path, (i, piece), fused)
        for i in self._hidden:
            self._hook(self.anatomy.blocks[i].path, (i, "hidden"), None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.clear()

    def _hook(self, path: str, key: tuple[int, str], index: Tensor | None) -> None:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            self._kept[key] = tensor if index is None else tensor.index_select(-1, index.to(tensor.device))

        self._handles.append(get(self.model, path).register_forward_hook(keep))

    def qkv(self, block: int, piece: str) -> Tensor:
        """ "q", "k" or "v" of the last forward: (B, heads, S, head_dim)."""
        attention = self.anatomy.blocks[block].attention
        assert attention is not None
        return _split(self._get(block, piece), attention, piece)

    def hidden(self, block: int) -> Tensor:
        """The block's output of the last forward: (B, S, width)."""
        return self._get(block, "hidden")

    def clear(self) -> None:
        """Let go of what was kept, and with it of the graph."""
        self._kept.clear()

    def _get(self, block: int, what: str) -> Tensor:
        if (block, what) not in self._kept:
            raise RuntimeError(f"block {block} left no {what}: it did not run, or was not asked for")
        return self._kept[block, what]


def _split(x: Tensor, attention: Attention, piece: str) -> Tensor:
    heads = attention.heads if piece == "q" else attention.kv_heads
    split = x.reshape(x.shape[0], x.shape[1], heads, attention.head_dim).transpose(1, 2)
    groups = attention.heads // heads
    return split.repeat_interleave(groups, 1) if groups > 1 else split
