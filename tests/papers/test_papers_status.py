"""Status is computed from what stands in the tree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightformers import papers
from lightformers.papers import standing

PAPER = papers.get("pre-crmsnorm")  # lightformers.compress.fold.pre_crmsnorm:ToRMSNorm


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write(
        tmp_path,
        "src/lightformers/compress/fold/pre_crmsnorm.py",
        "import nowhere_at_all\n\nclass ToRMSNorm: ...\n",
    )
    write(tmp_path, "tests/compress/test_pre_crmsnorm.py", "def test_equal(): ...\n")
    finding = json.dumps({"slug": "pre-crmsnorm", "verdict": "holds here"})
    write(tmp_path, "results/pre-crmsnorm.json", finding)
    return tmp_path


def test_all_three_stand_and_nothing_is_imported(tree: Path) -> None:
    assert papers.status(PAPER, tree) == "works"
    assert papers.evidence(PAPER, tree) == papers.Evidence(code=True, tests=True, finding=True)
    assert papers.status(papers.get("minilm"), tree) == "planned"


@pytest.mark.parametrize(
    "path, text, missing",
    [
        ("src/lightformers/compress/fold/pre_crmsnorm.py", None, "code"),
        (
            "src/lightformers/compress/fold/pre_crmsnorm.py",
            "from lightformers.elsewhere import ToRMSNorm\n",
            "code",
        ),
        ("src/lightformers/compress/fold/pre_crmsnorm.py", "class ToRMSNorm(:\n", "code"),
        ("src/lightformers/compress/fold/pre_crmsnorm.py", "def f():\n    class ToRMSNorm: ...\n", "code"),
        ("tests/compress/test_pre_crmsnorm.py", None, "tests"),
        ("tests/compress/test_pre_crmsnorm.py", '"""To come."""\n', "tests"),
        ("results/pre-crmsnorm.json", None, "finding"),
        ("results/pre-crmsnorm.json", "{", "finding"),
        ("results/pre-crmsnorm.json", '{"slug": "minilm", "verdict": "holds here"}', "finding"),
        ("results/pre-crmsnorm.json", '{"slug": "pre-crmsnorm", "verdict": ""}', "finding"),
    ],
)
def test_one_missing_piece_makes_it_planned(tree: Path, path: str, text: str | None, missing: str) -> None:
    (tree / path).unlink()
    if text is not None:
        write(tree, path, text)
    assert papers.status(PAPER, tree) == "planned"
    seen = papers.evidence(PAPER, tree)
    assert {name for name in ("code", "tests", "finding") if not getattr(seen, name)} == {missing}


def test_code_may_be_a_package_a_function_or_a_constant(tmp_path: Path) -> None:
    write(tmp_path, "src/lightformers/compress/fold/pre_crmsnorm/__init__.py", "ToRMSNorm: int = 3\n")
    assert standing.has_code(PAPER, tmp_path)
    write(tmp_path, "src/lightformers/compress/fold/pre_crmsnorm/__init__.py", "ToRMSNorm: int\n")
    assert not standing.has_code(PAPER, tmp_path)
    write(tmp_path, "src/lightformers/compress/fold/pre_crmsnorm/__init__.py", "def ToRMSNorm(): ...\n")
    assert standing.has_code(PAPER, tmp_path)


def test_without_a_checkout_the_packaged_record_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standing, "checkout", lambda: None)
    monkeypatch.setattr(standing, "PACKAGED", tmp_path / "status.json")
    assert papers.status(PAPER) == "planned"
    (tmp_path / "status.json").write_text('{"works": ["pre-crmsnorm"]}')
    assert papers.status(PAPER) == "works"
    assert papers.status(papers.get("minilm")) == "planned"


def test_the_packaged_record_is_up_to_date() -> None:
    if standing.checkout() is None:
        pytest.skip("not a checkout: there is nothing to compare the packaged record with")
    packaged = json.loads(standing.PACKAGED.read_text(encoding="utf-8"))
    works = sorted(paper.slug for paper in papers.all() if papers.status(paper) == "works")
    assert packaged == {"works": works}, "run scripts/generate_docs.py"
