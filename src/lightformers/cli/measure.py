"""`lightformers measure`: two models against each other, paired, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lightformers.bundle import Bundle, Example
    from lightformers.runners import Runner


def measure(
    a: Annotated[str, typer.Argument(metavar="A", help="A model folder, a hub name or an OpenVINO folder.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The model that is compared with it.")],
    data: Annotated[Path | None, typer.Option(help="File of texts (csv, tsv, jsonl, parquet, txt).")] = None,
    text: Annotated[str | None, typer.Option(help="Its column of texts.")] = None,
    examples: Annotated[int, typer.Option(min=1, help="How many examples make the workload.")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Most examples in a batch.")] = 32,
    rounds: Annotated[int, typer.Option(min=3, help="How often each is timed, in turn.")] = 7,
    runtime: Annotated[
        str | None, typer.Option(help="torch, openvino or onnxruntime; default: as recorded, else torch.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16, int8 or int8-weights; default: as recorded, else fp32.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Allow the models' own code to run.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Time A and B interleaved over the same texts, and say how many times faster B is, with an interval.

    Tokenization and padding count. Without --data, functions and docstrings of Python's standard library are the
    texts; models of images, series and tables are timed on made-up ones.
    """
    from lightformers.cli.console import show_json
    from lightformers.telemetry import silence

    silence()
    facts = _facts(
        (a, b), data, text, examples, batch, rounds, {"runtime": runtime, "precision": precision}, trust_remote_code
    )  # fmt: skip
    if json_:
        show_json(facts)
    else:
        _show(facts)


def _facts(
    names: tuple[str, str],
    data: Path | None,
    column: str | None,
    count: int,
    batch: int,
    rounds: int,
    asked: dict[str, Any],
    trust_remote_code: bool,
) -> dict[str, Any]:
    from lightformers import measure as room

    bundles = [_bundle(name, trust_remote_code) for name in names]
    load = _examples(bundles[0], data, column, count)
    runners = [_runner(n, b, asked, batch, load) for n, b in zip(names, bundles)]
    workload = room.Workload(load)
    try:
        old, new = room.time_runners(
            {"A": runners[0], "B": runners[1]}, workload, _rows, rounds=rounds
        ).values()
        few = load[:16]
        rows = []
        for name, runner, timing in zip(names, runners, (old, new)):
            one = room.latency(runner, few, _rows)
            speed = room.throughput(timing, workload, runner)
            rows.append(
                {
                    "model": name,
                    "deploy": str(runner.deploy),
                    **speed,
                    "seconds": {"min": timing.min, "median": timing.median, **timing.quantiles},
                    "latency_ms": {k: 1000 * one.quantiles[k] for k in ("p50", "p90")},
                    "size_bytes": room.size_on_disk(name) if Path(name).exists() else None,
                }
            )
        found = room.paired(old, new)
    finally:
        for runner in runners:
            runner.close()
    return {
        "models": rows,
        "speedup": {"ratio": found.estimate, "low": found.low, "high": found.high},
        "examples": len(load),
        "rounds": rounds,
        "machine": room.machine(),
    }


def _graphs(name: str) -> list[Path]:
    folder = Path(name)
    if folder.suffix == ".xml":
        return [folder]
    return sorted(folder.glob("*.xml")) if folder.is_dir() else []


def _bundle(name: str, trust_remote_code: bool) -> Bundle:
    """The bundle of a model; an OpenVINO folder has its tokenizer beside it or one folder up."""
    from lightformers.bundle import load
    from lightformers.errors import UserError

    if not _graphs(name):
        return load(name, trust_remote_code=trust_remote_code)
    folder = Path(name) if Path(name).is_dir() else Path(name).parent
    for place in (folder, folder.resolve().parent):
        if (place / "config.json").is_file() or (place / "modules.json").is_file():
            return load(place, trust_remote_code=trust_remote_code)
    raise UserError(
        f"{name} is an OpenVINO folder without a model folder around it: its tokenizer and pooling are unknown"
    )


def _runner(name: str, bundle: Bundle, asked: dict[str, Any], batch: int, examples: list[Example]) -> Runner:
    import dataclasses

    from lightformers import runners
    from lightformers.steps import Deploy

    if _graphs(name):
        return runners.openvino_folder(name, bundle)
    base = bundle.deploy or Deploy(batching="sorted", batch_size=batch)
    changed = {k: v for k, v in asked.items() if v is not None}
    return runners.build(bundle, dataclasses.replace(base, **changed), examples[:24])


def _examples(bundle: Bundle, data: Path | None, column: str | None, count: int) -> list[Example]:
    import numpy as np

    from lightformers.errors import UserError
    from lightformers.processors import Processor

    if getattr(bundle.model, "main_input_name", "") == "pixel_values":
        if data is not None:
            raise UserError(
                "--data takes texts; models of images are timed on noise, which costs them the same"
            )
        noise = np.random.default_rng(0)
        return [{"image": noise.integers(0, 256, (224, 224, 3), dtype=np.uint8)} for _ in range(count)]
    if isinstance(bundle.processor, Processor):
        if data is not None:
            raise UserError(
                "--data takes texts; models of series and tables are timed on made-up rows, which cost them the same"
            )
        return [*bundle.processor.samples(count)]
    if data is None:
        from lightformers.tasks import python_docs

        pairs = python_docs.collect(python_docs.installed()[:1], limit=(count + 1) // 2)
        texts = [pair[key] for pair in pairs for key in ("query", "document")][:count]
    else:
        texts = _column(data, column)[:count]
    return [{"text": t} for t in texts]


def _column(data: Path, column: str | None) -> list[str]:
    from lightformers.errors import UserError
    from lightformers.tasks.data import read_file

    if not data.is_file():
        raise UserError(f"there is no file {data}")
    rows = read_file(data)
    name = column or ("text" if "text" in rows.columns or len(rows.columns) != 1 else rows.columns[0])
    texts = [str(v) for v in rows.column(name, "--text") if v is not None and str(v).strip()]
    if not texts:
        raise UserError(f"column {name} of {data} holds no text")
    return texts


def _rows(outputs: Any, batch: Any) -> list[int]:
    """What is timed is the model: outputs are taken, not looked at."""
    return list(range(len(next(iter(batch.inputs.values())))))


def _show(facts: dict[str, Any]) -> None:
    from rich.table import Table

    from lightformers.cli.console import out

    table = Table("", "model", "run as", "examples/s", "tokens/s", "latency p50 / p90", "size")
    for letter, row in zip("AB", facts["models"]):
        size = f"{row['size_bytes'] / 1e6:.1f} MB" if row["size_bytes"] else "-"
        table.add_row(
            letter, row["model"], row["deploy"], f"{row['examples_per_second']:.1f}", f"{row['tokens_per_second']:.0f}",
            f"{row['latency_ms']['p50']:.1f} / {row['latency_ms']['p90']:.1f} ms", size,
        )  # fmt: skip
    out.print(table)
    found = facts["speedup"]
    sure = "" if found["low"] <= 1 <= found["high"] else (" (faster)" if found["low"] > 1 else " (slower)")
    out.print(
        f"B runs {found['ratio']:.2f}x as fast as A [{found['low']:.2f}, {found['high']:.2f}]{sure}: median of "
        f"{facts['rounds']} interleaved rounds over {facts['examples']} examples, 95 % bootstrap interval."
    )
