"""What a decoder knows of the tokens so far, in the form that `generate` of transformers hands around."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from lightformers.errors import UserError
from lightformers.parts.mixers import State


class States(Cache):
    """One state per layer (`parts.mixers`).

    states: from the first layer. seen: positions so far, padding among them. count: (batch) real tokens so far.
    Rows can be picked and repeated (beams). They cannot be cut back: a recurrence does not remember what it was.
    """

    def __init__(self, states: list[State], count: Tensor) -> None:
        super().__init__(layers=[])
        self.states, self.count, self.seen = states, count, 0

    def __len__(self) -> int:
        return len(self.states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def pick(self, rows: Tensor) -> None:
        """Rows of the batch, in this order, in every layer; in place."""
        self.states = [{k: v.index_select(0, rows.to(v.device)) for k, v in s.items()} for s in self.states]
        self.count = self.count.index_select(0, rows.to(self.count.device))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.pick(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.pick(indices.nonzero()[:, 0] if indices.dtype == torch.bool else indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.pick(torch.arange(len(self.count)).repeat_interleave(repeats))

    def reset(self) -> None:
        raise UserError("states are not reset: start the next text without past_key_values")

    def crop(self, *tokens: Any, **named: Any) -> None:
        raise UserError(
            "states of a lightformers decoder cannot be cut back to an earlier token, so assisted and speculative "
            "decoding do not work with it: generate without an assistant"
        )

    @property
    def batch_size(self) -> int:
        return len(self.count)

    @property
    def is_croppable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_initialized(self) -> bool:
        return True
