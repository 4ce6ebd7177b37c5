"""Losses of distillation: pure functions of tensors.

Everything is computed in fp32 whatever comes in. Targets (the teacher's side) get no gradient: detach them or
compute them without. KL is always KL(teacher || student): the student's logarithm, the teacher's weights.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_MASKED = -1e30  # finite: a row that is masked whole stays free of NaN, also in its gradient


def allowed(mask: Tensor, causal: bool = False) -> Tensor:
    """(B, S) attention mask -> (B, 1, S, S) bool: which keys (last) each query (before it) may see.

    Rows and columns of padding are False.
    """
    valid = mask.bool()
    pairs = valid[:, None, :, None] & valid[:, None, None, :]
    if causal:
        pairs = pairs & torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool, device=mask.device).tril()
    return pairs


def relation_log_probs(a: Tensor, b: Tensor, pairs: Tensor) -> Tensor:
    """log softmax(A B' / sqrt(d)) over the allowed keys.

    a, b: (B, H, S, d); pairs: (B, 1, S, S) bool. Returns (B, H, S, S) fp32, -1e30 or less where not allowed.
    """
    scores: Tensor = a.float() @ b.float().transpose(-1, -2) * a.shape[-1] ** -0.5
    return scores.masked_fill(~pairs, _MASKED).log_softmax(-1)


def relation_kl(student: Tensor, teacher: Tensor, mask: Tensor, pairs: Tensor) -> Tensor:
    """Mean over the batch of 1/(A n) sum over heads and valid queries of KL(teacher row || student row).

    student, teacher: log probabilities (B, A, S, S) of equal A; mask: (B, S); n: valid tokens of a sequence.
    MiniLM's L_AT and L_VR (Wang et al., 2020, arXiv 2002.10957, eq. 3 to 5).
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"relations of shape {tuple(student.shape)} and {tuple(teacher.shape)} cannot be compared"
        )
    divergence = torch.where(pairs, teacher.exp() * (teacher - student), 0.0).sum(-1)  # (B, A, S)
    rows = divergence.mean(1) * mask
    return (rows.sum(-1) / mask.sum(-1).clamp(min=1)).mean()


def attention_kl(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], mask: Tensor, causal: bool = False
) -> Tensor:
    """MiniLM v1's attention transfer. student, teacher: (Q, K), each (B, A, S, d) with equal A."""
    pairs = allowed(mask, causal)
    return relation_kl(relation_log_probs(*student, pairs), relation_log_probs(*teacher, pairs), mask, pairs)


def self_relation_kl(student: Tensor, teacher: Tensor, mask: Tensor, causal: bool = False) -> Tensor:
    """KL between softmax(X X'/sqrt(d)) of both: v1's value relation, and each of v2's Q, K and V relations.

    student, teacher: (B, A, S, d) with equal A; d may differ.
    """
    return attention_kl((student, student), (teacher, teacher), mask, causal)


def relation_heads(x: Tensor, heads: int) -> Tensor:
    """(B, A, S, d) -> (B, heads, S, A*d/heads): the concatenated heads cut anew (MiniLM v2, arXiv 2012.15828)."""
    batch, old, length, size = x.shape
    if (old * size) % heads:
        raise ValueError(f"a width of {old * size} cannot be cut into {heads} relation heads")
    joined = x.transpose(1, 2).reshape(batch, length, old * size)
    return joined.view(batch, length, heads, -1).transpose(1, 2)


def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference over valid tokens and channels. (B, S, d), (B, S, d), (B, S) or None."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"hidden states of shape {tuple(student.shape)} and {tuple(teacher.shape)} need a map"
        )
    squared = (student.float() - teacher.float()).pow(2).mean(-1)
    return squared.mean() if mask is None else (squared * mask).sum() / mask.sum().clamp(min=1)


def normalized_hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """`hidden_mse` over the mean square of the teacher's states: comparable between blocks and models."""
    return hidden_mse(student, teacher, mask) / hidden_mse(teacher, torch.zeros_like(teacher), mask).clamp(
        min=1e-12
    )


def logits_kl(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, weight: Tensor | None = None
) -> Tensor:
    """temperature^2 * KL(teacher || student) of softmax(logits/temperature) (Hinton et al., 2015, arXiv 1503.02531).

    student, teacher: (..., C); weight: (...) of the rows (a mask of valid tokens), or None for all. Mean of rows.
    """
    rows = F.kl_div(
        (student.float() / temperature).log_softmax(-1), (teacher.float() / temperature).log_softmax(-1),
        reduction="none", log_target=True,
    ).sum(-1)  # fmt: skip
    return temperature**2 * _weighted(rows, weight)


def soft_cross_entropy(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, weight: Tensor | None = None
) -> Tensor:
    """Cross-entropy to the teacher's softened distribution: `logits_kl` plus the teacher's entropy, unscaled."""
    target = (teacher.float() / temperature).softmax(-1)
    return _weighted(-(target * (student.float() / temperature).log_softmax(-1)).sum(-1), weight)


def embedding_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cosine over (B, d) rows."""
    return (1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)).mean()


def embedding_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance of (B, d) rows; of unit vectors it is twice `embedding_cosine`."""
    return (student.float() - teacher.float()).pow(2).sum(-1).mean()


def similarity_kl(
    student: Tensor, teacher: Tensor, bank: Tensor | None = None, temperature: float = 0.05
) -> Tensor:
    """KL between the teacher's and the student's distributions of similarities to other examples.

    student, teacher: (B, d), unit length. Without `bank`, the others are the rest of the batch, each model among
    its own vectors (widths may differ); 0 for fewer than three rows. With `bank` (N, d), the teacher's vectors of
    other examples, both are compared with those: near and far neighbours, however small the batch.
    """
    s, t = student.float(), teacher.float()
    if bank is None:
        if len(s) < 3:
            return s.sum() * 0.0
        own = torch.eye(len(s), dtype=torch.bool, device=s.device)
        a = (s @ s.T / temperature).masked_fill(own, _MASKED).log_softmax(-1)
        b = (t @ t.T / temperature).masked_fill(own, _MASKED).log_softmax(-1)
        return torch.where(own, 0.0, b.exp() * (b - a)).sum(-1).mean()
    keys = bank.float().T / temperature
    return F.kl_div(
        (s @ keys).log_softmax(-1), (t @ keys).log_softmax(-1), reduction="batchmean", log_target=True
    )


def _weighted(rows: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return rows.mean()
    weight = weight.to(rows.dtype)
    return (rows * weight).sum() / weight.sum().clamp(min=1)
