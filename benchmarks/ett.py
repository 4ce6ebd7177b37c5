"""ETTh1 as the papers measure it: trained by their recipes, every test window counted, beside their figures.

    python benchmarks/ett.py --model tsmixer --horizon 96 --seeds 3 --threads 2
    python benchmarks/ett.py --model itransformer --horizon 192

Recipes are tables in the models' own files (`RECIPE`): windows, sizes and training of the official notebook or script. Every
(model, horizon, context, precision, seed) is a row of `results/ett.json`, written as soon as it is done; a row that is there
is not trained again. The page beside it gives the mean over seeds and its distance from the paper.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from training import guarded

import lightformers as lf
from lightformers import measure
from lightformers.bundle import Bundle
from lightformers.errors import UserError
from lightformers.files import read_json, write_json, write_text
from lightformers.tasks.forecasting import Forecasting, ett
from lightformers.train.forecasting import Epochs, evaluate, train

OUT = Path(__file__).parent / "results" / "ett.json"
_MODELS = "lightformers.models.forecasting"
#: Model -> where its recipe is, calendar marks or not, and {horizon: (MSE, MAE)} on ETTh1 as its paper prints them.
PAPERS: dict[str, tuple[str, bool, dict[int, tuple[float, float]]]] = {
    "tsmixer": (f"{_MODELS}.tsmixer", False, {96: (0.368, 0.398), 192: (0.399, 0.418)}),
    "itransformer": (
        f"{_MODELS}.itransformer", True,
        {96: (0.386, 0.405), 192: (0.441, 0.436), 336: (0.487, 0.458), 720: (0.503, 0.491)},
    ),
}  # fmt: skip
#: The target: the mean over seeds is so near to the paper's MSE, or below it.
WITHIN = 3.0
Say = Callable[[str], None]


def recipe(model: str, horizon: int) -> dict[str, Any]:
    """The preset, the context, and the settings of `Epochs`. Raises UserError where there is none."""
    table: dict[int, dict[str, Any]] = importlib.import_module(PAPERS[model][0]).RECIPE
    if horizon not in table:
        raise UserError(f"{model} has recipes for horizons {', '.join(map(str, table))}, not {horizon}")
    return dict(table[horizon])


def bundle(model: str, preset: str, task: Forecasting, seed: int) -> Bundle:
    """The untrained model with its processor."""
    torch.manual_seed(seed)
    made = lf.create_model(preset, context_length=task.context, prediction_length=task.horizon)
    return Bundle(made, task.processor(marks=PAPERS[model][1]), "forecasting")


def one(
    model: str, task: Forecasting, given: dict[str, Any], seed: int, precision: str = "fp32", say: Say = print
) -> dict[str, Any]:
    """Train and score one seed. given: of `recipe`."""
    ready = bundle(model, given["preset"], task, seed)
    kept = {k: v for k, v in given.items() if k not in ("preset", "context")}
    settings = Epochs(**kept, precision=precision, seed=seed)  # type: ignore[arg-type]

    def told(row: dict[str, Any]) -> None:
        if "mse" in row:
            say(
                f"{model} {task.horizon} seed {seed}: epoch {row['epoch']:.0f}, loss {row['loss']:.4f}, "
                f"validation {row['mse']:.4f}, {row['seconds']:.0f} s"
            )

    trained = train(ready, task, settings, told)
    found = evaluate(ready, task)
    row = {
        "model": model, "horizon": task.horizon, "context": task.context, "seed": seed, "precision": precision,
        "threads": torch.get_num_threads(), "parameters": ready.parameters, **found, "epochs": trained.epochs,
        "best_epoch": trained.best_epoch, "seconds": round(trained.seconds, 1), "history": trained.history,
        "recipe": given,
    }  # fmt: skip
    if paper := PAPERS[model][2].get(task.horizon):
        row |= {"paper": {"mse": paper[0], "mae": paper[1]}, "percent": 100 * (found["mse"] / paper[0] - 1)}
    return row


def name_of(row: dict[str, Any]) -> str:
    return "{model} {horizon} {context} {precision} {seed}".format(**row)


def markdown(result: dict[str, Any]) -> str:
    """The page: a line per model, horizon, context and precision."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in result["rows"].values():
        groups.setdefault((row["model"], row["horizon"], row["context"], row["precision"]), []).append(row)
    lines = [
        "# ETTh1", "", f"{result['machine']['cpu']}. Mean over seeds [lowest, highest]; all test windows, standardised values.",
        "", "| model | horizon | context | precision | seeds | MSE | paper | % | MAE | paper | epochs | seconds | threads |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for (model, horizon, context, precision), rows in sorted(groups.items()):
        paper = rows[0].get("paper")

        def mean(key: str, rows: list[dict[str, Any]] = rows) -> float:
            return sum(r[key] for r in rows) / len(rows)

        cells = [
            model, horizon, context, precision, len(rows),
            f"{mean('mse'):.4f} [{min(r['mse'] for r in rows):.4f}, {max(r['mse'] for r in rows):.4f}]",
            f"{paper['mse']:.3f}" if paper else "", f"{mean('percent'):+.1f}" if paper else "", f"{mean('mae'):.4f}",
            f"{paper['mae']:.3f}" if paper else "", f"{mean('epochs'):.1f}", f"{mean('seconds'):.0f}", rows[0]["threads"],
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, ""])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=tuple(PAPERS), default="tsmixer")
    parser.add_argument("--horizon", type=int, default=96)
    parser.add_argument("--context", type=int, help="another than the recipe's")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="another limit than the recipe's")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse(arguments)
    torch.set_num_threads(given.threads)
    settings = recipe(given.model, given.horizon)
    settings["context"] = given.context or settings["context"]
    settings["epochs"] = given.epochs or settings["epochs"]
    task = ett("etth1", given.horizon, settings["context"])
    for seed in range(given.seeds):
        result: dict[str, Any] = read_json(given.out) if given.out.is_file() else {"rows": {}}
        known = {
            "model": given.model,
            "horizon": given.horizon,
            "context": task.context,
            "precision": given.precision,
        }
        there = result["rows"].get(name_of({**known, "seed": seed}))
        if there and there["recipe"] == settings:
            print(f"{name_of(there)} is there: MSE {there['mse']:.4f}", flush=True)
            continue
        row = one(given.model, task, settings, seed, given.precision, partial(print, flush=True))
        result["rows"][name_of(row)] = row
        result["machine"], result["created"] = (
            measure.machine(),
            time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        write_json(given.out, result)
        write_text(given.out.with_suffix(".md"), markdown(result))
        print(
            f"{name_of(row)}: MSE {row['mse']:.4f}, MAE {row['mae']:.4f}, {row['seconds']:.0f} s", flush=True
        )


if __name__ == "__main__":
    sys.exit(guarded(partial(main, None)))
