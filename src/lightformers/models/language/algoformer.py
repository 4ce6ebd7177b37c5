"""AlgoFormer (Gao et al., 2024, arXiv 2402.13572): a transformer that prepares, one that is looped, one that concludes.

H = pre(X); Z_0 = 0; Z_{t+1} = loop(Z_t + H); the answer is readout(post(Z_T)). With no layers in `pre` and `post` it is the
looped transformer (Yang et al., 2023, arXiv 2311.12424), with none in `loop` a plain one: the paper's baselines.

No code of the paper was found. From that of the looped transformer: prompts, z_0 = 0, injection of the input, iterations
before the window without gradient. Its position table is added again in every iteration, here once (`positions`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.models.language.layers import build


@dataclass(frozen=True)
class AlgoFormerConfig:
    """inputs: numbers per position, or with `words` the rows of a table of words. outputs: numbers per position.

    pre, loop, post: layers of each. iterations: of the loop. window: the last iterations that the loss reads and gradients
    pass through. inject: H is added before every iteration, else only before the first. positions: where learned ones
    are added: "once" to the input, or "each" iteration again (the looped transformer's code). length: most positions.
    hidden: of the feed-forwards, by default 4 * width. Raises UserError where this does not fit together.
    """

    inputs: int = 20
    outputs: int = 1
    width: int = 256
    heads: int = 8
    pre: int = 1
    loop: int = 1
    post: int = 1
    iterations: int = 20
    window: int = 15
    length: int = 82
    inject: bool = True
    words: bool = False
    causal: bool = True
    positions: Literal["once", "each"] = "once"
    hidden: int | None = None

    def __post_init__(self) -> None:
        if (
            min(self.inputs, self.outputs, self.width, self.length) < 1
            or min(self.pre, self.loop, self.post) < 0
        ):
            raise UserError("inputs, outputs, width and length must be at least 1, layers at least 0")
        if not self.pre + self.loop + self.post:
            raise UserError("there are no layers: give pre, loop or post")
        if not 1 <= self.window <= self.iterations:
            raise UserError(f"the window is 1 to all {self.iterations} iterations, not {self.window}")
        if not self.inject and self.loop and self.window < self.iterations:
            raise UserError(
                "without injection the input reaches the window only through the iterations before it, which have no "
                f"gradient: take a window of all {self.iterations} iterations, or inject=True"
            )
        if self.positions not in ("once", "each"):
            raise UserError(f"positions are added 'once' or in 'each' iteration, not {self.positions!r}")


class AlgoFormer(nn.Module, PyTorchModelHubMixin):
    """(batch, n, inputs) numbers, or (batch, n) words, -> {"prediction": (batch, n, outputs)} of the last iteration.

    config: an `AlgoFormerConfig` or its fields. mask: (batch, n), 0 at padding, runs of one number are documents. Blocks
    are GPT-2's: norm first, GELU, biases, no dropout; the loop's are stored once.
    """

    def __init__(self, config: AlgoFormerConfig) -> None:
        super().__init__()
        if isinstance(config, Mapping):
            config = AlgoFormerConfig(**config)
        self.config = config
        width, c = config.width, config
        self.read: nn.Module = nn.Embedding(c.inputs, width) if c.words else nn.Linear(c.inputs, width)
        self.places = nn.Embedding(c.length, width)
        attention = {"kind": "attention", "heads": c.heads, "rotary": False, "bias": True, "causal": c.causal}
        forward = {"kind": "mlp", "hidden": c.hidden or 4 * width, "activation": "gelu_tanh", "bias": True}
        row = {"mixer": attention, "ffn": forward}

        def blocks(count: int) -> nn.ModuleList:
            return build([row] * count, width, "layer", 1e-5, 0.0) if count else nn.ModuleList()

        self.pre, self.loop, self.post = blocks(c.pre), blocks(c.loop), blocks(c.post)
        self.norm = nn.LayerNorm(width)
        self.say = nn.Linear(width, c.outputs)
        for table in (self.read, self.places, self.say):
            nn.init.normal_(table.weight, std=0.02)  # type: ignore[arg-type]

    def forward(
        self, inputs: Tensor, mask: Tensor | None = None, iterations: int | None = None
    ) -> dict[str, Tensor]:
        """iterations: of the loop, which may differ from those of training."""
        return {"prediction": self.every(inputs, mask, iterations, 1)[0]}

    def every(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        iterations: int | None = None,
        window: int | None = None,
    ) -> Tensor:
        """(window, batch, n, outputs): what is predicted after each of the last `window` iterations, by default those of
        the config. Gradients pass through these alone. Raises UserError for texts and windows that are too long."""
        steps = self.config.iterations if iterations is None else iterations
        window = min(self.config.window, steps) if window is None else window
        if not 1 <= window <= steps:
            raise UserError(f"a window of {window} does not fit {steps} iterations")
        if inputs.shape[1] > self.config.length:
            raise UserError(f"{inputs.shape[1]} positions are more than the {self.config.length} there are")
        places = self.places.weight[: inputs.shape[1]]
        held = _through(self.pre, self.read(inputs) + places, mask)
        if not self.loop:
            return self._answer(held, mask).expand(window, -1, -1, -1)
        again = places if self.config.positions == "each" else None
        state = torch.zeros_like(held) if self.config.inject else held
        with torch.no_grad():
            for _ in range(steps - window):
                state = self._iterate(state, held, again, mask)
        states = []
        for _ in range(window):
            state = self._iterate(state, held, again, mask)
            states.append(state)
        every = None if mask is None else mask.repeat(window, 1)
        return self._answer(torch.cat(states), every).unflatten(0, (window, -1))  # one pass of `post` for all

    def _iterate(self, state: Tensor, held: Tensor, places: Tensor | None, mask: Tensor | None) -> Tensor:
        x = state + held if self.config.inject else state
        return _through(self.loop, x if places is None else x + places, mask)

    def _answer(self, state: Tensor, mask: Tensor | None) -> Tensor:
        return self.say(self.norm(_through(self.post, state, mask)))


def _through(layers: nn.ModuleList, x: Tensor, mask: Tensor | None) -> Tensor:
    for layer in layers:
        x = layer(x, mask)
    return x


def prompt(x: Tensor, y: Tensor) -> Tensor:
    """Examples as one sequence x_1, y_1, x_2, y_2, ...: (batch, points, n), (batch, points) -> (batch, 2 points, n).

    y stands in the first entry, zeros behind it. Predictions for y_i are read at x_i, places 0, 2, 4, ...
    """
    if x.ndim != 3 or x.shape[:2] != y.shape:
        raise UserError(
            f"points {tuple(x.shape)} and values {tuple(y.shape)} are not (batch, points, n) and (batch, points)"
        )
    wide = torch.cat([y[..., None], x.new_zeros(*y.shape, x.shape[2] - 1)], -1)
    return torch.stack([x, wide], 2).flatten(1, 2)


def window_error(predictions: Tensor, y: Tensor) -> Tensor:
    """The training loss: (window, batch, 2 points, 1) of a `prompt`, y (batch, points) -> mean squared error."""
    return (predictions[:, :, ::2, 0] - y).square().mean()
