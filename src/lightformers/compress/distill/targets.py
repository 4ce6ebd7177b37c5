"""The teacher's outputs on training examples, computed once however often they are needed.

They are kept beside the teacher for as long as its model lives, so recoveries from one teacher share them, and
can be saved and loaded. Only outputs are kept, so nothing random may happen to the inputs.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightformers.bundle import Batch, Bundle, Encoded
from lightformers.errors import MissingExtra, ModelError, UserError
from lightformers.files import replacing

_MEMORY: weakref.WeakKeyDictionary[nn.Module, dict[bytes, np.ndarray]] = weakref.WeakKeyDictionary()
#: Fewer new examples than this are not worth a compiled runtime.
_WORTH_COMPILING = 64

Ahead = Callable[[Batch], Sequence[Encoded]]


class Targets:
    """Looks the teacher's outputs up, and computes what is missing through the fastest runner there is.

    name: "embedding", "logits" or "prediction". ahead: the encoded examples that will be asked for after a batch; they are
    computed with the first one that is missing. vocabulary: source row of each of the student's tokens where that was trimmed.
    """

    def __init__(
        self, teacher: Bundle, name: str, ahead: Ahead | None = None, vocabulary: Sequence[int] | None = None,
        precision: str = "bf16",
    ) -> None:  # fmt: skip
        self.teacher, self.name, self.ahead, self.precision = teacher, name, ahead, precision
        self.vocabulary = None if vocabulary is None else np.asarray(vocabulary)
        self.known = _MEMORY.setdefault(teacher.model, {})
        self._runner: Any = None
        self._seen: dict[bytes, np.ndarray] = {}
        self._drawn: list[np.ndarray] = []

    def rows(self, batch: Batch) -> list[np.ndarray]:
        """One array per example of the batch: (width,) or (classes,), (length, classes) for tokens, or a forecast."""
        encoded = batch.targets["examples"]
        keys = [key(e) for e in encoded]
        if any(k not in self._seen for k in keys):
            self._see([*encoded, *(self.ahead(batch) if self.ahead else ())])
        return [self._seen[k] for k in keys]

    def stacked(self, batch: Batch) -> Tensor:
        """(batch, width) on the batch's device."""
        return torch.from_numpy(np.stack(self.rows(batch))).to(_device(batch))

    def padded(self, batch: Batch) -> Tensor:
        """(batch, length, classes), zero at padding."""
        rows, mask = self.rows(batch), batch.inputs["attention_mask"].cpu().bool().numpy()
        out = np.zeros((*mask.shape, rows[0].shape[-1]), dtype=np.float32)
        for place, valid, row in zip(out, mask, rows):
            place[valid] = row
        return torch.from_numpy(out).to(_device(batch))

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(count or fewer, width): outputs of examples seen so far, drawn with replacement.

        Only those this object has seen: what other recoveries have left must not change the draw.
        """
        if len(self._drawn) != len(self._seen):  # a dictionary cannot be indexed
            self._drawn = list(self._seen.values())
        return np.stack(
            [self._drawn[i] for i in rng.integers(0, len(self._drawn), min(count, len(self._drawn)))]
        )

    def close(self) -> None:
        """Free the runtime; what was computed stays."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def _see(self, encoded: Sequence[Encoded]) -> None:
        wanted = {key(e): e for e in encoded}
        missing = {k: e for k, e in wanted.items() if k not in self.known}
        if missing:
            items = [translate(e, self.vocabulary) for e in missing.values()]
            if self._runner is None:
                size = 32 if "pixel_values" in items[0] else 256
                # asked for from within a training step, whose autocast OpenVINO's tracing cannot take
                with torch.autocast("cpu", enabled=False):
                    self._runner = runner(self.teacher, len(items), self.precision, size)
            self.known.update(zip(missing, self._runner.run(items, self._reduce)))
        self._seen.update((k, self.known[k]) for k in wanted)

    def _reduce(self, outputs: Any, batch: Batch) -> list[np.ndarray]:
        if self.name not in outputs:
            raise ModelError(f"the teacher gives {sorted(outputs)} and no {self.name}")
        values = torch.as_tensor(outputs[self.name]).float()
        if values.ndim < 3 or self.name == "prediction":
            return [v.copy() for v in values.numpy()]
        mask = batch.inputs["attention_mask"].bool()
        return [
            v[m].half().numpy() for v, m in zip(values, mask)
        ]  # per token: fp16 halves what has to be kept


def key(encoded: Encoded) -> bytes:
    """What makes two encoded examples the same input."""
    digest = hashlib.blake2b(digest_size=16)
    for name in ("input_ids", "token_type_ids"):
        if name in encoded:
            digest.update(np.asarray(encoded[name], dtype=np.int32).tobytes() + b"|")
    if "input_ids" not in encoded:  # pixels, series, rows
        for name in sorted(encoded):
            if isinstance(value := encoded[name], (np.ndarray, np.generic)):
                digest.update(name.encode() + np.ascontiguousarray(value).tobytes())
    return digest.digest()


def translate(encoded: Encoded, vocabulary: np.ndarray | None) -> Encoded:
    """Token ids of a trimmed student -> ids of the teacher."""
    if vocabulary is None or "input_ids" not in encoded:
        return encoded
    return {**encoded, "input_ids": vocabulary[np.asarray(encoded["input_ids"])].tolist()}


def runner(teacher: Bundle, examples: int, precision: str = "bf16", size: int = 256) -> Any:
    """The fastest runner of the teacher that works here, `size` examples a batch: OpenVINO where it is installed and pays, else torch."""
    from lightformers.runners import build
    from lightformers.steps import Deploy

    half = "fp32" if precision == "fp32" else "bf16"
    if examples >= _WORTH_COMPILING and next(teacher.model.parameters()).device.type == "cpu":
        try:
            return build(teacher, Deploy("openvino", half, "sorted", batch_size=size, max_tokens=8192))  # type: ignore[arg-type]
        except (MissingExtra, ModelError, RuntimeError, ImportError):
            pass  # not installed, or a graph that it cannot take: torch can always run its own model
    return build(teacher, Deploy("torch", half, "sorted", batch_size=size, max_tokens=8192))  # type: ignore[arg-type]


def save(teacher: Bundle, path: str | Path) -> Path:
    """Write what is known of this teacher's outputs to a safetensors file, with the teacher's fingerprint."""
    from safetensors.numpy import save_file

    known = _MEMORY.get(teacher.model, {})
    with replacing(path) as temporary:
        save_file({k.hex(): v for k, v in known.items()}, temporary, {"teacher": fingerprint(teacher)})
    return Path(path)


def load(teacher: Bundle, path: str | Path) -> int:
    """Read what `save` wrote; returns how many outputs are known. Raises UserError for another teacher's file."""
    from safetensors import safe_open

    known = _MEMORY.setdefault(teacher.model, {})
    with safe_open(str(path), "numpy") as file:
        if (file.metadata() or {}).get("teacher") != fingerprint(teacher):
            raise UserError(f"{path} holds the outputs of another model: delete it, they are computed anew")
        known.update({bytes.fromhex(k): file.get_tensor(k) for k in file.keys()})  # noqa: SIM118
    return len(known)


def fingerprint(bundle: Bundle) -> str:
    """sha256 of names and weights, and of the pooling."""
    digest = hashlib.sha256(repr(bundle.pooling).encode())
    for name, tensor in bundle.model.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _device(batch: Batch) -> torch.device:
    return next(iter(batch.inputs.values())).device
