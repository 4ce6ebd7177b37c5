"""Full attention in a few blocks of a decoder, a window in the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.compress.long import long_table
from lightformers.errors import ModelError, UserError
from lightformers.parts.attention.masformer import full_layers
from lightformers.steps import Run, Stage

Place = Literal["bottom", "top", "spread"]


@dataclass(frozen=True)
class MixedSpans:
    """Let only some blocks of a decoder attend to everything, and the others to a window (MASFormer, Zhang et al., 2023,
    arXiv 2310.12442). Weights stay as they are; the model should go on learning on long texts.

    full: how many blocks keep full attention, or which (from 0); none and all are allowed. place: where so many stand.
    window: tokens that the others see, themselves included. positions: the longest text from now on; a table of learned
    positions is then copied again and again (the paper starts it from the short table; interpolation is not built),
    rotary positions just go on.

    The result is what plain transformers builds from its config: GPT-Neo (whose own alternation of local blocks is
    written over), Qwen2 and Qwen3. A transformers cache keeps only the window for Qwen; GPT-Neo computes all scores and
    hides them, so it saves nothing there: our own decoder does (`parts.attention.masformer.mixed_spans`). The paper's
    local attention is by blocks; transformers knows windows.
    """

    full: int | tuple[int, ...] = 8
    place: Place = "bottom"
    window: int = 1024
    positions: int | None = None
    stage: ClassVar[Stage] = Stage.ADAPT

    def __post_init__(self) -> None:
        if not isinstance(self.full, int):
            object.__setattr__(self, "full", tuple(self.full))
        count = self.full if isinstance(self.full, int) else max(self.full, default=0) + 1
        full_layers(self.full, count, self.place)  # refuses unknown places, negative and doubled numbers
        if self.window < 1 or (self.positions is not None and self.positions < 1):
            raise UserError("a window holds at least the token itself, and positions are at least 1")

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises ModelError for models whose config cannot say which blocks are full, or that are no plain ones;
        UserError for blocks that are not there and fewer positions than there are."""
        model: Any = bundle.model
        config = model.config
        if config.model_type not in _FIELDS:
            raise ModelError(
                f"transformers has no config for mixed spans in {config.model_type}; it has for {', '.join(_FIELDS)}"
            )
        if reasons := anatomy.native_reasons(model):
            raise ModelError(f"mixed spans are written into the config of a plain model, but {reasons[0]}")
        chosen = full_layers(self.full, config.num_hidden_layers, self.place)
        now = config.max_position_embeddings
        if self.positions is not None and self.positions < now:
            raise UserError(f"the model has {now} positions already: {self.positions} would be fewer")
        fields = config.to_dict() | _FIELDS[config.model_type](config.num_hidden_layers, chosen, self.window)
        fields.pop("attention_layers", None)  # GPT-Neo makes it from attention_types
        fields["max_position_embeddings"] = self.positions or now
        tensors = dict(model.state_dict())
        for name in tensors:
            if self.positions is not None and name.endswith(_LEARNED):
                tensors[name] = long_table(tensors[name], self.positions, 0, 0)
        with torch.random.fork_rng():  # the weights that are drawn here are all written over
            made = type(model)(type(config)(**fields))
        some = next(model.parameters())
        made = made.to(some.device, some.dtype)
        made.load_state_dict(tensors)
        bundle.model = made.train(model.training)
        if self.positions is not None:
            bundle.max_length = self.positions
        return bundle


def _neo(layers: int, full: tuple[int, ...], window: int) -> dict[str, Any]:
    kinds = ["global" if i in full else "local" for i in range(layers)]
    return {"attention_types": [[kinds, 1]], "window_size": window}


def _qwen(layers: int, full: tuple[int, ...], window: int) -> dict[str, Any]:
    kinds = ["full_attention" if i in full else "sliding_attention" for i in range(layers)]
    return {"layer_types": kinds, "sliding_window": window, "use_sliding_window": True}


#: Tables of learned positions.
_LEARNED = ("wpe.weight",)
#: model_type -> (blocks, full ones, window) -> fields of its config.
_FIELDS: dict[str, Callable[[int, tuple[int, ...], int], dict[str, Any]]] = {
    "gpt_neo": _neo,
    "qwen2": _qwen,
    "qwen3": _qwen,
}
