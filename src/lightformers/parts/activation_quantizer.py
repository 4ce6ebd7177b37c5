"""Activations rounded to few bits on their way into or out of a layer, with gradients that pass straight through.

The rounded numbers stay floats: this gives the numbers of integer or small-float hardware, not its speed.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightformers.parts.blocks import fake_quantize, peaks, steps_of
from lightformers.parts.number_formats import number_format

Group = Literal["tensor", "token", "block"]


class ActivationQuantizer(nn.Module):
    """x (..., features) -> x rounded to a format, same shape and dtype.

    form: name of a number format.
    group: what shares a step that is found anew in every forward: "tensor" (then a result depends on its batch),
        "token", or "block": `block` neighbouring features of a token, the last block ragged.
    steps: 0, or how many fixed steps there are: 1, or one per feature. They are in the buffer `step`, found by
        calibration; `group` then has no meaning.
    power_of_two: steps found anew are rounded up to powers of two. clip: larger magnitudes are cut first, None for none.
    """

    def __init__(
        self,
        form: str = "int8",
        group: Group = "tensor",
        block: int = 64,
        steps: int = 0,
        power_of_two: bool = False,
        clip: float | None = None,
    ) -> None:
        super().__init__()
        if group not in get_args(Group):
            raise ValueError(f"group {group!r} is not one of {', '.join(get_args(Group))}")
        if block < 1 or steps < 0 or (clip is not None and not clip > 0):
            raise ValueError("block must be at least 1, steps not negative, clip positive")
        self.form, self.group, self.block = number_format(form), group, block
        self.power_of_two, self.clip = power_of_two, clip
        self.step: Tensor | None
        self.register_buffer("step", torch.ones(steps) if steps else None)

    @classmethod
    def fixed(cls, form: str, step: Tensor) -> ActivationQuantizer:
        """With steps that calibration found: a tensor of one, or one per feature."""
        made = cls(form, steps=step.numel())
        made.step = step.detach().reshape(-1).float().clone()
        return made

    @property
    def args(self) -> dict[str, Any]:
        """What a manifest needs to rebuild this part."""
        return {
            "form": self.form.name,
            "group": self.group,
            "block": self.block,
            "steps": 0 if self.step is None else self.step.numel(),
            "power_of_two": self.power_of_two,
            "clip": self.clip,
        }

    def forward(self, x: Tensor) -> Tensor:
        if self.clip is not None:
            x = x.clamp(-self.clip, self.clip)
        if self.step is not None:
            return fake_quantize(x, self.step, self.form)
        if not x.numel():
            return x
        if self.group == "tensor":
            step = steps_of(x.detach().abs().max(), self.form, self.power_of_two)
            return fake_quantize(x, step, self.form)
        flat = x.reshape(-1, x.shape[-1])
        size = x.shape[-1] if self.group == "token" else self.block
        step = steps_of(peaks(flat, (1, size)), self.form, self.power_of_two)
        step = step.repeat_interleave(size, 1)[:, : x.shape[-1]]
        return fake_quantize(flat, step, self.form).reshape(x.shape)

    def _apply(self, fn: Any, recurse: bool = True) -> ActivationQuantizer:
        # .half() and .bfloat16() must not round the steps: they move, but stay float32
        step = self.step
        super()._apply(fn, recurse)
        if step is not None and self.step is not None:
            self.step = step.to(self.step.device)
        return self

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.args.items())


def build(args: dict[str, Any] | None) -> ActivationQuantizer | None:
    """The part that these `args` describe, None for None."""
    return None if args is None else ActivationQuantizer(**args)
