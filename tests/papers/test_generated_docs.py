"""The generator of the documentation, on a small tree."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import types
from pathlib import Path

import pytest

from lightformers import papers
from lightformers.reproduce import Finding, plots, row

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "generate_docs.py"


@pytest.fixture(scope="module")
def generate() -> types.ModuleType:
    if not SCRIPT.is_file():
        pytest.skip("not a checkout: the generator is not there")
    spec = importlib.util.spec_from_file_location("generate_docs", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.fixture
def tree(tmp_path: Path, generate: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(generate, "command_line", lambda: "commands\n")
    write(tmp_path, "src/lightformers/compress/__init__.py", '"""Steps that\nmake small."""\n')
    write(tmp_path, "src/lightformers/compress/fold/__init__.py", '"""Folds."""\n')
    write(
        tmp_path,
        "src/lightformers/compress/fold/pre_crmsnorm.py",
        '"""Norms."""\n\n\nclass ToRMSNorm:\n    """Exact."""\n',
    )
    write(tmp_path, "src/lightformers/compress/rows.py", '"""Data."""\nROWS = ()\n')
    write(tmp_path, "src/lightformers/compress/templates/page.py", "def render(): ...\n")
    write(tmp_path, "tests/test_pre_crmsnorm.py", "def test_equal(): ...\n")
    Finding(
        slug="pre-crmsnorm",
        claim="Equal outputs | always.",
        verdict="holds here",
        summary="The difference is 1e-7.",
        table=[row("LayerNorm", seconds=[1.0, 1.2, 1.1]), row("RMSNorm", seconds=[0.9, 1.0, 0.8])],
        baseline="LayerNorm",
        settings={"width": 32},
        seeds=[0, 1, 2],
        seconds=3,
        machine={"cores": 2},
        versions={"torch": "2"},
        limits="Tiny.",
        created="2026-01-01",
    ).write(tmp_path / "results")
    return tmp_path


def test_pages_say_what_stands(generate: types.ModuleType, tree: Path) -> None:
    pages = generate.pages(tree)
    page = pages["docs/methods/pre-crmsnorm.md"]
    assert "::: lightformers.compress.fold.pre_crmsnorm.ToRMSNorm" in page and "Finding: holds here" in page
    assert "| RMSNorm | 0.9 [0.6516, 1.148] |" in page
    assert [path for path in pages if path.startswith("docs/methods/")] == [
        "docs/methods/index.md",
        "docs/methods/pre-crmsnorm.md",
    ]
    assert json.loads(pages["src/lightformers/papers/status.json"]) == {"works": ["pre-crmsnorm"]}
    assert "Equal outputs \\| always." in pages["results/README.md"]
    api = pages["docs/api/compress.md"]
    assert (
        "::: lightformers.compress.fold.pre_crmsnorm" in api and "rows" not in api and "templates" not in api
    )
    assert "Steps that make small." in pages["docs/api/index.md"]


def test_curves_of_a_finding_are_drawn(generate: types.ModuleType, tree: Path) -> None:
    """In one line of HTML, so that Markdown does not read it; without curves there is no figure."""
    assert "<figure>" not in generate.pages(tree)["docs/methods/pre-crmsnorm.md"]
    finding = Finding.read("pre-crmsnorm", tree / "results")
    curves = plots.curves("width", "seconds", [8, 16], {"a_b*": [[1.0, 2.0], [2.0, 2.5]]})
    dataclasses.replace(finding, plots={"Time & width": curves}).write(tree / "results")
    page = generate.pages(tree)["docs/methods/pre-crmsnorm.md"]
    line = next(line for line in page.splitlines() if line.startswith("<figure>"))
    assert (
        line.endswith("</figure>") and "<svg" in line and "Time &amp; width. Bars" in line and "a_b*" in line
    )


def test_the_catalogue_page_has_every_paper(generate: types.ModuleType, tree: Path) -> None:
    page = generate.pages(tree)["docs/papers/index.md"]
    assert all(f"`{paper.slug}`" in page for paper in papers.all())
    assert page.count("| planned |") == len(papers.all()) - 1
    assert "167 papers; 1 of them work" in page and "works: holds here" in page


def test_check_finds_missing_changed_and_stale_pages(generate: types.ModuleType, tree: Path) -> None:
    wanted = generate.pages(tree)
    assert generate.out_of_date(tree, wanted) == sorted(wanted)
    for path, text in wanted.items():
        write(tree, path, text)
    assert generate.out_of_date(tree, wanted) == []
    write(tree, "docs/methods/pre-crmsnorm.md", "edited by hand")
    write(tree, "docs/methods/gone.md", "a method that no longer works")
    assert generate.out_of_date(tree, wanted) == ["docs/methods/gone.md", "docs/methods/pre-crmsnorm.md"]
    (tree / "results" / "pre-crmsnorm.json").unlink()
    later = generate.pages(tree)
    assert "docs/methods/pre-crmsnorm.md" in generate.out_of_date(tree, later)
    assert json.loads(later["src/lightformers/papers/status.json"]) == {"works": []}


def test_options_are_listed(generate: types.ModuleType) -> None:
    import typer

    app = typer.Typer()

    @app.command()
    def first(
        model: str = typer.Argument(help="A folder."),
        floor: float = typer.Option(0.99, help="Least quality."),
        json_: bool = typer.Option(False, "--json", help="Print JSON."),
    ) -> None:
        """Make it small."""

    inner = typer.Typer()

    @inner.command("list")
    def list_all() -> None:
        """List all."""

    app.add_typer(inner, name="papers")
    found = dict(generate.commands("tool", typer.main.get_command(app)))
    assert found.keys() == {"tool first", "tool papers list"}
    rows = [generate.option(p) for p in found["tool first"].params if p.name != "help"]
    assert rows == [
        ["`MODEL`", "required", "A folder."],
        ["`--floor`", "0.99", "Least quality."],
        ["`--json`", "", "Print JSON."],
    ]


def test_fields_of_a_docstring_become_a_list() -> None:
    pytest.importorskip("griffe")
    script = SCRIPT.with_name("griffe_fields.py")
    spec = importlib.util.spec_from_file_location("griffe_fields", script)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = "What it does: much.\n\nlow, high: ends\n    of it. step: 1\nseed: of chance.\n\n    code: 1\n\nReturns: x"
    assert module.listed(text) == (
        "What it does: much.\n\n- **low, high**: ends\n  of it. step: 1\n- **seed**: of chance.\n\n    code: 1\n\nReturns: x"
    )
