"""What training needs to go on later: safetensors and JSON, never pickle."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from lightformers.errors import UserError
from lightformers.files import read_json, replacing, write_json


@dataclass
class TrainState:
    """Trained weights, optimizer moments and position.

    tensors: "weight/NAME", "exp_avg/NAME", "exp_avg_sq/NAME" of every trained parameter (objective's own ones are
    named "objective.NAME"). step: updates done. batches: batches taken from the feed. tokens, seconds: spent so far.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    batches: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def save(self, folder: str | Path) -> Path:
        """Write `state.json` and `state.safetensors` into `folder`, which appears whole."""
        from safetensors.torch import save_file

        with replacing(folder, directory=True) as temporary:
            save_file(
                {k: v.detach().cpu().contiguous() for k, v in self.tensors.items()},
                temporary / "state.safetensors",
            )
            numbers = {
                "step": self.step,
                "batches": self.batches,
                "tokens": self.tokens,
                "seconds": self.seconds,
            }
            write_json(temporary / "state.json", numbers)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> TrainState:
        """Read what `save` wrote. Raises UserError if it is not there."""
        from safetensors.torch import load_file

        folder = Path(folder)
        if not (folder / "state.json").is_file():
            raise UserError(f"{folder} holds no training state (state.json, state.safetensors)")
        return cls(tensors=load_file(folder / "state.safetensors"), **read_json(folder / "state.json"))
