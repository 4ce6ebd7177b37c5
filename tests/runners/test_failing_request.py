"""A request of OpenVINO that fails ends the call with its reason, also where it calls nobody back."""

from __future__ import annotations

from typing import Any

import pytest
import runner_models

import lightformers as lf
from lightformers import runners
from lightformers.runners import openvino_runner

pytest.importorskip("openvino", reason="needs OpenVINO, the extra [openvino]")


class Silent:
    """A request that fails without a word."""

    def set_callback(self, *given: Any) -> None:
        pass

    def start_async(self, *given: Any, **named: Any) -> None:
        pass

    def wait_for(self, milliseconds: int = 0) -> bool:
        raise RuntimeError("the kernel gave up")

    wait = wait_for


def test_a_request_that_fails_silently_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_runner, "PATIENCE", 0.05)
    bundle = runner_models.bundle()
    runner = runners.build(bundle, lf.Deploy("openvino", "fp32", "sorted", 2))
    runner.requests = [Silent() for _ in runner.requests]
    with pytest.raises(RuntimeError, match="gave up"):
        runner([{"text": "a few words"}] * 5, lambda outputs, batch: [0] * 2)
