"""A database of chunks for retrieval: tokens in fixed pieces, a vector for each, exact search (RETRO, arXiv 2304.06762).

Every product of a query with every chunk is computed, in blocks: a database of a million chunks is searched in seconds on a
laptop, and nothing is approximated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightformers.errors import UserError
from lightformers.files import replacing

#: Fills neighbours that are missing or short.
PAD = -1
#: Products computed at once.
_BLOCK = 1 << 24

#: (count, length) tokens, `PAD` behind -> (count, size) vectors.
Embedder = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TokenBag:
    """An embedder that needs no model: counts of tokens, weighted by how rare they are, at unit length.

    weights: (vocabulary) log of (chunks + 1) / (chunks with the token + 1), plus 1.
    """

    weights: Tensor
    name: str = "token-bag"

    @classmethod
    def of(cls, chunks: Tensor, vocabulary: int) -> TokenBag:
        """From (count, length) tokens."""
        if chunks.numel() and int(chunks.max()) >= vocabulary:
            raise UserError(f"token {int(chunks.max())} does not belong to a vocabulary of {vocabulary}")
        having = (_counts(chunks, vocabulary) > 0).sum(0)
        return cls(((len(chunks) + 1) / (having + 1)).log() + 1)

    def __call__(self, tokens: Tensor) -> Tensor:
        return torch.nn.functional.normalize(_counts(tokens, len(self.weights)) * self.weights, dim=1)


def _counts(tokens: Tensor, vocabulary: int) -> Tensor:
    """(count, length) -> (count, vocabulary) how often each token occurs; padding is left out."""
    found = torch.zeros(len(tokens), vocabulary + 1)
    found.scatter_add_(1, torch.where(tokens == PAD, vocabulary, tokens), torch.ones(tokens.shape))
    return found[:, :vocabulary]


def cut(documents: Sequence[Sequence[int]], chunk: int) -> tuple[Tensor, Tensor]:
    """Documents of tokens -> (count, chunk) chunks, `PAD` behind a document's end, and (count) numbers of documents."""
    if chunk < 2:
        raise UserError(f"a chunk holds at least 2 tokens, not {chunk}")
    rows, owners = [], []
    for number, document in enumerate(documents):
        for start in range(0, len(document), chunk):
            piece = list(document[start : start + chunk])
            rows.append(piece + [PAD] * (chunk - len(piece)))
            owners.append(number)
    if not rows:
        raise UserError("a database needs documents with tokens")
    return torch.tensor(rows), torch.tensor(owners)


@dataclass(frozen=True)
class ChunkIndex:
    """chunks (count, chunk) tokens, documents (count) to which they belong, vectors (count, size), and the embedder's name:
    queries must be embedded by the same one."""

    chunks: Tensor
    documents: Tensor
    vectors: Tensor
    embedder: str

    @classmethod
    def of(cls, documents: Sequence[Sequence[int]], chunk: int, embed: Embedder) -> ChunkIndex:
        """A database of documents in their order."""
        chunks, owners = cut(documents, chunk)
        return cls(chunks, owners, embed(chunks), _name(embed))

    def __len__(self) -> int:
        return len(self.chunks)

    def search(self, vectors: Tensor, k: int, without: Tensor | None = None) -> Tensor:
        """(count, size) queries -> (count, k) rows with the largest products, best first; -1 where there are fewer.

        without: (count) document that a query must not find, its own, -1 for none. Raises UserError for k below 1 and
        vectors of another size.
        """
        if k < 1:
            raise UserError(f"a query asks for at least one neighbour, not {k}")
        if vectors.shape[1] != self.vectors.shape[1]:
            raise UserError(
                f"queries of {vectors.shape[1]} numbers do not fit a database of {self.vectors.shape[1]}, made by {self.embedder}"
            )
        found = []
        for part in torch.arange(len(vectors)).split(max(_BLOCK // len(self), 1)):
            scores = vectors[part].float() @ self.vectors.float().T
            if without is not None:
                scores = scores.masked_fill(without[part, None] == self.documents, -torch.inf)
            best, rows = scores.topk(min(k, len(self)))
            rows = rows.masked_fill(best == -torch.inf, -1)
            found.append(torch.nn.functional.pad(rows, (0, k - rows.shape[1]), value=-1))
        return torch.cat(found) if found else torch.zeros(0, k, dtype=torch.long)

    def tokens(self, rows: Tensor, retrieved: int | None = None) -> Tensor:
        """(..., k) rows -> (..., k, retrieved) tokens: the chunk and what follows it in its document, by default as much
        again; `PAD` where a row is -1 or the document ends. Raises UserError for rows that do not exist."""
        size = self.chunks.shape[1]
        retrieved = 2 * size if retrieved is None else retrieved
        if retrieved < 1:
            raise UserError(f"at least one token is retrieved, not {retrieved}")
        if rows.numel() and not -1 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise UserError(f"there are rows 0 to {len(self) - 1}, and -1 for none")
        pieces = []
        for offset in range(-(-retrieved // size)):
            at = (rows + offset).clamp(0, len(self) - 1)
            there = (
                (rows >= 0)
                & (rows + offset < len(self))
                & (self.documents[at] == self.documents[rows.clamp(min=0)])
            )
            pieces.append(torch.where(there[..., None], self.chunks[at], PAD))
        return torch.cat(pieces, -1)[..., :retrieved]

    def neighbours(
        self,
        queries: Tensor,
        embed: Embedder,
        k: int = 2,
        retrieved: int | None = None,
        without: Tensor | None = None,
    ) -> Tensor:
        """(count, chunk) tokens -> (count, k, retrieved) tokens of their neighbours: what `Retro` reads.

        Raises UserError where `embed` is not what the database was made with.
        """
        if _name(embed) != self.embedder:
            raise UserError(
                f"the database was made with {self.embedder}, queries with {_name(embed)} find nothing in it"
            )
        return self.tokens(self.search(embed(queries.cpu()), k, without), retrieved)

    def save(self, folder: str | Path) -> None:
        """Write chunks.safetensors and index.json into a folder, whole or not at all."""
        from safetensors.torch import save_file

        with replacing(folder, directory=True) as place:
            tensors = {"chunks": self.chunks, "documents": self.documents, "vectors": self.vectors}
            save_file({k: v.contiguous() for k, v in tensors.items()}, place / "chunks.safetensors")
            (place / "index.json").write_text(json.dumps({"embedder": self.embedder}), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> ChunkIndex:
        """What `save` wrote. Raises UserError where it is not there."""
        from safetensors.torch import load_file

        place = Path(folder)
        if not (place / "index.json").is_file() or not (place / "chunks.safetensors").is_file():
            raise UserError(f"{place} holds no database of chunks")
        said = json.loads((place / "index.json").read_text(encoding="utf-8"))
        return cls(**load_file(place / "chunks.safetensors"), embedder=said["embedder"])


def _name(embed: Embedder) -> str:
    return str(getattr(embed, "name", getattr(embed, "__name__", type(embed).__name__)))
