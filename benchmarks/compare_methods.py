"""Every compression method on four models: the tables of the documentation.

    python benchmarks/compare_methods.py                         # all four, then docs/methods-compared.md
    python benchmarks/compare_methods.py --only sst2 --seconds 60
    python benchmarks/compare_methods.py --page                  # the page again, from the results that are there

Models: all-MiniLM-L6-v2 on docstring-to-code retrieval, MiniLM fine-tuned on SST-2, a small GPT-style decoder on English
novels, a small ViT on CIFAR-10. The last three are trained first (under ten minutes each) where they are not there yet.
A comparison takes about half an hour a model on two idle cores; a stopped one goes on with the next method.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import train_small_gpt
import train_small_vit
import train_sst2
from training import guarded

from lightformers import reproduce, tasks
from lightformers.bundle import Bundle, load
from lightformers.compare import advice, compare
from lightformers.compare.page import plain
from lightformers.errors import UserError
from lightformers.files import read_json, write_json, write_text
from lightformers.loading import packaged_model
from lightformers.slim import numbers as n
from lightformers.slim.progress import Progress

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "methods-compared.md"
TITLES = {
    "retrieval": "MiniLM, retrieval of code by its docstring",
    "sst2": "MiniLM, fine-tuned on SST-2",
    "gpt": "A small GPT-style decoder, English novels",
    "vit": "A small vision transformer, CIFAR-10",
}
INTRO = """# Which method should I use on my model?

Every compression method that can be used on a model, asked for the same size, with the same seconds of training on the
same data without labels (methods marked "labels" cannot do without them), scored on the same examples, which no method has
seen. `lightformers compare MODEL --task ... --data ...` makes this table for your own model: the ranking is not the same
for all, as those below show.

"Of the original" is the ratio of the metric (more is better) with a paired 95 % bootstrap interval. "Blocks" is the share
of the transformer blocks' bytes that is left, as stored. Speeds are times as fast as the original, both run in turn on this
machine: "torch" in eager fp32, which is how every method runs; "OpenVINO" as it comes, where plain transformers load the
result. Methods that store zeros or few bits without a fast kernel save space, not time.
"""


def subjects() -> dict[str, Callable[[], tuple[Bundle, Any]]]:
    """Name -> what gives the model and its task, trained first where it must be."""

    def sst2() -> tuple[Bundle, Any]:
        bundle = load(train_sst2.ready(train_sst2.FOLDER), task="text-classification")
        return bundle, train_sst2.sst2(bundle)

    def gpt() -> tuple[Bundle, Any]:
        bundle = load(train_small_gpt.ready(train_small_gpt.FOLDER), task="causal-lm")
        return bundle, train_small_gpt.books(reproduce.data("gutenberg_books"))

    def vit() -> tuple[Bundle, Any]:
        bundle = load(train_small_vit.ready(train_small_vit.FOLDER), task="image-classification")
        return bundle, train_small_vit.cifar(bundle)

    return {
        "retrieval": lambda: (load(packaged_model()), tasks.python_docs.default()),
        "sst2": sst2,
        "gpt": gpt,
        "vit": vit,
    }


def table(report: Mapping[str, Any]) -> str:
    """The rows of a report as Markdown, best quality first."""
    metric = report["task"]["metric"]
    head = ["method", "of the original", metric, "MB", "blocks", "torch", "OpenVINO", "loads in", "seconds"]
    original = report["original"]
    lines = [head, ["---", *["---:"] * 6, "---", "---:"]]
    lines.append(
        ["*the original*", "1", f"{n.quality(original['quality'])} {n.interval(original['quality'])}",
         f"{original['bytes'] / 1e6:.1f}", "100 %", "1", "1" if original["openvino"] else "–", "transformers", "–"]
    )  # fmt: skip
    for row in advice.done(report):
        marks = ("" if row["sized"] else " (own size)") + (" (labels)" if row["labels"] else "")
        lines.append(
            [
                f"`{row['name']}`{marks}", f"{n.ratio(row['ratio'])} {n.interval(row['ratio'])}", n.quality(row["quality"]),
                f"{row['bytes'] / 1e6:.1f}", f"{100 * row['blocks']:.0f} %", *(_speed(row, r) for r in ("torch", "openvino")),
                "transformers" if row["native"] else "lightformers", f"{row['seconds']:.0f}",
            ]
        )  # fmt: skip
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines)


def _speed(row: Mapping[str, Any], runtime: str) -> str:
    found = row.get(runtime)
    if not found:
        return "–"
    speed = found["speedup"]
    return f"{speed['estimate']:.2f} [{speed['low']:.2f}, {speed['high']:.2f}]"


def markdown(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """The whole page, from the reports that are there."""
    parts = ["<!-- Written by benchmarks/compare_methods.py. Do not edit. -->\n", INTRO]
    for name, report in reports.items():
        settings, machine = report["settings"], report["machine"]
        parts.append(f"## {TITLES[name]}\n")
        parts.append("".join(f"- {sentence}\n" for sentence in report["advice"]))
        parts.append(table(report) + "\n")
        reasons = "; ".join(f"`{r['name']}`: {r['reason']}" for r in advice.left_out(report))
        parts.append(f"Not in the table: {reasons}.\n" if reasons else "")
        parts.append(
            f"Asked for {settings['ratio']:.0%} of the blocks' bytes, {settings['seconds']:.0f} s of training each, "
            f"{report['original']['examples']} examples of the search split; {machine['cpu']}, "
            f"{machine['cores']['usable']} cores; {report['created'][:10]}, lightformers {report['version']}.\n"
        )
    return "\n".join(p for p in parts if p)


def place(name: str) -> Path:
    """Where a report is kept."""
    return HERE / "results" / f"compare-{name}.json"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only", choices=tuple(TITLES), action="append", help="this model; can be given again"
    )
    parser.add_argument("--ratio", type=float, default=0.5, help="share of the blocks' bytes that is left")
    parser.add_argument("--seconds", type=float, default=60.0, help="training of each method")
    parser.add_argument("--examples", type=int, default=400, help="examples that methods are scored on")
    parser.add_argument(
        "--rounds", type=int, default=7, help="how often original and method are timed, in turn"
    )
    parser.add_argument("--page", action="store_true", help="only write the page again")
    return parser.parse_args(arguments)


def write_page(to: Path = PAGE) -> None:
    """The page from all reports that are kept. Raises UserError where there is none."""
    reports = {name: read_json(place(name)) for name in TITLES if place(name).is_file()}
    if not reports:
        raise UserError(f"no comparison was made yet: there is no compare-*.json in {HERE / 'results'}")
    write_text(to, markdown(reports))
    print(f"written: {to}")


def main() -> None:
    given = parse()
    made = subjects()
    for name in () if given.page else given.only or TITLES:
        bundle, task = made[name]()
        out = Path("out") / f"compare-{name}-{given.ratio:g}-{given.seconds:g}s"
        result = compare(
            bundle, task, out=out, ratio=given.ratio, seconds=given.seconds, examples=given.examples,
            rounds=given.rounds,
            progress=Progress(f"compare: {name}"), command=f"python benchmarks/compare_methods.py --only {name}",
        )  # fmt: skip
        write_json(place(name), plain(result.report))
    write_page()


if __name__ == "__main__":
    sys.exit(guarded(main))
