"""The model card: what was done, what was measured, on what, how to use it, and where it ends."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightformers import __version__
from lightformers.bundle import Bundle
from lightformers.export.graph import DEPLOY_FILE, output_name
from lightformers.files import read_json, write_text
from lightformers.manifest import FILE as MANIFEST
from lightformers.models.registry import MODELS
from lightformers.processors import Processor

PIPELINES = {
    "embedding": "sentence-similarity", "text-classification": "text-classification",
    "token-classification": "token-classification", "causal-lm": "text-generation", "masked-lm": "fill-mask",
    "image-classification": "image-classification", "forecasting": "time-series-forecasting",
    "tabular-classification": "tabular-classification", "tabular-regression": "tabular-regression",
}  # fmt: skip
#: What an example of a task without tokenizer or image processor looks like.
_EXAMPLES = {
    "forecasting": '{"past_values": values}  # (context_length, columns) in the units of the data',
    "tabular-classification": '{"row": {"column": "cell"}}',
    "tabular-regression": '{"row": {"column": "cell"}}',
}
_AUTO = {
    "text-classification": "AutoModelForSequenceClassification", "causal-lm": "AutoModelForCausalLM",
    "token-classification": "AutoModelForTokenClassification", "masked-lm": "AutoModelForMaskedLM",
    "image-classification": "AutoModelForImageClassification",
}  # fmt: skip


def write(
    bundle: Bundle, folder: str | Path, report: Mapping[str, Any] | None = None, recipe: str = "", name: str | None = None
) -> Path:  # fmt: skip
    """Write `folder`/README.md. Describes what stands in `folder`, so write the exports first.

    report: slim's report (see docs): its evaluation, hardware and verdict go into the card. recipe: YAML text. name: of the
    model, and of the folder in its snippets; None: the folder's.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder, report = Path(folder), report or {}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    local = not bundle.source or os.path.isdir(bundle.source) or bundle.source.startswith((".", "/", "~"))
    steps = [
        {**step, "settings": ", ".join(f"{k}={_short(v)}" for k, v in step["parameters"].items())}
        for step in bundle.history
    ]
    text = environment.get_template("card.md.j2").render(
        name=name or folder.resolve().name,
        source=Path(bundle.source).name
        if bundle.source and local
        else bundle.source or "a model of one's own",
        base_model=None if local else bundle.source,
        library="sentence-transformers" if bundle.pooling else "transformers",
        pipeline=PIPELINES.get(bundle.task or ""),
        tags=[name for name in ("openvino", "onnx") if (folder / name / DEPLOY_FILE).is_file()],
        version=__version__,
        created=str(report.get("created", ""))[:10],
        parameters=_count(bundle.parameters),
        before=_count(bundle.history[0]["size_before"]) if bundle.history else None,
        sentence=(report.get("verdict") or {}).get("sentence", ""),
        steps=steps,
        deploy=str(bundle.deploy) if bundle.deploy else "",
        recipe=recipe,
        evaluation=_evaluation(report),
        hardware=_hardware(report.get("machine") or {}),
        snippets=snippets(bundle, folder, name),
        limits=_limits(bundle, folder, report),
    )
    return write_text(folder / "README.md", text)


def _count(parameters: int) -> str:
    return f"{parameters / 1e6:.1f} million" if parameters >= 1e5 else f"{parameters:,}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _evaluation(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Rows of baselines, the chosen model and the control, as slim's report holds them."""
    if not report.get("chosen"):
        return None
    task = report["task"]
    rows = [
        *report.get("baselines", []),
        {**report["chosen"], "name": f"**this model** ({report['chosen']['name']})"},
    ]
    if control := report.get("control"):
        rows.append({**control, "name": "control: the original, trained on the same data and budget"})
    verify = task.get("splits", {}).get("verify")
    confidence = f"{100 * report.get('confidence', 0.95):g} %"
    note = f"On {verify} examples that the search never saw; in brackets {confidence} intervals by paired bootstrap."
    return {"metric": task["metric"], "note": note, "rows": [_row(row) for row in rows]}


def _row(row: Mapping[str, Any]) -> dict[str, str]:
    def number(key: str, form: str, scale: float = 1.0) -> str:
        return form.format(row[key] * scale) if row.get(key) is not None else "-"

    def interval(value: Any) -> str:
        if value is None:
            return "-"
        if not isinstance(value, Mapping):
            return f"{value:.4f}"
        return f"{value['estimate']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"

    return {
        "name": row["name"],
        "quality": interval(row.get("quality")),
        "ratio": interval(row.get("ratio")),
        "throughput": number("throughput", "{:.0f}"),
        "latency": number("latency_ms", "{:.1f}"),
        "size": number("size_bytes", "{:.1f}" if row.get("size_bytes", 0) >= 1e6 else "{:.2g}", 1e-6),
    }


