"""A finding and an experiment to test with."""

from __future__ import annotations

import sys
import types

import pytest

from lightformers import reproduce
from lightformers.reproduce import Finding


def make_finding(slug: str = "omni-recon") -> Finding:
    return Finding(
        slug=slug,
        claim="A loses to B.",
        verdict="does not hold here",
        summary="B is lower by 0.1 [0.05, 0.15].",
        table=[
            reproduce.row("A", accuracy=[0.5, 0.7, 0.6], parameters=1234567),
            reproduce.row("B", accuracy=[0.4, 0.5, 0.6]),
        ],
        baseline="A",
        settings={"width": 32, "steps": 100},
        seeds=reproduce.seeds(),
        seconds=1.5,
        machine={"cores": 2},
        versions={"torch": "2.13"},
        limits="Tiny.",
        created="2026-01-01",
    )


@pytest.fixture
def finding() -> Finding:
    return make_finding()


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """An experiment of omni-recon that exists for the length of a test."""
    module = types.ModuleType("lightformers.reproduce.omni_recon")
    module.budgets = []  # type: ignore[attr-defined]

    def run(budget: float) -> Finding:
        module.budgets.append(budget)
        return make_finding()

    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(reproduce, "available", lambda: ["omni-recon"])
    return module
