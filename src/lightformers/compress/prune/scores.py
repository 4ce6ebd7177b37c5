"""How much each piece of a model matters, as pure functions: more is more important."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def block_influence(similarity: float) -> float:
    """`1 - cos(input, output)` of a block, averaged over tokens (ShortGPT, Men et al., 2024, arXiv 2403.03853)."""
    return 1.0 - similarity


def output_distance(new: Tensor, old: Tensor, distribution: bool = False) -> float:
    """How far outputs moved, averaged over rows: (n, k), (n, k) -> 0 for equal ones.

    `1 - cosine` for vectors; the Kullback-Leibler divergence of new from old where rows are logits of a
    distribution (in nats).
    """
    new, old = new.float(), old.float()
    if distribution:
        p, q = old.log_softmax(-1), new.log_softmax(-1)
        return float((p.exp() * (p - q)).sum(-1).mean())
    return float((1.0 - torch.nn.functional.cosine_similarity(new, old, dim=-1)).mean())


def channel_importance(magnitude: Tensor, down: Tensor) -> Tensor:
    """Activation times weight: mean |a_c| (c,) and the down projection (out, c) -> `mean|a_c| * |down[:, c]|` (c,).

    The size of what channel c adds to the residual stream (Wanda's score, Sun et al., 2023, arXiv 2306.11695,
    summed over the outputs of a channel).
    """
    return magnitude.float() * down.float().norm(dim=0)


def channel_magnitude(down: Tensor, *inputs: Tensor) -> Tensor:
    """Weights alone: `|down[:, c]|` times the norms of the rows of up (and gate), each (c, in) -> (c,)."""
    score = down.float().norm(dim=0)
    for matrix in inputs:
        score = score * matrix.float().norm(dim=1)
    return score


def head_importance(gram: Tensor, output: Tensor, heads: int) -> Tensor:
    """Root mean square of what each head adds to the attention's output.

    gram: mean of a a^T over tokens, (heads * size, heads * size), a being what enters the output projection.
    output: that projection (out, heads * size). Returns (heads,): `sqrt(trace(W_h G_hh W_h^T))`.
    """
    size = output.shape[1] // heads
    blocks = gram.float().reshape(heads, size, heads, size).diagonal(dim1=0, dim2=2)  # (size, size, heads)
    weights = output.float().reshape(-1, heads, size)
    return torch.einsum("ohi,ijh,ohj->h", weights, blocks, weights).clamp(min=0).sqrt()


def head_magnitude(output: Tensor, heads: int) -> Tensor:
    """Weights alone: Frobenius norm of each head's share of the output projection (out, heads * size) -> (heads,)."""
    return output.float().reshape(output.shape[0], heads, -1).square().sum((0, 2)).sqrt()


def width_importance(magnitudes: Sequence[Tensor]) -> Tensor:
    """Mean size of each hidden dimension over the places where it is read: n x (d,) -> (d,).

    Each place is normalised to mean 1 first, so that none outvotes the others (the score of Minitron's embedding
    pruning, Muralidharan et al., 2024, arXiv 2407.14679, is the same mean over normalised layer inputs).
    """
    return torch.stack([m.float() / m.float().mean().clamp(min=1e-12) for m in magnitudes]).mean(0)


def in_groups(scores: Tensor, groups: int) -> Tensor:
    """Sum the scores of the query heads that share one key/value head: (heads,) -> (groups,)."""
    return scores.reshape(groups, -1).sum(1)


def noise(count: int, seed: int) -> Tensor:
    """Random scores (count,), the control that every score must beat."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))
