"""OpenVINO: a graph that `ExportedModel.from_pretrained` of transformers and plain OpenVINO open."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lightformers.bundle import Bundle, Example
from lightformers.errors import MissingExtra, ModelError, UserError, reason
from lightformers.export.graph import (
    Exported,
    moving_axes,
    ready,
    sample,
    size_of,
    without_cache,
    write_deploy,
)
from lightformers.files import replacing
from lightformers.models.registry import MODELS
from lightformers.processors import Processor
from lightformers.runners import openvino_graph, openvino_runner
from lightformers.runners.openvino_narrow import narrowed
from lightformers.runners.unfold import without_unfold
from lightformers.steps import Deploy
from lightformers.telemetry import quiet

FILE = "openvino_model.xml"


def properties(deploy: Deploy) -> dict[str, Any]:
    """OpenVINO's compile properties for `deploy` on this machine.

    The precision is always said: left alone, the CPU plugin takes bf16 wherever the machine has it, even for a graph
    that records f32. Graphs with int8 run what is not quantized in bf16 where the CPU has it.
    """
    import openvino

    out = {
        "INFERENCE_PRECISION_HINT": openvino_runner.precision_hint(openvino.Core(), deploy),
        "NUM_STREAMS": deploy.streams,
    }
    if deploy.threads:
        out["INFERENCE_NUM_THREADS"] = deploy.threads * deploy.streams
    return out


def save(
    bundle: Bundle, deploy: Deploy, folder: str | Path, calibration: Sequence[Example] | None = None
) -> Exported:
    """Write `folder`/openvino: `openvino_model.xml` and `.bin`, transformers' `export.json`, `deploy.json`.

    Batch and length are dynamic; for embedding models the pooling is in the graph. precision "int8" quantizes weights
    and activations by NNCF with the first `deploy.calibration` examples; "int8-weights" only stores weights in eight
    bits, "bf16" in sixteen. Of models that are lightformers' own there is no `export.json`, as transformers does not know
    them. Where transformers' exporter cannot take the model, `openvino.convert_model` does, and the note says so.
    Raises UserError for int8 without calibration examples, ModelError where the model cannot be converted at all.
    """
    if deploy.runtime != "openvino":
        raise UserError(f"this deploy runs on {deploy.runtime}: give Deploy(runtime='openvino', ...)")
    examples = list(calibration or ())[: deploy.calibration]
    if deploy.precision == "int8" and not examples:
        raise UserError("int8 needs calibration examples: give some of the data (--data FILE)")
    with quiet():
        try:
            import openvino

            if deploy.precision.startswith("int8"):
                import nncf
        except ImportError as error:
            raise MissingExtra("openvino", "openvino (with nncf)") from error
    settings = properties(deploy)
    module, inputs = ready(bundle), sample(bundle, examples or calibration)
    sets: list[dict[str, Any]] = []
    if deploy.precision == "int8":
        sets = [
            {name: torch.from_numpy(value) for name, value in batch.items()}
            for batch in openvino_graph.calibration_batches(bundle, examples, deploy.calibration)
        ]
    how, note = "transformers.exporters", ""
    target = Path(folder) / "openvino"
    with replacing(target, directory=True) as new:
        with quiet(), torch.no_grad(), without_unfold():
            try:
                exported = _by_transformers(module, inputs, deploy, sets)
                exported.config = bundle.model.config
                openvino_graph.unfused(exported.program)
                if deploy.narrow:
                    narrowed(exported.program)
                exported.program.set_rt_info(settings["INFERENCE_PRECISION_HINT"], _HINT)
                exported.save_pretrained(new)
                if (
                    type(bundle.model).__name__ in MODELS
                ):  # ExportedModel would look for its kind, and find none
                    for name in ("config.json", "export.json"):
                        (new / name).unlink(missing_ok=True)
            except Exception as first:  # an exporter's own failure: the other converter may still serve
                how = "openvino.convert_model"
                note = (
                    f"transformers' exporter could not take this model ({reason(first)}): converted by OpenVINO itself, "
                    "so plain OpenVINO opens it and ExportedModel.from_pretrained does not"
                )
                try:
                    program = openvino_graph.program(
                        bundle, deploy.precision, examples, deploy.calibration, deploy.narrow
                    )
                except Exception as second:
                    why = dict.fromkeys([reason(first), reason(second)])
                    raise ModelError(
                        f"this model cannot be converted to OpenVINO: {'; '.join(why)}"
                    ) from second
                program.set_rt_info(settings["INFERENCE_PRECISION_HINT"], _HINT)
                openvino.save_model(program, str(new / FILE), compress_to_fp16=False)
        if deploy.precision == "bf16":
            _halve(new)
        if deploy.precision.startswith("int8"):
            how += f" + nncf {nncf.__version__}"
        with quiet():
            avoid = sorted(openvino_graph.awkward_lengths(openvino.Core().read_model(str(new / FILE))))
            avoid = [] if isinstance(bundle.processor, Processor) else avoid  # series and rows are not padded
        write_deploy(new, bundle, deploy, settings, how, list(inputs), avoid)
        size = size_of(new)
    return Exported(target, size, how, note, settings)


_HINT = ["runtime_options", "INFERENCE_PRECISION_HINT"]


def _by_transformers(module: Any, inputs: dict[str, Any], deploy: Deploy, sets: list[dict[str, Any]]) -> Any:
    hf: Any = importlib.import_module("transformers.exporters")
    exporter: Any = importlib.import_module("transformers.exporters.exporter_openvino").OpenVINOExporter()
    quantizer = None
    if deploy.precision == "int8":
        quantizer = hf.NNCFOpenVINOQuantizer(
            hf.NNCFQuantizationConfig(subset_size=len(sets)), calibration_dataset=sets
        )
    elif deploy.precision == "int8-weights":
        quantizer = hf.NNCFOpenVINOQuantizer(hf.NNCFWeightCompressionConfig())
    config = hf.OpenVINOConfig(dynamic=True, dynamic_shapes=moving_axes(inputs), quantizer=quantizer)
    return exporter.export(module, {**inputs, **without_cache(module)}, config=config)


def _halve(folder: Path) -> None:
    """Stores the weights in sixteen bits: as fp16, which OpenVINO computes with as before, and which keeps three more bits
    of a weight than bf16. Those that fp16 cannot hold stay as they are."""
    import openvino

    wide = folder / FILE
    program = openvino.Core().read_model(str(wide))
    openvino.save_model(program, str(folder / "half.xml"), compress_to_fp16=True)
    del program  # it has the file mapped
    for suffix in (".xml", ".bin"):
        (folder / f"half{suffix}").replace(wide.with_suffix(suffix))