def _hardware(machine: Mapping[str, Any]) -> str:
    plain = {k: v for k, v in machine.items() if isinstance(v, (str, int, float)) and not isinstance(v, bool)}
    return ", ".join(
        f"{key} {value}" if not isinstance(value, str) else value for key, value in plain.items()
    )


def snippets(bundle: Bundle, folder: Path, where: str | None = None) -> list[dict[str, str]]:
    """How to open what stands in `folder`, as {"title", "code"}; `where` is the folder's name in the code."""
    where = where or folder.resolve().name
    out = []
    if (folder / MANIFEST).is_file():
        code = f'import lightformers as lf\n\nbundle = lf.load("{where}")\nmodel = bundle.module()'
        out.append({"title": "lightformers (plain transformers cannot express this structure)", "code": code})
    elif bundle.pooling:
        code = (
            "from sentence_transformers import SentenceTransformer\n\n"
            f'model = SentenceTransformer("{where}")\nvectors = model.encode(["a text", "another"])'
        )
        out.append({"title": "sentence-transformers", "code": code})
    elif isinstance(bundle.processor, Processor):
        code = (
            f'import lightformers as lf\n\nbundle = lf.load("{where}")\n'
            f"example = {_EXAMPLES.get(bundle.task or '', '{}')}\n"
            "outputs = bundle.module()(**bundle.collate([example]).inputs)"
        )
        if bundle.task == "forecasting":
            field = "prediction" if type(bundle.model).__name__ in MODELS else "prediction_outputs"
            code += f"\nforecast = bundle.processor.restore(outputs.{field}.detach().numpy())"
        out.append({"title": "lightformers", "code": code})
    else:
        auto, image = _AUTO.get(bundle.task or "", "AutoModel"), bundle.task == "image-classification"
        kind = "AutoImageProcessor" if image else "AutoTokenizer"
        call = "images=[image]" if image else '["a text"]'
        code = (
            f"from transformers import {auto}, {kind}\n\n"
            f'processor = {kind}.from_pretrained("{where}")\nmodel = {auto}.from_pretrained("{where}")\n'
            f'outputs = model(**processor({call}, return_tensors="pt"))'
        )
        out.append({"title": "transformers", "code": code})
    if (folder / "openvino" / DEPLOY_FILE).is_file():
        held = read_json(folder / "openvino" / DEPLOY_FILE)
        code = (
            "import json\nimport openvino\n\n"
            f'how = json.load(open("{where}/openvino/deploy.json"))\n'
            f'model = openvino.Core().compile_model("{where}/openvino/openvino_model.xml", "CPU", how["properties"])\n'
            f'out = model({{name: inputs[name] for name in how["inputs"]}})["{held["output"]}"]'
        )
        out.append({"title": "OpenVINO (inputs: numpy arrays from the processor)", "code": code})
    if (folder / "onnx" / DEPLOY_FILE).is_file():
        code = (
            "import onnxruntime\n\n"
            f'session = onnxruntime.InferenceSession("{where}/onnx/model.onnx")\n'
            f'out = session.run(["{output_name(bundle)}"], inputs)[0]'
        )
        out.append({"title": "ONNX Runtime", "code": code})
    return out


def _limits(bundle: Bundle, folder: Path, report: Mapping[str, Any]) -> list[str]:
    out = []
    if report.get("chosen"):
        out.append(
            "The quality was verified on the data named above and on nothing else: check it on your own first."
        )
    else:
        out.append("No quality was measured when this folder was written.")
    if bundle.max_length:
        out.append(f"Texts are cut after {bundle.max_length} tokens.")
    if bundle.origin.vocabulary is not None:
        out.append(
            f"The vocabulary was trimmed to {len(bundle.origin.vocabulary)} entries: text unlike the data falls apart "
            "into more, or unknown, tokens."
        )
    deploy = folder / "openvino" / DEPLOY_FILE
    if deploy.is_file():
        held = read_json(deploy)
        out.append(
            f"The OpenVINO graph is {held['precision']}; compile it with the properties in openvino/deploy.json."
        )
        if held["avoid_lengths"]:
            lengths = ", ".join(map(str, held["avoid_lengths"]))
            out.append(
                f"Never pad a batch for the OpenVINO graph to exactly {lengths} tokens: OpenVINO 2026.4 computes wrong "
                "attention there in int8 with bf16. One more column of padding avoids it."
            )
    out += [str(warning) for warning in report.get("warnings", [])]
    return [*out, "What the original was bad at, biased in, or licensed for holds here too."]
