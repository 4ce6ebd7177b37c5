"""A cascade: the model as it was cut answers, and the original is asked where that one is not sure."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.errors import ModelError, UserError
from lightformers.steps import Run, Stage


@dataclass(frozen=True)
class Cascade:
    """Put the bundle's classifier in front of the recipe's input (CascadeBERT, Li et al., 2021, arXiv 2012.14682).

    sure: the least probability of the likeliest class with which the small model's answer stands; the other rows of
        a batch go to the original. 0 never asks it, 1 about always.

    The result is larger than the original by the small model, and its time depends on the input: it pays where many
    examples are easy and come in batches. What differs from the paper: two models, not three, and confidence is what
    the small model says after its training; `slim` finds the `sure` that keeps the floor on the search split.
    """

    sure: float = 0.9
    stage: ClassVar[Stage] = Stage.CASCADE

    def __post_init__(self) -> None:
        if not 0 <= self.sure <= 1:
            raise UserError(f"sure is a probability in [0, 1], got {self.sure}")

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises UserError without an original, ModelError for what is no classifier and for another tokenizer."""
        from lightformers.models.cascade import join

        if run.teacher is None:
            raise UserError("a cascade asks the original: apply it in a recipe, or give Run(teacher=...)")
        second, kept = copy.deepcopy(run.teacher.model), bundle.origin.vocabulary
        if kept and run.teacher.origin.vocabulary is None:
            anatomy.surgery.keep_vocabulary(second, list(kept))
        elif bundle.processor is not run.teacher.processor:
            raise ModelError(
                "both models of a cascade read the same tokens: this one has a tokenizer of its own"
            )
        bundle.model = join(bundle.model, second, self.sure, bundle.task or "no task")
        return bundle

    def note(self, bundle: Bundle) -> str:
        return f"answers with a probability of {self.sure:.3g} or more stand; the original is asked for the others"
