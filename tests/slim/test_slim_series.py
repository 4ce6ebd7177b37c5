"""Slim on a forecaster: the command's options, a dry run, and (slow) whole runs on a tiny PatchTST and PatchTSMixer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lightformers as lf
from lightformers.bundle import Bundle
from lightformers.cli import main
from lightformers.errors import DataError
from lightformers.slim import space
from lightformers.slim.settings import Settings
from lightformers.train.forecasting import Epochs, train

ROWS, HORIZON, CONTEXT = 2400, 12, 48


def series() -> np.ndarray:
    """(rows, 3): a day and a half-day wave whose size drifts, and noise: a model can learn it at once."""
    drawn, rows = np.random.default_rng(0), np.arange(ROWS)[:, None]
    day = np.sin(2 * np.pi * rows / 24 + np.arange(3)) * (1 + 0.3 * np.sin(rows / 200))
    return 10 + day + 0.5 * np.sin(2 * np.pi * rows / 12) + 0.3 * drawn.standard_normal((ROWS, 3))


def csv(path: Path) -> Path:
    stamps = np.datetime64("2020-01-01T00", "s") + np.arange(ROWS) * np.timedelta64(3600, "s")
    rows = [f"{s},{','.join(f'{v:.4f}' for v in row)}" for s, row in zip(stamps, series())]
    path.write_text("\n".join(["date,a,b,c", *rows]) + "\n", encoding="utf-8")
    return path


def forecaster(kind: str) -> Any:
    import transformers

    torch.manual_seed(0)
    common = {"context_length": CONTEXT, "prediction_length": HORIZON, "num_input_channels": 3, "patch_length": 8,
              "patch_stride": 8, "scaling": "std"}  # fmt: skip
    if kind == "patchtst":
        config = transformers.PatchTSTConfig(
            **common, d_model=32, num_attention_heads=4, ffn_dim=64, num_hidden_layers=4, norm_type="layernorm"
        )  # fmt: skip
        return transformers.PatchTSTForPrediction(config)
    return transformers.PatchTSMixerForPrediction(
        transformers.PatchTSMixerConfig(**common, d_model=16, num_layers=3, head_dropout=0.0, dropout=0.0)
    )


def made(kind: str, folder: Path) -> tuple[Path, Path]:
    """A folder as transformers writes it, without a processor, of a model that was trained on the rows to train on."""
    data = csv(folder / "data.csv")
    task = lf.tasks.from_data("forecasting", data, horizon=HORIZON, context=CONTEXT)
    bundle = Bundle(forecaster(kind), None, "forecasting")
    train(bundle, task, Epochs(epochs=4, lr=2e-3, batch=64, dropout=False))
    bundle.model.save_pretrained(folder / "model")
    return folder / "model", data


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["lightformers", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_a_dry_run_takes_horizon_and_context_from_the_model(tmp_path, monkeypatch, capsys) -> None:
    data = csv(tmp_path / "data.csv")
    forecaster("patchtst").save_pretrained(tmp_path / "model")
    capsys.readouterr()
    arguments = ["slim", str(tmp_path / "model"), "--task", "forecasting", "--data", str(data), "--dry-run"]
    code = run([*arguments, "--floor", "0.9"], monkeypatch)
    said = " ".join(capsys.readouterr().out.split())
    assert "patchtst: 4 blocks" in said and "forecasting, mse" in said and "blocks 1..4" in said
    assert code in (0, 3) or "can hardly be proven" in said
    assert run([*arguments, "--horizon", "24"], monkeypatch) == 2
    assert "give --horizon 12" in " ".join(capsys.readouterr().err.split())
    assert run([*arguments, "--target", "d"], monkeypatch) == 2
    assert "no column 'd'" in " ".join(capsys.readouterr().err.split())


def test_a_model_that_cannot_be_read_is_left_whole() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = torch.nn.Linear(CONTEXT, HORIZON)

        def forward(self, past_values: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"prediction": self.map(past_values.mT).mT}

    drawn = space.draw(Bundle(Odd(), None, "forecasting"), Settings())
    assert not drawn.readable and len(list(drawn)) == 1 and "any cut" in drawn.closed[0]


def test_a_horizon_must_be_said_or_known(tmp_path) -> None:
    with pytest.raises(DataError, match="--horizon 96"):
        lf.tasks.from_data("forecasting", csv(tmp_path / "a.csv"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["patchtst", "patchtsmixer"])
def test_a_whole_run(kind: str, tmp_path, monkeypatch, capsys) -> None:
    """Proven on the unseen part of the series, exported, reloaded without lightformers, and said in a report."""
    pytest.importorskip("openvino")
    model, data = made(kind, tmp_path)
    out = tmp_path / "out"
    code = run(
        ["slim", str(model), "--task", "forecasting", "--data", str(data), "--horizon", str(HORIZON), "--floor", "0.9",
         "--budget", "90s", "--out", str(out), "--goal", "throughput"], monkeypatch,
    )  # fmt: skip
    report = json.loads((out / "report.json").read_text())
    assert code == 0 and report["verdict"]["proven"]
    assert report["task"]["metric"] == "mse" and not report["task"]["higher_is_better"]
    assert report["chosen"]["ratio"]["bound"] >= 0.9 and all(r["ok"] for r in report["reload"])
    small = lf.load(out)
    task = lf.tasks.from_data("forecasting", data, bundle=small, horizon=HORIZON)
    runner = lf.runners.openvino_folder(out / "openvino", small)
    found = task.evaluate(runner, "verify").value
    assert found == pytest.approx(report["chosen"]["quality"]["estimate"], rel=0.02)
    text = (out / "README.md").read_text()
    assert "time-series-forecasting" in text and "past_values" in text
