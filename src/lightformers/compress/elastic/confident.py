"""Generation that stops at the first exit which is sure of the next token: few blocks for easy tokens, all for hard ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightformers.compress.elastic.exits import check_depths
from lightformers.errors import UserError
from lightformers.models.language.convert import from_transformers
from lightformers.models.language.decoder import Decoder


@dataclass(frozen=True)
class Generated:
    """tokens: per row, the new ones alone. depths: per row, the blocks that each of them took."""

    tokens: list[list[int]]
    depths: list[list[int]]

    @property
    def depth(self) -> float:
        """Blocks of a token, on average."""
        every = [d for row in self.depths for d in row]
        return sum(every) / max(len(every), 1)


@dataclass(frozen=True)
class ConfidentExits:
    """Instance-aware inference of Sorted LLaMA (Kavehzadeh et al., 2023, arXiv 2309.08968), greedy; changes no weight.

    exits: depths at which a token may leave, rising to all blocks; an exit is the model's own norm and head, as
        `SortedLlama` trains them. threshold: the least probability of the likeliest token at which it leaves, in [0, 1];
        at 1 every token takes all blocks, whatever rounding says.

    Exact: what later tokens attend to is what the whole model would give. Blocks that a token did not take are caught up on
    its behalf, together with the first later token that goes deeper; so a sure run costs less, and a single deep token
    among sure ones saves little. Rows are generated one by one, so that none waits for another's depth.
    """

    exits: tuple[int, ...]
    threshold: float = 0.9

    def __post_init__(self) -> None:
        object.__setattr__(self, "exits", tuple(self.exits))
        if not 0 <= self.threshold <= 1:
            raise UserError(f"a threshold is a probability in [0, 1], not {self.threshold}")

    @torch.no_grad()
    def generate(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        max_new_tokens: int = 32,
        eos_token_id: int | Sequence[int] | None = None,
    ) -> Generated:
        """At most so many new tokens per row, up to and with the one that ends it.

        model: a `Decoder`, or a language model of transformers that can be made one. input_ids, attention_mask (batch, n);
        padding (mask 0) may stand on either side. Raises ModelError for other models and for exits that the model has not,
        UserError for rows without tokens and texts beyond the model's positions.
        """
        decoder = model if isinstance(model, Decoder) else from_transformers(model)
        check_depths(self.exits, len(decoder.layers))
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if input_ids.ndim != 2 or mask.shape != input_ids.shape or not bool(mask.any(1).all()):
            raise UserError("input_ids are (batch, n), attention_mask alike, and every row holds a token")
        if max_new_tokens < 1:
            raise UserError(f"at least one new token is generated, not {max_new_tokens}")
        ends = {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id or ())
        training = decoder.training
        decoder.eval()
        try:
            rows = [
                self._row(decoder, ids[kept != 0], max_new_tokens, ends) for ids, kept in zip(input_ids, mask)
            ]
        finally:
            decoder.train(training)
        return Generated([tokens for tokens, _ in rows], [depths for _, depths in rows])

    def _row(self, model: Decoder, ids: Tensor, most: int, ends: set[int]) -> tuple[list[int], list[int]]:
        reader = _Reader(model, self.exits, self.threshold)
        tokens: list[int] = []
        depths: list[int] = []
        while len(tokens) < most and not (tokens and tokens[-1] in ends):
            token, depth = reader.read(ids)
            tokens.append(token)
            depths.append(depth)
            ids = ids.new_tensor([token])
        return tokens, depths


class _Reader:
    """One text being read. waiting: exit -> states (1, n, width) of tokens that have not gone beyond it yet."""

    def __init__(self, model: Decoder, exits: Sequence[int], threshold: float) -> None:
        self.model: Any = model
        self.exits, self.threshold = exits, threshold
        self.past = model.begin(1)
        self.waiting: dict[int, list[Tensor]] = {depth: [] for depth in (0, *exits)}

    def read(self, ids: Tensor) -> tuple[int, int]:
        """Reads some tokens, all of the prompt or one: what comes after the last of them, and the blocks it took."""
        self.waiting[0].append(self._enter(ids))
        below = 0
        for depth in self.exits:
            x = torch.cat(self.waiting[below], 1)
            self.waiting[below].clear()
            x = self._through(x, below, depth)
            logits = self.model.head(self.model.norm(x[:, -1:].to(self.model.norm.weight.dtype)))[
                0, 0
            ].float()
            best = int(logits.argmax())
            if depth == self.exits[-1]:
                break
            self.waiting[depth].append(x)
            if self.threshold < 1 and float(logits.softmax(-1)[best]) >= self.threshold:
                break
            below = depth
        return best, depth

    def _enter(self, ids: Tensor) -> Tensor:
        config, past = self.model.config, self.past
        x = self.model.embedding(ids[None])
        if config.embedding_scale is not None:
            x = x * (x.shape[-1] ** 0.5 if config.embedding_scale == "sqrt" else config.embedding_scale)
        x = self.model._place(x, None, past)
        past.seen += len(ids)
        past.count = past.count + len(ids)
        return x.float() if config.residual_fp32 else x

    def _through(self, x: Tensor, first: int, last: int) -> Tensor:
        states = self.past.states
        for i in range(first, last):
            layer = self.model.layers[i]
            if x.shape[1] == 1:
                y, states[i] = layer.step(x[:, 0], states[i])
                x = y[:, None]
            else:
                x, states[i] = layer.extend(x, states[i], None)
        return x
