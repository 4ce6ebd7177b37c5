"""`lightformers export`: write a model as a Hugging Face folder, and for OpenVINO or ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def export(
    model: Annotated[str, typer.Argument(help="Model folder or hub name.")],
    out_: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    runtime: Annotated[
        list[str] | None, typer.Option(help="Also for this runtime: openvino or onnx; can be given twice.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="fp32, bf16, int8 or int8-weights (the last three: openvino).")
    ] = "fp32",
    task: Annotated[str | None, typer.Option(help="Which head, where the config does not say.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Examples to calibrate int8 with and to check the result on.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="Column of the data that holds the text.")] = None,
    text_pair: Annotated[str | None, typer.Option(help="Column of the second text.")] = None,
    allow_custom: Annotated[
        bool, typer.Option("--allow-custom", help="Allow a form that only lightformers.load opens.")
    ] = False,
    check: Annotated[bool, typer.Option(help="Open the result in a fresh process and compare.")] = True,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that the model brings.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> int:
    """Write a model so that others can open it, and check that they can.

    Exit code 1 if a written form does not open or does not give the same outputs.
    """
    from lightformers import export as room
    from lightformers.bundle import load
    from lightformers.cli.console import err, out, show_json
    from lightformers.errors import UserError
    from lightformers.steps import Deploy

    runtimes = runtime or []
    if strange := sorted(set(runtimes) - {"openvino", "onnx"}):
        raise UserError(f"runtime {strange[0]!r} is not one of openvino, onnx")
    if precision != "fp32" and not runtimes:
        raise UserError("a precision needs a runtime: give --runtime openvino (or onnx)")
    bundle = load(model, task, trust_remote_code)
    examples = _examples(bundle, data, text, text_pair)
    reasons = room.save(bundle, out_, allow_custom)
    if reasons:
        err.print(f"opens with lightformers.load only: {'; '.join(reasons[:3])}", markup=False)
    written: dict[str, Any] = {"folder": str(out_), "custom": reasons, "graphs": [], "reload": []}
    for name in runtimes:
        if name == "openvino":
            made = room.save_openvino(bundle, Deploy("openvino", precision), out_, examples)  # type: ignore[arg-type]
        else:
            made = room.save_onnx(bundle, Deploy("onnxruntime", precision), out_, examples)  # type: ignore[arg-type]
        written["graphs"].append(
            {"path": str(made.path), "size_bytes": made.size, "method": made.method, "note": made.note}
        )
    room.write_card(bundle, out_)
    if check:
        written["reload"] = room.check(out_, examples or _probes(bundle), bundle)
    if json_:
        show_json(written)
    else:
        out.print(f"{out_}: {bundle.parameters / 1e6:.1f} million parameters", markup=False)
        for graph in written["graphs"]:
            out.print(
                f"{graph['path']}: {graph['size_bytes'] / 1e6:.1f} MB, {graph['method']} {graph['note']}",
                markup=False,
            )
        for found in written["reload"]:
            speed = f", {found['throughput']:.0f} examples/s" if found["throughput"] else ""
            out.print(
                f"{'ok  ' if found['ok'] else 'FAIL'} {found['format']}: {found['note']}{speed}", markup=False
            )
    return 0 if all(found["ok"] for found in written["reload"]) else 1


def _examples(bundle: Any, data: str | None, text: str | None, text_pair: str | None) -> list[dict[str, Any]]:
    """At most 64 examples of the data, inputs only."""
    if data is None:
        return []
    if bundle.task == "image-classification":
        from lightformers.tasks.base import from_data

        return [dict(e) for e in from_data(bundle.task, data, bundle=bundle).calibration(64)]
    from lightformers.errors import DataError
    from lightformers.tasks.data import missing, read

    table = next(iter(read(data, conll=bundle.task == "token-classification").values()))
    if not table.rows:
        raise DataError(f"{data} holds no examples")
    if "words" in table.columns and text is None:
        return [{"words": list(words)} for words in table.column("words")[:64] if words]
    column = text or next(
        (c for c in ("text", "sentence", "query", "document") if c in table.columns), "text"
    )
    columns = [table.column(column, "text")] + ([table.column(text_pair, "text-pair")] if text_pair else [])
    rows = [row for row in zip(*columns) if not any(map(missing, row))][:64]
    return [dict(zip(("text", "text_pair"), map(str, row))) for row in rows]


def _probes(bundle: Any) -> list[dict[str, Any]]:
    """Something to compare outputs on where no data was given."""
    if bundle.task == "image-classification":
        import numpy as np

        rng = np.random.default_rng(0)
        return [{"image": rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)} for _ in range(8)]
    words = [
        "the",
        "model",
        "reads",
        "these",
        "few",
        "plain",
        "words",
        "in",
        "many",
        "orders",
        "and",
        "gives",
        "its",
        "answer",
    ]
    return [{"text": " ".join((words * 3)[i : i + 3 + 2 * i])} for i in range(12)]
