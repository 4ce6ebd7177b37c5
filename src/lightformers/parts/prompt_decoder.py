"""A shallow decoder that answers prompts about a sequence: attention of the prompt, then an LSTM (arXiv 2307.09249)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightformers.parts.attention.heads import softmax

#: Hidden state and cell of an LSTM, each (batch, width).
Memory = tuple[Tensor, Tensor]


def summary(asked: Tensor, keys: Tensor, states: Tensor, seen: Tensor) -> Tensor:
    """Softmax of plain dot products over what is seen: (batch, p, size), (batch, n, size), (batch, n, width), (batch, n)
    -> (batch, p, width)."""
    return softmax(asked @ keys.transpose(1, 2), seen[:, None]) @ states


def lstm_step(x: Tensor, memory: Memory, weights: Any) -> Memory:
    """One step of a single-layer `nn.LSTM`, in plain products that every runtime knows. x: (batch, inputs)."""
    h, c = memory
    gates = F.linear(x, weights.weight_ih_l0, weights.bias_ih_l0) + F.linear(h, weights.weight_hh_l0, weights.bias_hh_l0)  # fmt: skip
    enter, forget, new, leave = gates.chunk(4, -1)
    c = forget.sigmoid() * c + enter.sigmoid() * new.tanh()
    return leave.sigmoid() * c.tanh(), c


class PromptAttention(nn.Module):
    """A prompt's summary of a sequence: one vector. Two-layer ReLU networks on either side, a softmax over the sequence
    for each token of the prompt, a learned softmax over these tokens."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.ask = nn.Sequential(nn.Linear(words, width), nn.ReLU(), nn.Linear(width, width))
        self.look = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.weigh = nn.Linear(width, 1)

    def forward(self, prompt: Tensor, asked: Tensor, states: Tensor, seen: Tensor) -> Tensor:
        """prompt: (batch or 1, p, words) embeddings, asked: (batch or 1, p) false at padding; states: (batch, n, width),
        seen: (batch, n). -> (batch, width)."""
        found = summary(self.ask(prompt), self.look(states), states, seen)
        weights = softmax(self.weigh(found)[..., 0], asked)
        return (weights[:, None] @ found)[:, 0]


class PromptDecoder(nn.Module):
    """From states of a sequence and a prompt to tokens, whose table is tied to the logits.

    words: width of the token table, which stays with its owner and is handed in. width: of states and LSTM.
    """

    def __init__(self, words: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.attention = PromptAttention(words, width)
        self.start = nn.Linear(2 * width, 2 * width)
        self.lstm = nn.LSTM(words, width, batch_first=True)
        self.out = nn.Linear(width, words)

    def begin(self, prompt: Tensor, asked: Tensor, states: Tensor, seen: Tensor) -> Memory:
        """The memory before the first token; states[:, 0] stands for the whole sequence. See `PromptAttention`."""
        a = self.attention(prompt, asked, states, seen)
        h, c = self.start(torch.cat([states[:, 0], a], -1)).chunk(2, -1)
        return h, c

    def step(self, token: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """token: (batch, words) embedding of the last one. -> what is compared with embeddings, (batch, words)."""
        memory = lstm_step(token, memory, self.lstm)
        return self.out(memory[0]), memory

    def forward(self, tokens: Tensor, memory: Memory) -> Tensor:
        """Every step of (batch, n, words) embeddings at once; as many calls of `step`. -> (batch, n, words)."""
        tokens = F.dropout(tokens, self.dropout, self.training)
        h, c = (m[None].contiguous() for m in memory)
        return self.out(self.lstm(tokens, (h, c))[0])
