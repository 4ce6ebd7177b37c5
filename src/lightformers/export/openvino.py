"""OpenVINO: a graph that `ExportedModel.from_pretrained` of transformers and plain OpenVINO open."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lightformers.bundle import Bundle, Example
from lightformers.errors import MissingExtra, ModelError, UserError
from lightformers.export.graph import (
    Exported,
    Positional,
    batches,
    moving_axes,
    output_name,
    ready,
    sample,
    size_of,
    write_deploy,
)
from lightformers.files import replacing
from lightformers.steps import Deploy
from lightformers.telemetry import quiet

FILE = "openvino_model.xml"


def properties(deploy: Deploy) -> dict[str, Any]:
    """OpenVINO's compile properties for `deploy`.

    The precision is always said: left alone, the CPU plugin takes bf16 wherever the machine has it, even for a graph
    that records f32. int8 graphs run what is not quantized in bf16.
    """
    out: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32" if deploy.precision == "fp32" else "bf16"}
    if deploy.streams > 1:
        out["NUM_STREAMS"] = deploy.streams
    if deploy.threads:
        out["INFERENCE_NUM_THREADS"] = deploy.threads * deploy.streams
    return out


def save(
    bundle: Bundle, deploy: Deploy, folder: str | Path, calibration: Sequence[Example] | None = None
) -> Exported:
    """Write `folder`/openvino: `openvino_model.xml` and `.bin`, transformers' `export.json`, `deploy.json`.

    Batch and length are dynamic; for embedding models the pooling is in the graph. precision "int8" quantizes weights
    and activations by NNCF with the first `deploy.calibration` examples; "int8-weights" only stores weights in eight
    bits. Where transformers' exporter cannot take the model, `openvino.convert_model` does, and the note says so.
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
    module, inputs = ready(bundle), sample(bundle, examples or calibration)
    sets = batches(bundle, examples) if deploy.precision == "int8" else []
    how, note = "transformers.exporters", ""
    target = Path(folder) / "openvino"
    with replacing(target, directory=True) as new:
        with quiet(), torch.no_grad():
            try:
                exported = _by_transformers(module, inputs, deploy, sets)
                exported.config = bundle.model.config
                exported.program.set_rt_info(properties(deploy)["INFERENCE_PRECISION_HINT"], _HINT)
                exported.save_pretrained(new)
            except Exception as first:  # an exporter's own failure: the other converter may still serve
                how = "openvino.convert_model"
                note = (
                    f"transformers' exporter could not take this model ({_line(first)}): converted by OpenVINO itself, "
                    "so plain OpenVINO opens it and ExportedModel.from_pretrained does not"
                )
                try:
                    program = _by_openvino(module, inputs, deploy, sets, output_name(bundle))
                except Exception as second:
                    raise ModelError(
                        f"this model cannot be converted to OpenVINO: {_line(first)}; {_line(second)}"
                    ) from second
                program.set_rt_info(properties(deploy)["INFERENCE_PRECISION_HINT"], _HINT)
                openvino.save_model(program, str(new / FILE), compress_to_fp16=False)
        if deploy.precision.startswith("int8"):
            how += f" + nncf {nncf.__version__}"
        write_deploy(new, bundle, deploy, properties(deploy), how, list(inputs))
        size = size_of(new)
    return Exported(target, size, how, note, properties(deploy))


_HINT = ["runtime_options", "INFERENCE_PRECISION_HINT"]


def _by_transformers(module: Any, inputs: dict[str, Any], deploy: Deploy, sets: list[dict[str, Any]]) -> Any:
    from transformers.exporters import (
        NNCFOpenVINOQuantizer,
        NNCFQuantizationConfig,
        NNCFWeightCompressionConfig,
        OpenVINOConfig,
    )
    from transformers.exporters.exporter_openvino import OpenVINOExporter

    quantizer = None
    if deploy.precision == "int8":
        quantizer = NNCFOpenVINOQuantizer(
            NNCFQuantizationConfig(subset_size=len(sets)), calibration_dataset=sets
        )
    elif deploy.precision == "int8-weights":
        quantizer = NNCFOpenVINOQuantizer(NNCFWeightCompressionConfig())
    config = OpenVINOConfig(dynamic=True, dynamic_shapes=moving_axes(inputs), quantizer=quantizer)
    # use_cache=False: the graph scores whole sequences, it does not generate
    cache = {"use_cache": False} if getattr(getattr(module, "config", None), "use_cache", None) else {}
    return OpenVINOExporter().export(module, {**inputs, **cache}, config=config)


def _by_openvino(
    module: Any, inputs: dict[str, Any], deploy: Deploy, sets: list[dict[str, Any]], output: str
) -> Any:
    import openvino

    program = openvino.convert_model(
        Positional(module, list(inputs), output), example_input=tuple(inputs.values())
    )
    for port, name in zip(program.inputs, inputs):
        port.get_tensor().set_names({name})
    program.outputs[0].get_tensor().set_names({output})
    program.validate_nodes_and_infer_types()
    if deploy.precision == "fp32" or deploy.precision == "bf16":
        return program
    import nncf

    if deploy.precision == "int8-weights":
        return nncf.compress_weights(program)
    arrays = [{name: value.numpy() for name, value in batch.items()} for batch in sets]
    return nncf.quantize(
        program, nncf.Dataset(arrays), subset_size=len(arrays), model_type=nncf.ModelType.TRANSFORMER
    )


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
