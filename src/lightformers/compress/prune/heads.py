"""Prune attention heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.compress import calibration
from lightformers.compress.prune import scores
from lightformers.compress.prune.channels import rewrite
from lightformers.compress.prune.reconstruct import least_squares
from lightformers.compress.prune.scopes import share, within
from lightformers.errors import ModelError, UserError
from lightformers.steps import Run, Stage

Score = Literal["contribution", "magnitude", "random"]


@dataclass(frozen=True)
class PruneHeads:
    """Remove the attention heads that add least to the output of their attention; equally many in every block.

    Heads that share keys and values (grouped queries) stay or go together. Which families reload the result in plain
    transformers is told by `anatomy.of(model).native.heads`.

    keep: share of the heads that stay, in (0, 1]; at least one.
    score: "contribution" (root mean square of W_o applied to the head's output), "magnitude" (norm of the head's share
        of W_o), "random" (a control). After Michel et al., 2019, arXiv 1905.10650, with the size of the contribution
        in place of their gradient.
    reconstruct: refit the output projection on the heads that stay, by least squares on calibration data.
    examples: how many calibration examples are looked at.
    """

    keep: float = 0.5
    score: Score = "contribution"
    reconstruct: bool = True
    examples: int = 64
    stage: ClassVar[Stage] = Stage.WIDTH

    def __post_init__(self) -> None:
        share(self.keep, 1)
        if self.score not in get_args(Score):
            raise UserError(f"score {self.score!r} is not one of {', '.join(get_args(Score))}")

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises ModelError where there is no attention to prune."""
        model, found = bundle.model, anatomy.of(bundle.model)
        places = [
            (i, own, attention)
            for i, block in enumerate(found.blocks)
            for own, attention in ((True, block.attention), (False, block.cross_attention))
            if attention
        ]
        if not places:
            raise ModelError(f"this {found.family} model has no attention heads to prune")
        inputs: dict[str, calibration.Inputs] = {}
        if self.reconstruct or self.score == "contribution":
            outputs = [a.o for _, _, a in places]
            inputs = calibration.collect(bundle, task, grams=outputs, examples=self.examples, run=run).inputs
        ranked = [self._rank(model, a, inputs, run.seed + n) for n, (_, _, a) in enumerate(places)]
        counts = [share(self.keep, a.kv_heads) for _, _, a in places]
        if all(n == a.kv_heads for n, (_, _, a) in zip(counts, places)):
            return bundle
        try:
            self._cut(model, places, within(ranked, counts), inputs)
        except ModelError:
            # blocks that share one position bias must keep the same heads: those best in all of them together
            stacks = [found.blocks[i].stack for i, _, _ in places]
            joint = [
                sum(
                    (r for r, s, (_, o, _) in zip(ranked, stacks, places) if s == stack and o == own),
                    start=0 * rank,
                )
                for rank, stack, (_, own, _) in zip(ranked, stacks, places)
            ]
            self._cut(model, places, within(joint, counts), inputs)
        return bundle

    def _rank(
        self, model: nn.Module, attention: anatomy.Attention, inputs: dict[str, calibration.Inputs], seed: int
    ) -> Tensor:
        weight = anatomy.linear(model, attention.o)[0].detach()
        if self.score == "contribution":
            score = scores.head_importance(inputs[attention.o].gram, weight, attention.heads)
        elif self.score == "magnitude":
            score = scores.head_magnitude(weight, attention.heads)
        else:
            score = scores.noise(attention.heads, seed)
        return scores.in_groups(score, attention.kv_heads).cpu()

    def _cut(
        self,
        model: nn.Module,
        places: list[tuple[int, bool, anatomy.Attention]],
        groups: list[list[int]],
        inputs: dict[str, calibration.Inputs],
    ) -> None:
        kept: tuple[dict[int, list[int]], dict[int, list[int]]] = ({}, {})
        repaired = {}
        for (i, own, a), group in zip(places, groups):
            shared = a.heads // a.kv_heads
            heads = [g * shared + j for g in group for j in range(shared)]
            (kept[0] if own else kept[1])[i] = heads
            if self.reconstruct and len(heads) < a.heads:
                weight, bias = anatomy.linear(model, a.o)
                columns = [h * a.head_dim + j for h in heads for j in range(a.head_dim)]
                mean = inputs[a.o].mean if bias is not None else None
                repaired[a.o] = least_squares(weight.detach(), columns, inputs[a.o].gram, mean)
        anatomy.surgery.keep_heads(model, kept[0], kept[1] or None)
        for path, (weight, bias_change) in repaired.items():
            rewrite(model, path, weight, bias_change)
