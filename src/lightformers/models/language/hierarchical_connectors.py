"""How words enter and leave the backbone of a hierarchical model (arXiv 2501.10322): as one vector, or by cross-attention.

An entry makes one vector of a word's byte states: (rows, places, small), (rows, places) real -> (rows, wide). An exit makes
of the backbone's output before a word what its spelling starts from, (rows, wide) -> (rows, spell), and what is added
before every layer of the decoder, a list of (rows, spell) or None.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.attention.reading import CrossAttention

Exit = tuple[Tensor, list[Tensor] | None]


class VectorEntry(nn.Module):
    """The paper's: a linear map of the state at the mark that begins the word."""

    def __init__(self, small: int, wide: int, heads: int) -> None:
        super().__init__()
        self.map = nn.Linear(small, wide, bias=False)
        nn.init.normal_(self.map.weight, std=small**-0.5)  # what enters a stream keeps its size

    def forward(self, states: Tensor, real: Tensor) -> Tensor:
        return self.map(states[:, 0])


class CrossEntry(nn.Module):
    """The released model's: one learnt query reads all states of the word; nothing is added to what it reads."""

    def __init__(self, small: int, wide: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(wide))
        self.read = CrossAttention(wide, heads, small, empty=False)
        nn.init.normal_(self.read.value.weight, std=small**-0.5)
        nn.init.normal_(self.read.out.weight, std=wide**-0.5)

    def forward(self, states: Tensor, real: Tensor) -> Tensor:
        asked = self.query.to(states.dtype).expand(len(states), 1, -1)
        return self.read(asked, states, real != 0)[:, 0]


class VectorExit(nn.Module):
    """The paper's: the first input of the decoder, and nothing else."""

    def __init__(self, wide: int, spell: int, layers: int) -> None:
        super().__init__()
        self.map = nn.Linear(wide, spell, bias=False)
        nn.init.normal_(self.map.weight, std=wide**-0.5)

    def forward(self, before: Tensor) -> Exit:
        return self.map(before), None


class CrossExit(nn.Module):
    """The released model's: in every layer each byte reads the vector by cross-attention. There is one thing to read, so
    its share is 1 whatever the query: what is left are the norm, the values and the last map."""

    def __init__(self, wide: int, spell: int, layers: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(spell) * 0.02)
        self.norms = nn.ModuleList(nn.RMSNorm(wide, eps=1e-5) for _ in range(layers))
        self.values = nn.ModuleList(nn.Linear(wide, spell, bias=False) for _ in range(layers))
        self.maps = nn.ModuleList(nn.Linear(spell, spell, bias=False) for _ in range(layers))
        for module in (*self.values, *self.maps):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)  # type: ignore[arg-type, operator]

    def forward(self, before: Tensor) -> Exit:
        added = [out(value(norm(before))) for norm, value, out in zip(self.norms, self.values, self.maps)]
        return self.first.to(before.dtype).expand(len(before), -1), added


#: name -> entry and exit
CONNECTORS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "vector": (VectorEntry, VectorExit),
    "cross": (CrossEntry, CrossExit),
}


def connectors(kind: str) -> tuple[type[nn.Module], type[nn.Module]]:
    """The two of this name. Raises UserError for an unknown one."""
    if kind not in CONNECTORS:
        raise UserError(f"connectors are {', '.join(CONNECTORS)}, not {kind!r}")
    return CONNECTORS[kind]
