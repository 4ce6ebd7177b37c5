"""The tables of mixers: every row fits the transformer's size, learns on one text, and a stopped run goes on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import language_tables as tables

from lightformers.files import read_json
from lightformers.models.matching import counted, match
from lightformers.parts.ffn.table import FEED_FORWARDS
from lightformers.parts.mixers.table import MIXERS, check

#: Tables of hashed vectors have no width that could be fitted; the ones left are two-way or need more than a width.
LEFT_OUT = {"memory", "ecoformer", "mixed", "multiplicative"}


def text(name: str) -> tables.Text:
    drawn = torch.randint(1, 9, (4 * tables.LENGTH,), generator=torch.Generator().manual_seed(0))
    return tables.Text({"train": drawn, "valid": drawn, "test": drawn}, 10, "letter")


def test_every_causal_mixer_and_feed_forward_stands_there() -> None:
    kinds = {row.mixer["kind"] for row in tables.ROWS.values()}
    causal = {k for k in MIXERS if hasattr(check(MIXERS, k, **_needed(k)), "begin")}
    assert causal - kinds <= LEFT_OUT
    assert set(FEED_FORWARDS) - {row.ffn["kind"] for row in tables.ROWS.values()} <= LEFT_OUT


def _needed(kind: str) -> dict[str, Any]:
    from contracts.test_mixers_contract import MIXER_OPTIONS

    return MIXER_OPTIONS[kind]


def test_rows_have_as_many_parameters() -> None:
    target = counted(lambda: tables._build(tables.ROWS[tables.PLAIN], 10, tables.HIDDEN))
    for name, row in tables.ROWS.items():
        found = match(lambda w, row=row: tables._build(row, 10, w), target, max(8, row.ffn.get("rank", 0)))
        assert found.ratio == pytest.approx(1, abs=0.04), name


def test_a_stopped_run_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tables, "TEXTS", {"tinyshakespeare": text})
    monkeypatch.setattr(tables, "BATCH", 2)
    out, trained = tmp_path / "tables.json", []
    learn = tables.learn
    monkeypatch.setattr(tables, "learn", lambda *a: (trained.append(a[3:5]), learn(*a))[1])
    options = ["--only", "mlp, relu", "--texts", "tinyshakespeare", "--steps", "2", "--out", str(out)]
    tables.main([*options, "--seeds", "1"])
    assert len(trained) == 2 * (2 + 1)  # two rates, one seed; the transformer and one row
    tables.main([*options, "--seeds", "2"])
    assert len(trained) == 2 * (2 + 2)
    held = read_json(out)["texts"]["tinyshakespeare"]["mlp, relu"]
    assert set(held["losses"]) == {"0", "1"} and all(0 < v < 9 for v in held["losses"].values())
    assert "| mlp, relu |" in out.with_suffix(".md").read_text()
    with pytest.raises(tables.UserError, match="another --out"):
        tables.main([*options[:-4], "--steps", "3", "--out", str(out)])
