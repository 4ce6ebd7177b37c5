"""What the documentation tells people to type exists: names of the library, commands, options."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
HAND_WRITTEN = ("index", "quickstart", "tasks", "recipes", "report", "architecture", "forecasting", "tabular")
PAGES = [ROOT / "docs" / f"{name}.md" for name in HAND_WRITTEN] + [
    ROOT / "CONTRIBUTING.md",
    ROOT / "README.md",
]
PAGES = [page for page in PAGES if page.is_file()]


def blocks(page: Path, *languages: str) -> Iterator[str]:
    for language, body in re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S):
        if language in languages:
            yield body


def named(dotted: str) -> Any:
    """What `lf.a.b` stands for."""
    import lightformers

    thing: Any = lightformers
    for name in dotted.split(".")[1:]:
        thing = getattr(thing, name)
    return thing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_parses_and_names_exist(page: Path) -> None:
    for code in blocks(page, "python"):
        tree = ast.parse(code)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightformers"):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
            if isinstance(node, ast.Attribute) and re.fullmatch(r"lf(\.\w+)+", ast.unparse(node)):
                named(ast.unparse(node))
            if isinstance(node, ast.Call) and re.fullmatch(r"lf(\.\w+)+", ast.unparse(node.func)):
                taken = inspect.signature(named(ast.unparse(node.func))).parameters
                free = any(p.kind is p.VAR_KEYWORD for p in taken.values())
                unknown = {str(k.arg) for k in node.keywords if k.arg} - taken.keys()
                assert free or not unknown, f"{ast.unparse(node)}: no {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page: Path) -> None:
    import typer

    from lightformers.cli import app

    root = typer.main.get_command(app)
    for code in blocks(page, "console", "bash", "sh"):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if not words or words[0] != "lightformers":
                continue
            command, rest = root, words[1:]
            while hasattr(command, "commands"):
                assert rest and rest[0] in command.commands, line
                command, rest = command.commands[rest[0]], rest[1:]
            known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help"}
            used = {word.partition("=")[0] for word in rest if word.startswith("--")}
            assert used <= known, f"{line}: no option {', '.join(sorted(used - known))}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_recipes_load(page: Path) -> None:
    from lightformers.steps import Recipe

    for code in blocks(page, "yaml"):
        if "lightformers" in yaml.safe_load(code):
            assert Recipe.from_yaml(Recipe.from_yaml(code).to_yaml()) == Recipe.from_yaml(code)
