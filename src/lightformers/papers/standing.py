"""Whether a paper works: computed from what stands in the tree, never typed.

A paper works when its code, its tests and a finding all stand. In a checkout the three are looked for; an
installed package has neither tests nor results and reads `status.json`, which `scripts/generate_docs.py`
writes and a test holds to the truth.
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightformers.papers.record import Paper

Status = Literal["works", "planned"]
PACKAGED = Path(__file__).with_name("status.json")


@dataclass(frozen=True)
class Evidence:
    """What of a paper stands: its code, its tests, a finding."""

    code: bool
    tests: bool
    finding: bool

    @property
    def status(self) -> Status:
        return "works" if self.code and self.tests and self.finding else "planned"


def checkout() -> Path | None:
    """The root of the checkout that this package runs from, or None if it is installed without one."""
    here = Path(__file__).resolve()
    root = here.parents[3]
    inside = here.parts[-4:-1] == ("src", "lightformers", "papers")
    return root if inside and (root / "pyproject.toml").is_file() else None


def status(paper: Paper, root: Path | None = None) -> Status:
    """ "works" if code, tests and finding of `paper` all stand under `root`, else "planned".

    root: of a checkout; by default the one that this package runs from. Without any, the packaged record.
    """
    return evidence(paper, root).status


def evidence(paper: Paper, root: Path | None = None) -> Evidence:
    """What of `paper` stands under `root` (default: as in `status`)."""
    root = root or checkout()
    if root is None:
        works = paper.slug in _packaged()
        return Evidence(code=works, tests=works, finding=works)
    return Evidence(
        code=has_code(paper, root), tests=has_tests(paper, root), finding=has_finding(paper, root)
    )


def has_code(paper: Paper, root: Path) -> bool:
    """Whether the file that `paper.part` names defines the name. Nothing is imported."""
    file = source(paper.part, root / "src")
    return file is not None and paper.part.partition(":")[2] in definitions(file)


def has_tests(paper: Paper, root: Path) -> bool:
    """Whether a file `test_NAME.py` under tests/ defines at least one test."""
    return any(
        name.startswith(("test_", "Test"))
        for file in (root / "tests").rglob(f"test_{paper.name}.py")
        for name in definitions(file)
    )


def has_finding(paper: Paper, root: Path) -> bool:
    """Whether results/ holds a finding of this paper with a verdict."""
    file = root / "results" / f"{paper.slug}.json"
    if not file.is_file():
        return False
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(said, dict) and said.get("slug") == paper.slug and bool(said.get("verdict"))


def source(part: str, src: Path) -> Path | None:
    """The file of the module that `part` ("module:Name") names, or None if there is none."""
    stem = src.joinpath(*part.partition(":")[0].split("."))
    return next((file for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file()), None)


def definitions(file: Path) -> dict[str, ast.AST]:
    """Names that the top level of a Python file defines (classes, functions, assignments), with their nodes."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except SyntaxError:
        return {}
    found: dict[str, ast.AST] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found.update({target.id: node for target in node.targets if isinstance(target, ast.Name)})
        elif isinstance(node, ast.AnnAssign) and node.value is not None and isinstance(node.target, ast.Name):
            found[node.target.id] = node
    return found


def docstring(paper: Paper) -> str | None:
    """The docstring of the paper's code, read without importing it; None where there is none yet."""
    name = paper.part.partition(":")[2]
    file = source(paper.part, Path(__file__).resolve().parents[2])
    if file is None:
        return None
    node = definitions(file).get(name)
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return ast.get_docstring(node)
    return None


def _packaged() -> frozenset[str]:
    if not PACKAGED.is_file():
        return frozenset()
    return frozenset(json.loads(PACKAGED.read_text(encoding="utf-8"))["works"])
