"""What each step cost: cuts are made again to be shown, training never is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightformers import compress
from lightformers.slim import handover
from lightformers.slim.finalists import Finalist
from lightformers.steps import Deploy, Recipe, Stage


@pytest.mark.parametrize("end", [compress.Cascade(0.9), compress.LLMInt8()])
def test_what_follows_training_is_shown_as_delivered(
    end: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[list[str]] = []

    def apply(self: Recipe, bundle: Any, task: Any, run: Any) -> Any:
        assert not any(s.stage is Stage.RECOVER for s in self.steps)
        made.append([type(s).__name__ for s in self.steps])
        return SimpleNamespace(parameters=60, history=[{"seconds": 0.5}], name="cut")

    monkeypatch.setattr(Recipe, "apply", apply)
    sizes = {"cut": 240, "end": 100}
    monkeypatch.setattr(handover, "deployed_size", lambda bundle, deploy: sizes[bundle.name])
    monkeypatch.setattr(handover, "deployed_bytes", lambda folder, chosen: 30)
    seconds = {"whole": 4.0, "PruneChannels": 2.0, "final": 3.0, "delivered": 1.0}
    monkeypatch.setattr(
        handover.measure,
        "compare",
        lambda calls, **more: {n: SimpleNamespace(median=seconds[n]) for n in calls},
    )
    session: Any = SimpleNamespace(
        brisk=Deploy(), bundle=SimpleNamespace(parameters=100), task=SimpleNamespace(reduce=None),
        progress=SimpleNamespace(trying=lambda line: None), run=lambda: None,
        runner=lambda bundle, how: SimpleNamespace(close=lambda: None),
        score=lambda *rest: None, compare=lambda scores, split: SimpleNamespace(estimate=0.8),
    )  # fmt: skip
    steps = [compress.PruneChannels(keep=0.5), compress.Recover(), compress.TrimVocabulary(), end]
    record = {"seconds": 60.0, "trained_ratio": 0.95, "ratio": 0.99}
    bundle: Any = SimpleNamespace(parameters=25, name="end")
    chosen = Finalist("it", Recipe(steps), bundle, record)
    runner: Any = None
    rows = handover.step_costs(session, chosen, tmp_path, [{}] * 1000, runner)
    assert made == [["PruneChannels"]]
    assert [r["step"] for r in rows][-2:] == [type(end).__name__, "run as torch fp32"]
    assert [r["ratio_after"] for r in rows] == [0.8, 0.95, 0.95, 0.99, 0.99]
    assert [r["latency_after_ms"] for r in rows] == [2.0, 2.0, 2.0, 3.0, 1.0]
    assert [r["size_after"] for r in rows] == [240, 240, 100, 100, 30]
    assert [r["seconds"] for r in rows] == [0.5, 60.0, None, None, None]
