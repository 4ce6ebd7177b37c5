"""The benchmark of sequence mixers, at tiny sizes: its rows run, its figures follow, old rows stay."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import language
import language_rows


@pytest.mark.parametrize("name", sorted(language_rows.ROWS))
def test_every_row_runs_forward_and_backward(name: str) -> None:
    calls = language_rows.ROWS[name].calls(20)
    assert next(iter(calls)) == language_rows.OURS and len(calls) > 1
    for call in calls.values():
        call()


def test_a_slow_rival_is_run_once_and_then_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 1.0, 100.0] * 2)
    row = language_rows.Row(lambda n: {language_rows.OURS: lambda: None, "slow": lambda: None}, "nothing")
    monkeypatch.setitem(language_rows.ROWS, "a:b", row)
    monkeypatch.setattr(language.time, "perf_counter", lambda: next(clock))
    first, second = language.scans("a:b", [8, 16], rounds=2, patience=10)
    assert first["faster"]["slow"]["estimate"] > 1 and "low" not in first["faster"]["slow"]
    assert second["not tried"] == {"slow": "took 99 s at 8"} and not second["faster"]


def test_memory_is_judged_by_bytes_per_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for power, linear in ((1, True), (2, False)):
        monkeypatch.setattr(language.measure, "peak_memory", lambda call, name, n, p=power: 10**6 + 50 * n**p)
        assert language.memory("mamba:scan", [2048, 16384])["linear"] is linear


def test_the_page_says_what_was_measured() -> None:
    seconds = {language_rows.OURS: 0.002, "transformers": 0.04}
    ratio = {"estimate": 20.0, "low": 19.0, "high": 21.0}
    scans = [
        {"length": 2048, "seconds": seconds, "faster": {"transformers": ratio}, "rounds": 3, "not tried": {}}
    ]
    memory = {"bytes": {"64": 6400}, "bytes per token": {"64": 100.0}, "linear": True}
    decoding = {
        "seconds per token": {"128": 0.001}, "bytes of state": {"128": 4000}, "faster than the transformer": {"128": ratio},
    }  # fmt: skip
    page = language.markdown({
        "machine": {"cpu": "a processor"}, "threads": 2, "scans": {"mamba:scan": scans}, "memory": {"mamba:scan": memory},
        "decoding": {"mamba": decoding},
    })  # fmt: skip
    assert "| mamba:scan | 2048 | 2.0 | transformers | 20.00 [19.00, 21.00] | 10 |" in page
    assert "| mamba:scan | 64 | 0.0 | 100 | yes |" in page and "| mamba | 128 | 1.00 | 4 | 20.00" in page


def test_decoding_takes_turns_and_states_of_recurrences_do_not_grow() -> None:
    torch.manual_seed(0)
    names = sorted(language_rows.SPEAKERS)
    found = language.decoding(names, [8, 24], rounds=1, width=64, layers=1)
    for name, speaker in language_rows.SPEAKERS.items():
        sizes = found[name]["bytes of state"]
        assert (sizes["8"] == sizes["24"]) == speaker.recurrent, name


def test_unknown_families_are_refused() -> None:
    with pytest.raises(SystemExit):
        language.parse(["--only", "nonsense"])
    assert language.parse(["--only", "mamba"]).only == ["mamba"]
