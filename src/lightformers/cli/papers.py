"""`lightformers papers`: the catalogue."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lightformers.papers import Paper

app = typer.Typer(no_args_is_help=True, help="The catalogue of papers.")

_Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.command("list")
def list_papers(
    family: Annotated[str | None, typer.Option(help="Only this family, such as compression.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only system, study, benchmark or survey.")] = None,
    status: Annotated[str | None, typer.Option(help="Only works or planned.")] = None,
    json_: _Json = False,
) -> None:
    """List the papers, with their computed status."""
    from lightformers import papers
    from lightformers.cli.console import out, show_json

    found = [(paper, papers.status(paper)) for paper in papers.select(family, kind, status)]
    if json_:
        show_json([_record(paper) | {"status": state} for paper, state in found])
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("paper", "family", "kind", "status"):
        table.add_column(heading, no_wrap=True)
    table.add_column("what it does", overflow="fold")
    for paper, state in found:
        table.add_row(paper.slug, paper.family, paper.kind, state, paper.summary)
    out.print(table)
    works = sum(state == "works" for _, state in found)
    out.print(f"\n{len(found)} papers, {works} of them work here.")


@app.command("show")
def show_paper(
    slug: Annotated[str, typer.Argument(help="The paper's name, as `papers list` prints it.")],
    json_: _Json = False,
) -> None:
    """Show one paper: its record, the documentation of its code, and what its experiment found."""
    from lightformers import papers, reproduce
    from lightformers.cli.console import out, show_json

    paper = papers.get(slug)
    evidence = papers.evidence(paper)
    has_finding = (reproduce.results() / f"{slug}.json").is_file()
    finding = reproduce.Finding.read(slug, reproduce.results()) if has_finding else None
    text = papers.docstring(paper) if evidence.code else None
    if json_:
        said = _record(paper) | {
            "status": evidence.status,
            "evidence": asdict(evidence),
            "documentation": text,
        }
        show_json(said | {"finding": finding.to_json() if finding else None})
        return

    def say(line: str = "", style: str | None = None) -> None:
        out.print(line, style=style, markup=False)

    say(paper.title, "bold")
    say(f"{paper.slug}, {paper.family} {paper.kind}, {paper.year}" + (f", {paper.url}" if paper.url else ""))
    say(f"\n{paper.summary}\n")
    stands = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in asdict(evidence).items())
    say(f"status      {evidence.status} ({stands})")
    say(f"code        {paper.part}")
    say(f"experiment  lightformers reproduce {paper.slug}")
    if text:
        say(f"\n{text}")
    if finding:
        say(f"\nClaim: {finding.claim}")
        say(f"Finding: {finding.verdict}. {finding.summary}")
        say(f"Limits: {finding.limits}")


def _record(paper: Paper) -> dict[str, Any]:
    return asdict(paper) | {"reproduction": paper.reproduction, "url": paper.url}
