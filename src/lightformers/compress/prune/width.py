"""Prune the hidden size: the width of the residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.compress import calibration
from lightformers.compress.layers import input_of
from lightformers.compress.prune import scores
from lightformers.compress.prune.scopes import best, share
from lightformers.errors import ModelError, UserError
from lightformers.steps import Run, Stage

Score = Literal["activation", "random"]


@dataclass(frozen=True)
class PruneWidth:
    """Remove the hidden dimensions that are smallest where blocks read them.

    Embeddings, projections, norms and head all lose them; where a head's size is hidden size / heads (bert, gpt2, ...)
    heads go in proportion, those that contribute least. The vectors of an embedding model become shorter too. Costs
    much quality: to be followed by recovery.

    keep: share of the hidden size that stays, in (0, 1], rounded to whole heads.
    score: "activation" (mean |x| at the inputs of attention and feed-forward, after Minitron, Muralidharan et al.,
        2024, arXiv 2407.14679), "random" (a control).
    examples: how many calibration examples are looked at.
    """

    keep: float = 0.5
    score: Score = "activation"
    examples: int = 64
    stage: ClassVar[Stage] = Stage.WIDTH

    def __post_init__(self) -> None:
        share(self.keep, 1)
        if self.score not in get_args(Score):
            raise UserError(f"score {self.score!r} is not one of {', '.join(get_args(Score))}")

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises ModelError where the family's width cannot be cut, with the reason."""
        model, found = bundle.model, anatomy.of(bundle.model)
        attentions = {i: b.attention for i, b in enumerate(found.blocks) if b.attention}
        if not attentions:
            raise ModelError(
                f"this {found.family} model has no attention: its width cannot be cut in proportion"
            )
        first = next(iter(attentions.values()))
        width = share(self.keep, found.width, first.head_dim)
        if width == found.width:
            return bundle
        readers, outputs = sorted(set(input_of(found).values())), [a.o for a in attentions.values()]
        readers = [
            p for p in readers if anatomy.linear(model, p)[0].shape[1] == found.width and p not in outputs
        ]
        known = calibration.collect(
            bundle, task, inputs=readers, grams=outputs, examples=self.examples, run=run
        )
        if self.score == "random":
            kept = best(scores.noise(found.width, run.seed), width)
        else:
            kept = best(scores.width_importance([known.inputs[p].magnitude.cpu() for p in readers]), width)
        heads = {}
        for i, a in attentions.items():
            output = anatomy.linear(model, a.o)[0].detach()
            score = scores.head_importance(known.inputs[a.o].gram, output, a.heads)
            heads[i] = best(score.cpu(), max(1, width // a.head_dim))
        try:
            anatomy.surgery.keep_width(model, kept, heads=heads)
        except ModelError:
            # a family that keeps all heads, or that must drop the same ones everywhere: its own choice then
            anatomy.surgery.keep_width(model, kept)
        return bundle
