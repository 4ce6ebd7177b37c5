"""Write everything that is derived from the catalogue, the code and the findings.

    python scripts/generate_docs.py            # write
    python scripts/generate_docs.py --check    # write nothing; exit 1 and name what is out of date

Written: the packaged status of the papers, docs/papers/ (the catalogue), docs/methods/ (one page per paper that
works), docs/api/ (one page per room), docs/cli.md, results/README.md. None of these is edited by hand.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from lightformers import papers  # noqa: E402
from lightformers.files import write_text  # noqa: E402
from lightformers.papers import standing  # noqa: E402
from lightformers.reproduce import Finding, plots  # noqa: E402
from lightformers.reproduce.table import cell, columns  # noqa: E402

NOTE = "<!-- Written by scripts/generate_docs.py. Do not edit. -->\n\n"
#: Folders in which every page is ours: one that is not written any more is stale.
OWNED = ("docs/papers", "docs/methods", "docs/api")
FAMILIES = {
    "biosignal": "Biosignals", "graph": "Graphs", "tabular": "Tables", "forecasting": "Time series",
    "domain": "Languages and fields", "survey": "Surveys", "multimodal": "Images and language",
    "distributed": "Many devices", "pretraining": "Pre-training",
}  # fmt: skip


def pages(root: Path) -> dict[str, str]:
    """Every derived file: path from `root` -> text."""
    works = [paper for paper in papers.all() if papers.status(paper, root) == "works"]
    found = {
        file.stem: Finding.read(file.stem, file.parent) for file in sorted((root / "results").glob("*.json"))
    }
    out = {
        "src/lightformers/papers/status.json": json.dumps({"works": sorted(p.slug for p in works)}, indent=2)
        + "\n",
        "docs/papers/index.md": catalogue(root, found),
        "docs/methods/index.md": methods_index(works, found),
        "results/README.md": results_readme(found),
        "docs/cli.md": command_line(),
        "docs/steps.md": steps(),
    }
    out |= {f"docs/methods/{paper.slug}.md": method(paper, root, found[paper.slug]) for paper in works}
    return out | api(root / "src" / "lightformers")


def table(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return (
        "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)
        + "\n"
    )


def catalogue(root: Path, found: Mapping[str, Finding]) -> str:
    """The table of all papers, family by family."""
    states = {paper.slug: papers.status(paper, root) for paper in papers.all()}
    works = sum(state == "works" for state in states.values())
    text = NOTE + "# The catalogue\n\n"
    text += (
        f"{len(states)} papers; {works} of them work. A paper *works* when its code, its tests and a finding all "
        "stand in the repository; this is computed. Everything else is *planned*: its record names the file "
        "where it will be.\n"
    )
    for family in papers.FAMILIES:
        text += f"\n## {FAMILIES.get(family, family.capitalize())}\n\n"
        rows = []
        for paper in papers.select(family=family):
            name = f"`{paper.slug}`"
            if states[paper.slug] == "works":
                name = f"[{name}](../methods/{paper.slug}.md)"
            title = f"[{paper.title}]({paper.url})" if paper.url else paper.title
            state = f"works: {found[paper.slug].verdict}" if states[paper.slug] == "works" else "planned"
            rows.append([name, f"{title}<br>{paper.summary}", str(paper.year), paper.kind, state])
        text += table(["name", "paper", "year", "kind", "status"], rows)
    return text


def methods_index(works: list[papers.Paper], found: Mapping[str, Finding]) -> str:
    text = (
        NOTE
        + "# Methods\n\nEvery paper whose code, tests and finding stand, with what its experiment found.\n\n"
    )
    if not works:
        return text + "None yet.\n"
    rows = [
        [f"[{p.slug}]({p.slug}.md)", p.summary, found[p.slug].verdict, found[p.slug].summary] for p in works
    ]
    return text + table(["method", "what it does", "verdict", "what was seen"], rows)


def method(paper: papers.Paper, root: Path, finding: Finding) -> str:
    """One method: record, documentation of its code, finding."""
    module, _, name = paper.part.partition(":")
    source = f"*{paper.title}*, {paper.year}" + (f", [arXiv {paper.arxiv}]({paper.url})" if paper.url else "")
    return (
        f"{NOTE}# {paper.slug}\n\n{paper.summary}\n\n{source}\n\n"
        f"## Code\n\n::: {module}.{name}\n    options:\n      heading_level: 3\n\n"
        f"## Finding: {finding.verdict}\n\n**Claim.** {finding.claim}\n\n**Seen.** {finding.summary}\n\n"
        f"{finding_table(finding)}\n{plots.figures(finding)}{finding_facts(finding)}\n\n**Limits.** {finding.limits}\n\n"
        f"Run it again: `lightformers reproduce {paper.slug}`\n"
    )


def finding_table(finding: Finding) -> str:
    headings = columns(finding.table)
    rows = [[cell(row.get(heading)) for heading in headings] for row in finding.table]
    note = "\nMean and 95 % interval over seeds (Student's t).\n" if len(finding.seeds) > 1 else ""
    return table([heading.replace("_", " ") for heading in headings], rows) + note


def finding_facts(finding: Finding) -> str:
    def flat(facts: Mapping[str, Any]) -> str:
        return ", ".join(
            f"{k.replace('_', ' ')} {cell(v) if isinstance(v, Mapping | str) else json.dumps(v)}"
            for k, v in facts.items()
        )

    seeds = f"; seeds {', '.join(map(str, finding.seeds))}" if finding.seeds else ""
    return (
        f"**Settings.** {flat(finding.settings)}; baseline: {finding.baseline}{seeds}.\n\n"
        f"**Run.** {finding.created}, {finding.seconds:.0f} s; {flat(finding.machine)}; {flat(finding.versions)}."
    )


def results_readme(found: Mapping[str, Finding]) -> str:
    text = NOTE + (
        "# Findings\n\nWhat the experiments of `lightformers reproduce` measured, one JSON file per paper: claim, "
        "verdict, every arm with every seed, settings, machine and versions. A finding against a paper is as "
        "welcome as one for it. Make one anew with `lightformers reproduce SLUG`, then run "
        "`python scripts/generate_docs.py`.\n\n"
    )
    rows = [
        [f"[{slug}]({slug}.json)", f.claim, f.verdict, f.summary, f"{f.seconds:.0f}"]
        for slug, f in found.items()
    ]
    return text + (
        table(["paper", "claim", "verdict", "what was seen", "seconds"], rows) if rows else "None yet.\n"
    )


def api(package: Path) -> dict[str, str]:
    """One page per room, with every module of it that defines something public."""
    out: dict[str, str] = {}
    rows: list[list[str]] = []
    for room in sorted([*package.glob("*.py"), *(p.parent for p in package.glob("*/__init__.py"))]):
        if room.stem.startswith("_") or room.stem == "cli":
            continue
        modules = [m for m in modules_of(room) if members(m) or m.stem == "__init__"]
        if not any(members(m) for m in modules):
            continue
        text = f"{NOTE}# lightformers.{room.stem}\n"
        for file in modules:
            parts = file.relative_to(package.parent).with_suffix("").parts
            dotted = ".".join(part for part in parts if part != "__init__")
            shown = json.dumps(members(file))  # named, or a room would show what it re-exports a second time
            text += f"\n::: {dotted}\n    options:\n      members: {shown}\n"
        out[f"docs/api/{room.stem}.md"] = text
        first = room if room.is_file() else room / "__init__.py"
        said = (ast.get_docstring(ast.parse(first.read_text("utf-8"))) or "").split("\n\n")[0]
        rows.append([f"[lightformers.{room.stem}]({room.stem}.md)", said.replace("\n", " ")])
    intro = "# API\n\nOne page per room, from the docstrings. Imports go downwards only: see [architecture](../architecture.md).\n\n"
    return out | {"docs/api/index.md": NOTE + intro + table(["room", "what it holds"], rows)}


def modules_of(room: Path) -> Iterator[Path]:
    """The importable modules of a room: templates that happen to be Python are none."""
    if room.is_file():
        yield room
        return
    for file in sorted(room.rglob("*.py")):
        if (file.parent / "__init__.py").is_file() and (
            file.stem == "__init__" or not file.stem.startswith("_")
        ):
            yield file


def members(file: Path) -> list[str]:
    """The public classes and functions that a module defines."""
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        n for n, d in standing.definitions(file).items() if not n.startswith("_") and isinstance(d, kinds)
    ]


def steps() -> str:
    """What `--steps` of slim may name, from the table that slim and compare choose from."""
    from lightformers.compress.methods import METHODS

    text = NOTE + (
        "# Methods to choose from\n\n`lightformers slim --steps minitron,minilm,llm-int8` searches over these methods and no "
        "others, `--exclude` leaves some out. Unnamed, the search takes the cuts that reload natively; with time for it "
        "(a budget of twenty minutes or more) also `minitron`; with `--allow-custom` every method that makes the model "
        "faster without training, and with `--goal size` those that only make it smaller. Named methods take part even if "
        "they train: they enter the recovery rounds. Quantizers are tried on the finalists. `minilm` makes recovery begin "
        "with relations of attention; `recover` is always there.\n\n"
    )
    rows = []
    for method in METHODS:
        needs = [n for n, on in (("training", method.needs_training), ("labels", method.needs_labels)) if on]
        loads = "plain transformers" if method.native else "`lightformers.load`"
        rows.append([f"`{method.name}`", method.kind, ", ".join(needs) or "data", loads, method.speed])
    return text + table(["name", "kind", "needs", "result loads in", "speed"], rows)


def command_line() -> str:
    """The reference of all commands, from the command line's own help."""
    import typer

    from lightformers.cli import app

    text = NOTE + (
        "# Command line\n\nEvery command takes `--help`. Results go to stdout, errors to stderr. Exit status: 0 done, "
        "2 something that you can mend, 3 nothing reached the floor, 130 stopped.\n"
    )
    for path, command in sorted(commands("lightformers", typer.main.get_command(app))):
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        shown = (placeholder(p) if p.required else f"[{placeholder(p)}]" for p in arguments)
        usage = " ".join([path, *shown])
        text += f"\n## {path}\n\n```\n{usage} [OPTIONS]\n```\n\n{inspect.cleandoc(command.help or '')}\n\n"
        rows = [option(p) for p in command.params if p.name != "help"]
        text += table(["option", "default", "what it does"], rows) if rows else ""
    return text


def commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from commands(f"{path} {name}", inner)
    elif not command.hidden:
        yield path, command


def placeholder(argument: Any) -> str:
    return argument.name.strip("_").upper()


def option(parameter: Any) -> list[str]:
    is_option = parameter.param_type_name == "option"
    names = ", ".join(f"`{n}`" for n in (*parameter.opts, *parameter.secondary_opts)) if is_option else None
    default = "required" if parameter.required else parameter.default
    shown = "" if default is None or default is False or callable(default) else f"{default}"
    return [
        names or f"`{placeholder(parameter)}`",
        shown,
        (getattr(parameter, "help", "") or "").replace("\n", " "),
    ]


def out_of_date(root: Path, wanted: Mapping[str, str]) -> list[str]:
    """Paths whose file differs from `wanted`, is missing, or is not wanted any more."""
    differ = [
        path
        for path, text in wanted.items()
        if not (root / path).is_file() or (root / path).read_text("utf-8") != text
    ]
    return sorted(differ + stale(root, wanted))


def stale(root: Path, wanted: Mapping[str, str]) -> list[str]:
    there = (file for folder in OWNED for file in (root / folder).glob("*.md"))
    return [path for file in there if (path := file.relative_to(root).as_posix()) not in wanted]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if anything is out of date"
    )
    check = parser.parse_args().check
    wanted = pages(ROOT)
    wrong = out_of_date(ROOT, wanted)
    if check:
        for path in wrong:
            print(f"out of date: {path}", file=sys.stderr)
        return 1 if wrong else 0
    for path in wrong:
        if path in wanted:
            write_text(ROOT / path, wanted[path])
        else:
            (ROOT / path).unlink()
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
