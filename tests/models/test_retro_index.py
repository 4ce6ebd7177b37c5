"""The database of chunks: exact search, own documents left out, what follows a chunk, saving, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightformers.errors import UserError
from lightformers.models.language import retro_index
from lightformers.models.language.retro_index import PAD, ChunkIndex, TokenBag, cut

DOCUMENTS = [[1, 2, 3, 4, 5, 6, 7], [8, 9], [1, 2, 3, 10, 11, 12]]


def made() -> tuple[ChunkIndex, TokenBag]:
    bag = TokenBag.of(cut(DOCUMENTS, 3)[0], 20)
    return ChunkIndex.of(DOCUMENTS, 3, bag), bag


def test_documents_are_cut() -> None:
    chunks, owners = cut(DOCUMENTS, 3)
    assert chunks.tolist() == [[1, 2, 3], [4, 5, 6], [7, PAD, PAD], [8, 9, PAD], [1, 2, 3], [10, 11, 12]]
    assert owners.tolist() == [0, 0, 0, 1, 2, 2]


def test_the_bag_weighs_rare_tokens_more() -> None:
    _, bag = made()
    literal = torch.tensor([1, 1, 0]) * torch.log(torch.tensor([7 / 3, 7 / 2, 1.0])) + torch.tensor(
        [1.0, 1.0, 0.0]
    )
    vector = bag(torch.tensor([[1, 4, PAD]]))[0, [1, 4, 5]]
    assert torch.allclose(vector, literal / literal.norm())
    assert torch.equal(bag(torch.tensor([[1, 4, PAD]])), bag(torch.tensor([[4, 1, PAD]])))


def test_search_is_exact_and_leaves_out_the_own_document(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    vectors, owners = torch.randn(50, 6, generator=g), torch.arange(50) // 5
    index = ChunkIndex(torch.zeros(50, 3, dtype=torch.long), owners, vectors, "test")
    queries, without = torch.randn(9, 6, generator=g), torch.randint(-1, 10, (9,), generator=g)
    whole = index.search(queries, 4, without)
    for i, row in enumerate(whole):
        scores = [(float(queries[i] @ vectors[j]), j) for j in range(50) if owners[j] != without[i]]
        assert row.tolist() == [j for _, j in sorted(scores, reverse=True)[:4]]
    monkeypatch.setattr(retro_index, "_BLOCK", 100)
    assert torch.equal(index.search(queries, 4, without), whole)
    few = ChunkIndex(torch.zeros(2, 3, dtype=torch.long), torch.tensor([0, 1]), vectors[:2], "test")
    assert few.search(queries[:1], 3, torch.tensor([1])).tolist() == [[0, -1, -1]]


def test_neighbours_are_chunks_and_what_follows_them() -> None:
    index, bag = made()
    near = index.neighbours(torch.tensor([[1, 2, 3]]), bag, k=2, without=torch.tensor([0]))
    assert near[0, 0].tolist() == [1, 2, 3, 10, 11, 12]
    rows = torch.tensor([[0, 2, 3, -1]])
    assert index.tokens(rows, 5)[0].tolist() == [
        [1, 2, 3, 4, 5], [7, PAD, PAD, PAD, PAD], [8, 9, PAD, PAD, PAD], [PAD] * 5,
    ]  # fmt: skip


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    index, bag = made()
    index.save(tmp_path / "base")
    again = ChunkIndex.load(tmp_path / "base")
    query = torch.tensor([[10, 12, 7]])
    assert torch.equal(again.neighbours(query, bag), index.neighbours(query, bag))
    with pytest.raises(UserError, match="holds no database"):
        ChunkIndex.load(tmp_path)


def test_what_does_not_fit_is_refused() -> None:
    index, bag = made()
    with pytest.raises(UserError, match="at least one neighbour"):
        index.search(torch.zeros(1, 20), 0)
    with pytest.raises(UserError, match="do not fit a database of 20"):
        index.search(torch.zeros(1, 3), 1)
    with pytest.raises(UserError, match="rows 0 to 5"):
        index.tokens(torch.tensor([[6]]))
    with pytest.raises(UserError, match="made with token-bag, queries with other"):
        index.neighbours(torch.tensor([[1, 2, 3]]), TokenBag(bag.weights, "other"))
    with pytest.raises(UserError, match="at least 2 tokens"):
        cut(DOCUMENTS, 1)
    with pytest.raises(UserError, match="documents with tokens"):
        cut([[]], 3)
    with pytest.raises(UserError, match="vocabulary of 5"):
        TokenBag.of(torch.tensor([[7]]), 5)
