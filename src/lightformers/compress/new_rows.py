"""Embeddings for the tokens of another tokenizer, without training: what a hypernetwork is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.anatomy.find import host
from lightformers.compress.spelling import Speller
from lightformers.errors import UserError


def surfaces(new: Speller, old: Speller, pieces: int) -> tuple[Tensor, int]:
    """How the old tokenizer splits each new token: (tokens, pieces) ids, -1 behind the last; and how many were cut short.

    Special tokens have a row of -1 alone.
    """
    table = torch.full((1 + max(new.names), pieces), -1, dtype=torch.long)
    cut = 0
    for token in new.names:
        spelled = new.spell(token)
        if spelled is None:
            continue
        found = old.split(spelled)
        cut += len(found) > pieces
        table[token, : min(len(found), pieces)] = torch.tensor(found[:pieces])
    return table, cut


def overlap(new: Speller, old: Speller) -> dict[int, int]:
    """New token -> the old token that is spelled alike (special tokens are not in it).

    Between tokenizers of one kind the very same piece goes first: "," and "##," are spelled alike.
    """
    alike = (new.kind, new.prefix) == (old.kind, old.prefix)
    same = {name: i for i, name in old.names.items() if i not in old.special} if alike else {}
    known: dict[bytes, int] = {}
    for token in sorted(old.names):
        if (spelled := old.spell(token)) is not None:
            known.setdefault(spelled, token)
    found: dict[int, int] = {}
    for token, name in new.names.items():
        spelled = new.spell(token)
        was = None if spelled is None else same.get(name, known.get(spelled))
        if was is not None:
            found[token] = was
    return found


def at_random(source: Tensor, count: int, seed: int = 0) -> Tensor:
    """Rows drawn from a normal distribution with the mean and deviation of each column: (count, width)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, source.shape[1], generator=generator).to(source)
    return source.mean(0) + drawn * source.std(0)


def mean_of_pieces(source: Tensor, surface: Tensor) -> Tensor:
    """The mean of the pieces' rows (FVT, Gee et al., 2022): surface (n, pieces), -1 behind the last -> (n, width)."""
    present = (surface >= 0).to(source)[..., None]
    return (source[surface.clamp(min=0)] * present).sum(1) / present.sum(1).clamp(min=1)


def sparsemax(scores: Tensor) -> Tensor:
    """The point of the simplex nearest to each row (Martins and Astudillo, 2016, arXiv 1602.02068)."""
    ordered = scores.sort(-1, descending=True).values
    total = ordered.cumsum(-1) - 1
    places = torch.arange(1, scores.shape[-1] + 1, device=scores.device)
    count = (ordered * places > total).sum(-1, keepdim=True)
    return (scores - total.gather(-1, count - 1) / count).clamp(min=0)


def by_neighbours(source: Tensor, anchors: dict[int, int], vectors: Tensor, wanted: Sequence[int]) -> Tensor:
    """Mixtures of the rows of shared tokens, by likeness in another space (FOCUS, Dobler and de Melo, 2023, arXiv 2305.14481).

    anchors: new token -> old token; vectors: (new tokens, k) of that space; wanted: new tokens -> (wanted, width).
    """
    if not anchors:
        raise UserError("the two tokenizers share no token: rows cannot be mixed from those of shared ones")
    unit = torch.nn.functional.normalize(vectors.float(), dim=-1)
    shared = torch.tensor(list(anchors))
    rows = source[torch.tensor(list(anchors.values()))].float()
    likeness = unit[torch.tensor(list(wanted))] @ unit[shared].T
    return (sparsemax(likeness) @ rows).to(source.dtype)


def cooccurrence(texts: Iterable[Sequence[int]], count: int, width: int = 64, window: int = 4) -> Tensor:
    """Vectors of tokens from the company they keep: singular vectors of the positive pointwise mutual information.

    texts: ids -> (count, width). Stands in for the fastText vectors of FOCUS, which would need that library.
    """
    pairs: dict[int, float] = {}
    for ids in texts:
        for at, token in enumerate(ids):
            for other in ids[max(0, at - window) : at]:
                for key in (token * count + other, other * count + token):
                    pairs[key] = pairs.get(key, 0.0) + 1.0
    if not pairs:
        raise UserError("there is no text to learn the company of tokens from")
    keys = torch.tensor(list(pairs))
    values = torch.tensor(list(pairs.values()))
    rows, columns = keys // count, keys % count
    sums = torch.zeros(count).index_add_(0, rows, values)
    information = (values * values.sum() / (sums[rows] * sums[columns])).log().clamp(min=0)
    matrix = torch.sparse_coo_tensor(
        torch.stack([rows, columns]), information, (count, count), check_invariants=True
    ).coalesce()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        u, s, _ = torch.svd_lowrank(matrix, min(width, count - 1), niter=4)
    return u * s.sqrt()


def tables(model: nn.Module) -> Tensor:
    """The word embedding, and beside it the output layer where that is untied: (vocabulary, width or twice that)."""
    found = anatomy.of(model)
    assert found.embeddings is not None
    words = anatomy.get(model, found.embeddings).weight.detach()  # type: ignore[operator]
    head = output(model)
    return words.clone() if head is None else torch.cat([words, head.detach()], 1)


def output(model: nn.Module) -> Tensor | None:
    """The weight (vocabulary, width) of an output layer of its own; None where it is tied or has no vocabulary."""
    found = anatomy.of(model)
    owner: Any = host(model)[1]
    head = owner.get_output_embeddings() if hasattr(owner, "get_output_embeddings") else None
    if head is None or found.tied:
        return None
    weight: Tensor = head.weight
    return weight
