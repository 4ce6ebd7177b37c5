"""Steps, recipes and deploys: what is done to a model, in which order, and how the result is run."""

from __future__ import annotations

import dataclasses
import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

import yaml

from lightformers.bundle import Bundle
from lightformers.errors import UserError

Runtime = Literal["torch", "openvino", "onnxruntime"]
Precision = Literal["fp32", "bf16", "int8", "int8-weights"]
Batching = Literal["padded", "sorted", "packed"]


class Stage(IntEnum):
    """The order in which steps make sense. RECOVER may come again anywhere after a cut."""

    DEPTH = 1
    WIDTH = 2
    FACTORIZE = 3
    ADAPT = 4
    RECOVER = 5
    VOCABULARY = 6
    SPARSIFY = 7
    QUANTIZE = 8
    CASCADE = 9


@dataclass
class Run:
    """The context of an edit.

    teacher: the recipe's input, untouched; what recovery learns from. Filled in by `Recipe.apply`.
    seconds, tokens: the training budget of all recovery steps together; None means each step's own default.
    progress: called with small dictionaries (`{"step": 12, "loss": 0.3, ...}`) while training.
    """

    teacher: Bundle | None = None
    device: str = "cpu"
    dtype: str = "bf16"
    seed: int = 0
    seconds: float | None = None
    tokens: int | None = None
    use_labels: bool = False
    progress: Callable[[dict[str, Any]], None] = lambda event: None


@runtime_checkable
class Step(Protocol):
    """An edit of a bundle: a frozen dataclass whose fields are its hyper-parameters.

    `apply` may edit in place what the recipe gave it, validates before it edits, and raises where it matches
    nothing. A step may also have `note(bundle) -> str`: what the record says of what it made.
    """

    stage: ClassVar[Stage]

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle: ...


@dataclass(frozen=True)
class Deploy:
    """How a model is run.

    precision: "int8" is NNCF post-training quantization on OpenVINO and dynamic quantization elsewhere;
        "int8-weights" stores weights in eight bits and computes in bf16 (OpenVINO).
    batching: "padded" keeps the order of arrival, "sorted" groups by length, "packed" runs without padding (torch).
    batch_size: most examples in a batch. max_tokens: most padded tokens in a batch, or None.
    threads: threads of one stream (None: all cores); streams: batches run at the same time (OpenVINO).
    calibration: how many examples int8 is calibrated on.
    narrow: OpenVINO computes of the last block only the rows that the head reads; no result changes.
    """

    runtime: Runtime = "torch"
    precision: Precision = "fp32"
    batching: Batching = "padded"
    batch_size: int = 32
    max_tokens: int | None = None
    threads: int | None = None
    streams: int = 1
    calibration: int = 24
    narrow: bool = True

    def __post_init__(self) -> None:
        for name, allowed in (("runtime", Runtime), ("precision", Precision), ("batching", Batching)):
            if getattr(self, name) not in get_args(allowed):
                raise UserError(
                    f"{name} {getattr(self, name)!r} is not one of {', '.join(get_args(allowed))}"
                )
        if self.batch_size < 1 or self.streams < 1 or self.calibration < 1:
            raise UserError("batch_size, streams and calibration must be at least 1")
        if self.batching == "packed" and self.runtime != "torch":
            raise UserError("packed running needs runtime 'torch'; use batching 'sorted' elsewhere")
        if self.precision == "int8-weights" and self.runtime != "openvino":
            raise UserError("precision 'int8-weights' needs runtime 'openvino'")
        if self.precision == "bf16" and self.runtime == "onnxruntime":
            raise UserError("ONNX Runtime has no bf16 kernels on the CPU: use fp32 or int8")

    def __str__(self) -> str:
        budget = f", {self.max_tokens} tokens" if self.max_tokens else ""
        streams = f", {self.streams} streams" if self.streams > 1 else ""
        return (
            f"{self.runtime} {self.precision}, {self.batching} batches of {self.batch_size}{budget}{streams}"
        )


def fields_of(item: Any) -> dict[str, Any]:
    """The fields of a step or deploy: name -> plain value (tuples become lists)."""
    return {f.name: _plain(getattr(item, f.name)) for f in dataclasses.fields(item)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _step_from(name: str, fields: Mapping[str, Any]) -> Step:
    """Build a step from its public name, looked up in `lightformers.compress` only: never an import path."""
    room = importlib.import_module("lightformers.compress")
    if name not in room.__all__:
        raise UserError(f"unknown step {name!r}; known steps: {', '.join(sorted(room.__all__))}")
    kind = getattr(room, name)
    known = {f.name for f in dataclasses.fields(kind)}
    if unknown := set(fields) - known:
        raise UserError(
            f"step {name} has no field {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}"
        )
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


@dataclass(frozen=True)
class Recipe:
    """An ordered list of steps and one deploy."""

    steps: Sequence[Step] = ()
    deploy: Deploy = field(default_factory=Deploy)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        done = Stage.DEPTH
        for step in self.steps:
            if not isinstance(step, Step):
                raise UserError(f"{step!r} is no step: it needs a `stage` and `apply(bundle, task, run)`")
            if step.stage is Stage.RECOVER:
                continue  # recovery may follow any cut
            if step.stage < done:
                raise UserError(
                    f"{type(step).__name__} ({step.stage.name.lower()}) comes after a {done.name.lower()} step; "
                    f"the order is {' < '.join(s.name.lower() for s in Stage)}"
                )
            done = step.stage

    def apply(self, bundle: Bundle, task: Any = None, run: Run | None = None) -> Bundle:
        """Copy `bundle` once, apply every step to the copy, and record what each did. The original is untouched."""
        run = dataclasses.replace(run) if run else Run()
        run.teacher = run.teacher or bundle
        work = bundle.copy()
        for step in self.steps:
            before, start = work.parameters, time.monotonic()
            work = step.apply(work, task, run)
            work.history.append(
                {
                    "step": type(step).__name__,
                    "parameters": fields_of(step),
                    "size_before": before,
                    "size_after": work.parameters,
                    "seconds": round(time.monotonic() - start, 2),
                    **({"note": step.note(work)} if hasattr(step, "note") else {}),
                }
            )
        work.deploy = self.deploy
        return work

    def to_dict(self) -> dict[str, Any]:
        return {
            "lightformers": 1,
            "steps": [{type(s).__name__: fields_of(s)} for s in self.steps],
            "deploy": fields_of(self.deploy),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Recipe:
        if not isinstance(value, Mapping) or value.get("lightformers") != 1:
            raise UserError("not a lightformers recipe: the key `lightformers: 1` is missing")
        steps = []
        for item in value.get("steps") or []:
            if isinstance(item, str):
                item = {item: {}}
            if not isinstance(item, Mapping) or len(item) != 1:
                raise UserError(f"each step of a recipe is one `Name: {{fields}}`, got {item!r}")
            ((name, fields),) = item.items()
            steps.append(_step_from(name, fields or {}))
        deploy = value.get("deploy") or {}
        known = {f.name for f in dataclasses.fields(Deploy)}
        if unknown := set(deploy) - known:
            raise UserError(
                f"deploy has no field {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}"
            )
        return cls(steps, Deploy(**deploy))

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str | Path) -> Recipe:
        """Read a recipe from YAML text or a file. Loading is safe: steps are looked up by name in a closed list."""
        if isinstance(text, Path):
            if not text.is_file():
                raise UserError(f"no recipe at {text}")
            text = text.read_text(encoding="utf-8")
        try:
            return cls.from_dict(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise UserError(f"the recipe is not valid YAML: {error}") from error
