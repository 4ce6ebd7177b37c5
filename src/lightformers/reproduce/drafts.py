"""How well a small decoder speaks for a large one: agreement, divergence, and drafts that the large one accepts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightformers.bundle import Bundle
from lightformers.compress.calibration import batches
from lightformers.runners.named import named


def _logits(bundle: Bundle, inputs: dict[str, Tensor]) -> Tensor:
    return named(bundle.model(**inputs, use_cache=False))["logits"]


@torch.no_grad()
def agreement(small: Bundle, large: Bundle, rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Share of next tokens on which both agree, and KL(large || small) in nats, over texts `rows`."""
    same = divergence = count = 0.0
    for batch in batches(large, rows):
        mask = batch.inputs["attention_mask"].bool()
        mine, theirs = (_logits(b, batch.inputs)[mask].float() for b in (small, large))
        same += float((mine.argmax(-1) == theirs.argmax(-1)).sum())
        p, q = theirs.log_softmax(-1), mine.log_softmax(-1)
        divergence += float((p.exp() * (p - q)).sum())
        count += float(mask.sum())
    return same / count, divergence / count


@torch.no_grad()
def accepted(
    small: Bundle, large: Bundle, rows: list[dict[str, Any]], prefix: int = 64, draft: int = 4
) -> float:
    """Mean number of greedy tokens of a draft of `draft` that the large model would have said as well.

    rows: texts of at least `prefix` tokens; drafts go on from there.
    """
    total = count = 0
    for batch in batches(large, rows):
        ids = batch.inputs["input_ids"][:, :prefix]
        for _ in range(draft):
            following = _logits(small, {"input_ids": ids})[:, -1].argmax(-1)
            ids = torch.cat([ids, following[:, None]], 1)
        said = _logits(large, {"input_ids": ids})[:, prefix - 1 : -1].argmax(-1)
        total += int((said == ids[:, prefix:]).long().cumprod(1).sum())
        count += len(ids)
    return total / count
