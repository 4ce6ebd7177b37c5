"""MiniLM's teacher assistant: the teacher's depth at the student's width (arXiv 2002.10957, section 3.4)."""

from __future__ import annotations

import copy
import dataclasses

from torch import nn

from lightformers import anatomy
from lightformers.anatomy.find import row_of
from lightformers.bundle import Bundle, Origin
from lightformers.errors import ModelError


def assistant(student: Bundle, teacher: Bundle) -> Bundle:
    """A new bundle of the student's width with as many blocks as the teacher has.

    What differs from the paper: it is not initialised randomly. Each of its blocks starts as the student's block whose
    source is nearest below it; everything else starts as the student's. Raises ModelError for models with more than
    one stack and for those that transformers does not build from their config.
    """
    own, theirs = anatomy.of(student.model), anatomy.of(teacher.model)
    if len(own.stacks) != 1 or len(theirs.stacks) != 1:
        raise ModelError(
            "a teacher assistant is known for models with one stack of blocks: set assistant=False"
        )
    depth = theirs.stacks[0].depth
    kept = list(student.origin.blocks.get(own.stacks[0].name) or _spread(len(own.blocks), depth))
    nearest = [max((j for j, k in enumerate(kept) if k <= i), default=0) for i in range(depth)]
    model = copy.deepcopy(student.model)
    blocks = anatomy.get(model, own.stacks[0].path)
    row = row_of(model)
    if row is None or not isinstance(blocks, nn.ModuleList):
        raise ModelError(f"the depth of a {type(model).__name__} cannot be raised: set assistant=False")
    for i in range(depth):
        block = copy.deepcopy(anatomy.get(student.model, own.blocks[nearest[i]].path))
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = i  # type: ignore[assignment]
        if i < len(blocks):
            blocks[i] = block
        else:
            blocks.append(block)
    config = model.config
    setattr(config, row.stacks[0].depth, depth)  # some families run only as many blocks as the config says
    if getattr(config, "layer_types", None):
        config.layer_types = [student.model.config.layer_types[j] for j in nearest]  # type: ignore[union-attr, index]
    return dataclasses.replace(
        student, model=model, origin=Origin({}, student.origin.vocabulary), history=[], deploy=None
    )


def _spread(blocks: int, depth: int) -> list[int]:
    return [i * depth // blocks for i in range(blocks)]
