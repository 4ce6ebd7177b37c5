"""Prune channels of the feed-forward layers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.compress import calibration
from lightformers.compress.prune import scores
from lightformers.compress.prune.reconstruct import least_squares, removed_mean
from lightformers.compress.prune.scopes import across, share, within
from lightformers.errors import ModelError, UserError
from lightformers.steps import Run, Stage

Score = Literal["activation", "magnitude", "random"]


@dataclass(frozen=True)
class PruneChannels:
    """Remove the inner channels of the feed-forward layers that add least to the residual stream.

    keep: share of the channels that stay, in (0, 1]. round_to: widths are multiples of this.
    uniform: the same width in every block, which reloads in plain transformers; False compares the channels of all
        blocks with each other (widths then differ, and only lightformers loads the result).
    score: "activation" (mean |activation| times the norm of the down column, after Wanda, arXiv 2306.11695),
        "magnitude" (weights alone), "random" (a control).
    compensate: add the mean of what is removed to the down projection's bias, where it has one.
    reconstruct: refit the down projection on the channels that stay, by least squares on calibration data (includes
        the compensation).
    examples: how many calibration examples are looked at.

    Without a task only score "magnitude" or "random" with neither compensation nor reconstruction works.
    """

    keep: float = 0.5
    round_to: int = 16
    uniform: bool = True
    score: Score = "activation"
    compensate: bool = True
    reconstruct: bool = True
    examples: int = 64
    stage: ClassVar[Stage] = Stage.WIDTH

    def __post_init__(self) -> None:
        share(self.keep, 1, self.round_to)
        if self.score not in get_args(Score):
            raise UserError(f"score {self.score!r} is not one of {', '.join(get_args(Score))}")

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises ModelError where there are no feed-forward layers or widths differ under `uniform`."""
        model, found = bundle.model, anatomy.of(bundle.model)
        ffns = {i: b.feed_forward for i, b in enumerate(found.blocks) if b.feed_forward}
        if not ffns:
            raise ModelError(f"this {found.family} model has no feed-forward layers to prune")
        widths = [f.width for f in ffns.values()]
        if self.uniform and len(set(widths)) > 1:
            raise ModelError(
                f"the feed-forward widths differ already ({min(widths)} to {max(widths)}); set uniform=False"
            )
        downs = [f.down for f in ffns.values()]
        looks = self.score == "activation" or self.compensate or self.reconstruct
        inputs: dict[str, calibration.Inputs] = {}
        if looks:
            # one pass serves scoring and repair, where the moments of all layers fit into memory
            kind = (
                "grams"
                if self.reconstruct and len(calibration.moment_groups(bundle, downs)) == 1
                else "inputs"
            )
            inputs = calibration.collect(
                bundle, task, **{kind: downs}, examples=self.examples, run=run
            ).inputs
        ranked = [self._score(model, f, inputs, run.seed + i) for i, f in ffns.items()]
        if self.uniform:
            multiple = math.lcm(self.round_to, found.native.channels_multiple)
            kept = within(ranked, [share(self.keep, w, multiple) for w in widths])
        else:
            kept = across(ranked, share(self.keep, sum(widths)), self.round_to)
        left = dict(zip(downs, kept))
        known: Iterable[tuple[str, calibration.Inputs]] = inputs.items()
        if self.reconstruct:
            known = calibration.second_moments(bundle, task, downs, self.examples, run)
        repaired = {path: self._repair(model, path, left[path], seen) for path, seen in known if path in left}
        anatomy.surgery.keep_channels(model, dict(zip(ffns, kept)))
        for path, (weight, bias) in repaired.items():
            rewrite(model, path, weight, bias)
        return bundle

    def _score(
        self, model: nn.Module, ffn: anatomy.FeedForward, inputs: dict[str, calibration.Inputs], seed: int
    ) -> Tensor:
        down = anatomy.linear(model, ffn.down)[0].detach()
        if self.score == "activation":
            return scores.channel_importance(inputs[ffn.down].magnitude, down).cpu()
        if self.score == "random":
            return scores.noise(ffn.width, seed)
        into = [anatomy.linear(model, p)[0].detach() for p in (ffn.up, ffn.gate) if p]
        into = [half for m in into for half in (m.chunk(2) if ffn.packed else (m,))]
        return scores.channel_magnitude(down, *into).cpu()

    def _repair(
        self, model: nn.Module, path: str, keep: list[int], inputs: calibration.Inputs
    ) -> tuple[Tensor | None, Tensor | None]:
        """The new weight and what to add to the bias; None leaves as it is."""
        weight, bias = anatomy.linear(model, path)
        if len(keep) == weight.shape[1]:
            return None, None
        mean = inputs.mean if bias is not None else None
        if self.reconstruct:
            return least_squares(weight.detach(), keep, inputs.gram, mean)
        if self.compensate and mean is not None:
            return None, removed_mean(weight.detach(), keep, mean)
        return None, None


def rewrite(model: nn.Module, path: str, weight: Tensor | None, bias_change: Tensor | None) -> None:
    """Put a refitted weight (out, in) into the linear layer at `path`, and add to its bias, in place."""
    old, bias = anatomy.linear(model, path)
    with torch.no_grad():
        if weight is not None:
            old.copy_(weight)
        if bias_change is not None and bias is not None:
            bias.add_(bias_change.to(bias))
