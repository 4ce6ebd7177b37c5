"""The catalogue: complete, well-formed, light."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from lightformers import papers
from lightformers.errors import UserError

#: Papers whose code found a better place than the catalogue had planned.
MOVED = {
    "aaren": "parts/mixers/aaren.py",
    "matmul-free": "parts/mixers/mlgru.py",
    "primer": "parts/mixers/primer.py",
    "acm": "compress/adaptive/acm.py",
    "dsee": "compress/prune/dsee.py",
    "essential-sparsity": "compress/prune/essential_sparsity.py",
    "flexibert": "models/language/flexibert.py",
    "fusegpt": "compress/fold/fusegpt.py",
    "greenformers": "compress/factorize/greenformers.py",
    "zett": "compress/zett.py",
    "pre-crmsnorm": "compress/fold/pre_crmsnorm.py",
}
ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src" / "lightformers" / "papers").glob("*.py"))


def test_every_paper_is_there() -> None:
    assert len(papers.all()) == 167
    kinds = Counter(paper.kind for paper in papers.all())
    assert kinds == {"system": 146, "survey": 12, "study": 7, "benchmark": 2}
    assert {paper.family for paper in papers.all()} == set(papers.FAMILIES)


def test_records_agree_with_the_shared_catalogue() -> None:
    file = ROOT.parent / "shared" / "catalogue.tsv"
    if not file.is_file():
        pytest.skip("the shared catalogue is not beside this checkout")
    with file.open(encoding="utf-8") as lines:
        rows = {row["slug"]: row for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)}
    assert rows.keys() == {paper.slug for paper in papers.all()}
    for paper in papers.all():
        row = rows[paper.slug]
        assert (paper.title, paper.family, paper.kind) == (row["title"], row["family"], row["kind"])
        module = paper.part.partition(":")[0].removeprefix("lightformers.").replace(".", "/")
        where = MOVED.get(paper.slug, row["where"].split(" ")[0])
        if where.endswith(".py"):  # other rows name rooms; their file is chosen in the record
            assert f"{module}.py" == where


def test_no_two_papers_share_an_arxiv_id_a_summary_or_an_experiment() -> None:
    for field in ("arxiv", "summary", "title", "reproduction"):
        twice = [value for value, n in Counter(getattr(p, field) for p in papers.all()).items() if n > 1]
        assert not twice, field


def test_summaries_are_one_line() -> None:
    for paper in papers.all():
        assert len(paper.summary) <= 200 and "  " not in paper.summary and "- " not in paper.summary, (
            paper.slug
        )


@pytest.mark.parametrize(
    "field, value",
    [
        ("slug", "MiniLM"),
        ("slug", "mini_lm"),
        ("slug", "mini--lm"),
        ("slug", "2lm"),
        ("title", " padded "),
        ("year", 2019),
        ("arxiv", "2002.10957v2"),
        ("arxiv", "2013.10957"),
        ("family", "compressing"),
        ("kind", "paper"),
        ("summary", "Short."),
        ("part", "lightformers.compress.distill.minilm"),
        ("part", "torch.nn:Linear"),
    ],
)
def test_a_malformed_record_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"is malformed|paper"):
        replace(papers.get("minilm"), **{field: value})


def test_a_paper_without_arxiv_id_is_allowed() -> None:
    assert replace(papers.get("minilm"), arxiv=None).url is None


def test_a_duplicate_raises() -> None:
    one = papers.get("minilm")
    with pytest.raises(ValueError, match="'minilm'"):
        papers.join([(one,), (papers.get("obert"), replace(one, title="Another"))])


def test_names_follow_from_the_slug() -> None:
    paper = papers.get("system-1-5")
    assert paper.name == "system_1_5"
    assert paper.reproduction == "lightformers.reproduce.system_1_5"
    assert paper.url == "https://arxiv.org/abs/2505.18962"


def test_an_unknown_slug_names_its_neighbours() -> None:
    with pytest.raises(UserError, match="minilm"):
        papers.get("mini_lm")
    with pytest.raises(UserError, match="survey-mamba"):
        papers.get("mamba-survey")
    with pytest.raises(UserError, match="papers list"):
        papers.get("xyzzyxyzzy")


def test_select() -> None:
    found = papers.select(family="survey", kind="survey")
    assert len(found) == 12 and {paper.kind for paper in found} == {"survey"}
    assert {p.slug for p in papers.select(status="works")}.isdisjoint(
        p.slug for p in papers.select(status="planned")
    )
    with pytest.raises(UserError, match="compression"):
        papers.select(family="pruning")
    with pytest.raises(UserError, match="works"):
        papers.select(status="done")


def test_importing_the_catalogue_imports_nothing_heavy() -> None:
    script = (
        "import sys; from lightformers import papers; papers.select(status='works');"
        "print(sorted({'torch', 'numpy', 'transformers', 'typer', 'rich'} & set(sys.modules)))"
    )
    said = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.name)
def test_files_stay_small(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 300
