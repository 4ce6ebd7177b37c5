"""Running in OpenVINO: conversion, NNCF int8, and a pipeline that keeps every stream busy."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lightformers import memory
from lightformers.bundle import Bundle, Encoded, Example
from lightformers.errors import UserError
from lightformers.files import read_json
from lightformers.runners.batching import in_order, plan
from lightformers.runners.named import numpy_inputs, to_tensor
from lightformers.runners.openvino_graph import awkward_lengths, imported, port_name, program
from lightformers.steps import Deploy
from lightformers.telemetry import quiet

#: Seconds without news after which requests are asked whether they failed.
PATIENCE = 2.0


class OpenVINORunner:
    """Runs a compiled OpenVINO graph. Padding a batch and reducing another go on while the streams compute."""

    def __init__(self, model: Any, bundle: Bundle, deploy: Deploy) -> None:
        self.bundle = bundle
        self.deploy = deploy
        self.name = str(deploy)
        self.model = model
        self.awkward = awkward_lengths(model)
        self.compiled = compile_model(model, deploy)
        self.inputs = {name: port for port in self.compiled.inputs for name in port.get_names()}
        self.outputs = [port_name(port) for port in self.compiled.outputs]
        # One request more than streams: the next batch waits ready while the results of the last are taken.
        self.requests = [self.compiled.create_infer_request() for _ in range(deploy.streams + 1)]

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        return self.bundle.encode(examples)

    def __call__(self, examples: Sequence[Example], reduce: Any) -> list:
        return self.run(self.encode(examples), reduce)

    def padded_length(self, length: int) -> int:
        """The length a batch is padded to."""
        while length in self.awkward:
            length += 1
        return length

    def run(self, encoded: Sequence[Encoded], reduce: Any) -> list:
        """One item per example, in the given order. reduce: (outputs, batch) -> one item per row."""
        lengths = [self.bundle.length(e) for e in encoded]
        deploy = self.deploy
        batches = plan(lengths, deploy.batching, deploy.batch_size, deploy.max_tokens, self.padded_length)
        results: list[Any] = [None] * len(batches)
        done: queue.SimpleQueue[int] = queue.SimpleQueue()
        free = list(range(len(self.requests)))
        running: dict[int, tuple[int, Any]] = {}

        def finished() -> int:
            while True:
                with contextlib.suppress(queue.Empty):
                    place = done.get(timeout=PATIENCE)
                    if place in running:
                        return place
                    continue
                # a request that failed calls nobody back: asking it raises what went wrong
                for place in running:
                    if self.requests[place].wait_for(0):
                        return place

        def collect() -> None:
            place = finished()
            self.requests[place].wait()  # raises here what went wrong in the stream
            k, batch = running.pop(place)
            results[k] = reduce(self._take(self.requests[place]), batch)
            free.append(place)

        try:
            for k, indices in enumerate(batches):
                batch = self._pad([encoded[i] for i in indices])
                if not free:
                    collect()
                place = free.pop()
                # what a callback is given lives as long as the request: the request itself would never be freed
                self.requests[place].set_callback(done.put, place)
                running[place] = (k, batch)
                self.requests[place].start_async(self._feed(batch), share_inputs=True)
            while running:
                collect()
        except BaseException:
            for (
                request
            ) in self.requests:  # waited for, not cancelled: cancelling can lock up with the callbacks
                with contextlib.suppress(RuntimeError):
                    request.wait()
            raise
        return in_order(batches, results)

    def _pad(self, encoded: list[Encoded]) -> Any:
        longest = max(self.bundle.length(e) for e in encoded)
        return self.bundle.pad(encoded, self.padded_length(longest) if longest in self.awkward else 1)

    def _feed(self, batch: Any) -> dict[str, np.ndarray]:
        return {k: v for k, v in numpy_inputs(batch).items() if k in self.inputs}

    def feed(self, encoded: Sequence[Encoded]) -> dict[str, np.ndarray]:
        """The graph's inputs for one batch: name -> (batch, length) integers, or pixels."""
        return self._feed(self._pad(list(encoded)))

    def _take(self, request: Any) -> dict[str, Tensor]:
        # Copied: the request's memory is written again by its next batch.
        return {
            name: to_tensor(request.get_output_tensor(i).data.copy()) for i, name in enumerate(self.outputs)
        }

    def close(self) -> None:
        """Free the compiled graph and its requests."""
        self.requests = []
        self.compiled = self.model = None
        memory.release()


def build_openvino(
    bundle: Bundle, deploy: Deploy, calibration: Sequence[Example] | None = None
) -> OpenVINORunner:
    """Convert, quantize where the deploy says so, compile."""
    model = program(bundle, deploy.precision, calibration, deploy.calibration, deploy.narrow)
    return OpenVINORunner(model, bundle, deploy)


def open_folder(path: str | Path, bundle: Bundle, deploy: Deploy | None = None) -> OpenVINORunner:
    """Open an exported folder (or its .xml) with plain OpenVINO. The precision of its weights is what was exported."""
    ov = imported()
    path = Path(path)
    files = [path] if path.suffix == ".xml" else sorted(path.glob("*.xml"))
    files = [f for f in files if f.is_file() and "tokenizer" not in f.name]
    if len(files) != 1:
        raise UserError(f"{path} holds {len(files)} OpenVINO graphs (*.xml); exactly one is needed")
    model = ov.Core().read_model(str(files[0]))
    return OpenVINORunner(model, bundle, deploy or _recorded(files[0].with_name("deploy.json")))


def _recorded(path: Path) -> Deploy:
    """The deploy that stands beside an exported graph; of a foreign folder, what suits most."""
    names = ("precision", "batching", "batch_size", "max_tokens", "threads", "streams")
    known: dict[str, Any] = read_json(path) if path.is_file() else {"precision": "bf16", "batching": "sorted"}
    return Deploy(runtime="openvino", **{k: known[k] for k in names if k in known})


def compile_model(model: Any, deploy: Deploy, more: Mapping[str, Any] | None = None) -> Any:
    """Compile for the CPU with the deploy's precision, threads and streams, all said explicitly, and `more`."""
    ov = imported()
    core = ov.Core()
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": precision_hint(core, deploy),
        "NUM_STREAMS": deploy.streams,
    }
    if deploy.threads:
        settings["INFERENCE_NUM_THREADS"] = deploy.threads * deploy.streams
    with quiet():
        return core.compile_model(model, "CPU", {**settings, **(more or {})})


def precision_hint(core: Any, deploy: Deploy) -> str:
    """What is not int8 runs in bf16 where the CPU has it: softmax, norms and residuals between int8 products."""
    if deploy.precision == "fp32":
        return "f32"
    return "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"
