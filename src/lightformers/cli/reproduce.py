"""`lightformers reproduce`: hold papers to their claims on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lightformers.reproduce import Finding


def reproduce(
    slug: Annotated[str | None, typer.Argument(help="The paper's name, as `papers list` prints it.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every experiment that is written.")] = False,
    budget: Annotated[float, typer.Option(help="Seconds that each experiment may take.")] = 300,
    out: Annotated[Path | None, typer.Option(help="Folder for the findings (default: results/).")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw the finding's curves into this .svg file.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Run the experiment of a paper and write what it found to results/SLUG.json.

    The verdict is "holds here", "does not hold here" or "inconclusive"; each is a result, so each ends with 0.
    """
    from lightformers import reproduce as room
    from lightformers.cli.console import show_json
    from lightformers.errors import UserError

    if all_ == (slug is not None):
        raise UserError("name one paper or give --all; `lightformers papers list` prints the names")
    if plot and (all_ or plot.suffix.lower() != ".svg"):
        raise UserError(
            f"--plot draws the curves of one paper into an .svg file, not into {plot}"
            + (" for --all" if all_ else "")
        )
    slugs = room.available() if all_ else [slug or ""]
    if not slugs:
        raise UserError("no experiment is written yet")
    folder = out or room.results()
    said: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for name in slugs:
        try:
            finding = room.run(name, budget_seconds=budget)
        except UserError as error:
            if not all_:
                raise
            failed[name] = str(error)  # with --all, one missing data set must not hide the other findings
            continue
        file = finding.write(folder)
        if plot:
            _draw(finding, plot)
        if json_:
            said.append(finding.to_json())
        else:
            _show(finding, file)
    if json_:
        show_json(said if all_ else said[0])
    if failed:
        raise UserError("not run: " + "; ".join(f"{name}: {why}" for name, why in failed.items()))


def _draw(finding: Finding, file: Path) -> None:
    from lightformers.errors import UserError
    from lightformers.files import write_text
    from lightformers.reproduce import plots

    curves = plots.drawable(finding.plots)
    if not curves:
        raise UserError(f"the finding of {finding.slug} is written, but it holds no curves to draw")
    write_text(file, plots.page(curves))


def _show(finding: Finding, file: Path) -> None:
    from rich.table import Table

    from lightformers.cli.console import out
    from lightformers.reproduce.table import cell, columns

    out.print(f"{finding.slug}: {finding.verdict}", style="bold", markup=False)
    out.print(f"Claim: {finding.claim}", markup=False)
    table = Table(box=None, pad_edge=False)
    headings = columns(finding.table)
    for heading in headings:
        table.add_column(heading)
    for row in finding.table:
        table.add_row(*(cell(row.get(heading)) for heading in headings))
    out.print(table)
    out.print(f"{finding.summary}\nLimits: {finding.limits}", markup=False)
    out.print(f"{finding.seconds:.0f} s; written to {file}\n", markup=False)
