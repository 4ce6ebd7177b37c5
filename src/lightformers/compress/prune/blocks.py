"""Drop whole blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.compress import calibration
from lightformers.compress.prune.leave_out import removal_order
from lightformers.compress.prune.scopes import best
from lightformers.compress.prune.scores import block_influence
from lightformers.errors import ModelError, UserError
from lightformers.steps import Run, Stage

Score = Literal["output", "influence"]


@dataclass(frozen=True)
class DropBlocks:
    """Keep some transformer blocks and remove the others.

    keep: how many blocks stay in each stack; the step chooses which. blocks: which ones stay, by their place in the
        stack as it now is; wins over `keep`.
    stack: "encoder" or "decoder"; None means every stack that the model has (one is enough for most models).
    score: "output" removes, one after the other, the block whose absence moves the model's output least (greedy;
        Gromov et al., 2024, arXiv 2403.17887, prune by depth too, by similarity); "influence" removes the blocks with
        the smallest 1 - cos(input, output), all at once (ShortGPT, Men et al., 2024, arXiv 2403.03853).
    examples: how many calibration examples are looked at. `blocks` needs neither examples nor task.
    """

    keep: int | None = None
    blocks: tuple[int, ...] | None = None
    stack: str | None = None
    score: Score = "output"
    examples: int = 32
    stage: ClassVar[Stage] = Stage.DEPTH

    def __post_init__(self) -> None:
        if self.keep is None and self.blocks is None:
            raise UserError("DropBlocks needs keep (how many blocks stay) or blocks (which ones)")
        if self.keep is not None and self.keep < 1:
            raise UserError(f"keep must be at least 1 block, got {self.keep}")
        if self.score not in get_args(Score):
            raise UserError(f"score {self.score!r} is not one of {', '.join(get_args(Score))}")

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises ModelError for more blocks than there are and for blocks that are shared; UserError without a task."""
        found = anatomy.of(bundle.model)
        names = [s.name for s in found.stacks]
        if self.stack is not None and self.stack not in names:
            raise ModelError(f"this model has no stack {self.stack!r}; it has {', '.join(names)}")
        chosen = [self.stack] if self.stack else names
        if self.blocks is not None and len(chosen) > 1:
            raise UserError(f"the model has the stacks {', '.join(names)}: say which one `blocks` is about")
        depths = {name: len(found.stack(name)) for name in names}
        for name in chosen:
            wanted = len(self.blocks) if self.blocks is not None else self.keep or 0
            if wanted > depths[name]:
                raise ModelError(f"the {name} has {depths[name]} blocks, {wanted} cannot be kept")
            if found.stacks[names.index(name)].shared:
                raise ModelError(
                    f"the {name} runs one shared block {found.stacks[names.index(name)].depth} times"
                )
        kept = {name: self._choose(bundle, found, name, task, run) for name in chosen}
        for name in chosen:
            if len(kept[name]) < depths[name]:
                anatomy.surgery.keep_blocks(bundle.model, kept[name], name)
        bundle.origin = replace(bundle.origin, blocks=_composed(bundle.origin.blocks, kept, depths))
        return bundle

    def _choose(self, bundle: Bundle, found: anatomy.Anatomy, stack: str, task: Any, run: Run) -> list[int]:
        blocks = found.stack(stack)
        if self.blocks is not None:
            if len(set(self.blocks)) < len(self.blocks) or not set(self.blocks) <= set(range(len(blocks))):
                raise ModelError(
                    f"blocks are numbered 0 to {len(blocks) - 1}, each once; got {list(self.blocks)}"
                )
            return sorted(self.blocks)
        assert self.keep is not None
        if self.keep == len(blocks):
            return list(range(len(blocks)))
        if self.score == "influence":
            paths = [b.path for b in blocks]
            similarity = calibration.collect(
                bundle, task, blocks=paths, examples=self.examples, run=run
            ).similarity
            import torch

            return best(torch.tensor([block_influence(similarity[p]) for p in paths]), self.keep)
        gone = removal_order(bundle, task, blocks, len(blocks) - self.keep, self.examples, run)
        return [i for i in range(len(blocks)) if i not in gone]


def _composed(
    old: Mapping[str, tuple[int, ...]], kept: Mapping[str, Sequence[int]], depths: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """Where the blocks that are left stood in the model that was loaded."""
    full = {name: tuple(old.get(name, range(depth))) for name, depth in depths.items()}
    return {
        name: tuple(source[i] for i in kept.get(name, range(len(source)))) for name, source in full.items()
    }
