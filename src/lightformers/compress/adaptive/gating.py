"""Losses of adaptive computation modules (Wójcik et al., 2023, arXiv 2312.10193): pure functions, all in float32.

Choices are given as weights (..., choices): one-hot, perhaps with a straight-through gradient. Where a module must use
`least` learners, its choices begin there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def chain_loss(sums: Tensor, target: Tensor) -> Tensor:
    """Mean over choices of the mean squared error. sums: (choices, tokens, out); target: (tokens, out)."""
    return (sums.float() - target.float()).square().mean()


def errors(sums: Tensor, target: Tensor) -> Tensor:
    """Euclidean distance per choice and token: (choices, tokens, out), (tokens, out) -> (choices, tokens)."""
    return (sums.float() - target.float()).norm(dim=-1)


def enough(error: Tensor, threshold: float = 1.2, floor: float = 1e-12) -> Tensor:
    """The first choice after which the next learner brings too little: (choices, tokens) -> (tokens,) places.

    That is the smallest k with error_k / error_{k+1} < threshold, and the last choice where there is none.
    """
    little = error[:-1] / error[1:].clamp(min=floor) < threshold
    last = torch.ones_like(error[:1], dtype=torch.bool)
    return torch.cat([little, last]).int().argmax(0)


def straight_through(
    logits: Tensor, temperature: float = 0.8, generator: torch.Generator | None = None
) -> Tensor:
    """A choice drawn by Gumbel noise, one-hot forward, soft backward. (..., choices) -> the same shape, float32.

    generator: of the device of the logits; without one torch's global generator draws.
    """
    uniform = torch.rand(logits.shape, generator=generator, device=logits.device).clamp(1e-20, 1 - 1e-7)
    soft = ((logits.float() - (-uniform.log()).log()) / temperature).softmax(-1)
    return one_hot(soft) + soft - soft.detach()


def one_hot(scores: Tensor) -> Tensor:
    """1 for the highest score, 0 for the others; float32, without gradient."""
    return torch.zeros_like(scores, dtype=torch.float32).scatter_(-1, scores.argmax(-1, keepdim=True), 1.0)


def token_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the valid tokens of each sample: (B, S, ...), (B, S) -> (B, ...); a sample without any gives 0."""
    shaped = mask.to(values.dtype).reshape(*mask.shape, *[1] * (values.dim() - 2))
    return (values * shaped).sum(1) / shaped.sum(1).clamp(min=1)


def learners(weights: Tensor, least: int) -> Tensor:
    """The number of learners that weights (..., choices) stand for: (...)."""
    numbers = torch.arange(least, least + weights.shape[-1], device=weights.device, dtype=weights.dtype)
    return (weights * numbers).sum(-1)  # no product of matrices, which autocast would round


def spent(counts: Sequence[Tensor], masks: Sequence[Tensor], cost: Sequence[float], most: Sequence[int]) -> Tensor:  # fmt: skip
    """Share of the cost of all learners that runs, over all valid tokens.

    counts: per module, (B, S) numbers of learners; masks: (B, S); cost: of one of its learners on a token; most: how
    many learners it has.
    """
    used = sum(c * (n * m).sum() / m.sum().clamp(min=1) for n, m, c in zip(counts, masks, cost))
    return torch.as_tensor(used) / sum(c * n for c, n in zip(cost, most))


def entropy_loss(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """Minus the entropy of the choices of a sample's tokens, as a share of the largest; mean over samples and modules.

    weights: per module, (B, S, choices); masks: (B, S). Between -1 (every choice as often) and 0 (always the same).
    """
    terms = []
    for one, mask in zip(weights, masks):
        if one.shape[-1] > 1:
            share = token_mean(one, mask)
            terms.append((share * (share + 1e-20).log()).sum(-1).mean() / math.log(one.shape[-1]))
    return torch.stack(terms).mean() if terms else torch.zeros(())


def diversity_loss(counts: Sequence[Tensor], masks: Sequence[Tensor], most: Sequence[int]) -> Tensor:
    """-2 times the mean difference between samples of the share of learners they use: -1 if half use all, half none."""
    shares = [token_mean(n, m) / of for n, m, of in zip(counts, masks, most)]
    mean = torch.stack(shares).mean(0)
    return -2 * (mean[:, None] - mean[None]).abs().mean()
