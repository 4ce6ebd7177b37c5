"""The progress display: plain lines, a panel on a terminal, silence, and a terminal left as it was."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import threading

import pytest

from lightformers.slim.progress import Progress
from lightformers.telemetry import quiet


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _lines(stream: io.StringIO) -> list[str]:
    """Lines without the time of day, which is checked on the way."""
    found = []
    for line in stream.getvalue().splitlines():
        match = re.fullmatch(r"\d\d:\d\d:\d\d +(.*)", line)
        assert match, line
        found.append(match[1])
    return found


def test_plain_lines_say_everything_once_and_training_seldom() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(stream=stream, clock=clock, budget_seconds=600) as progress:
        progress.phase("baseline")
        clock.now += 41
        progress.phase("search", total_seconds=240)
        progress.trying("4 blocks, int8")
        for step in range(1, 101):
            clock.now += 0.25
            progress.training(step, 0.5 / step, 2950.4, 41.0, fraction=0.1)
        progress.best("4 blocks: 1.31x at 0.987")
        progress.best("4 blocks: 1.31x at 0.987")
        progress.log("a note")
    lines = _lines(stream)
    assert lines[:3] == ["0:00  == baseline", "0:41  == search (about 4 min 00 s)", "0:41     4 blocks, int8"]
    training = [line for line in lines if "step" in line]
    assert len(training) == 3  # 25 seconds of training: at once, and every ten seconds
    assert training[0].endswith("step 1, loss 0.5, 2,950 tokens/s, 41 s left")
    assert sum("best so far" in line for line in lines) == 1
    assert lines[-1].endswith("a note")
    assert "\x1b" not in stream.getvalue()


def test_quiet_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with Progress(quiet=True) as progress:
        progress.phase("baseline")
        progress.trying("x")
        progress.training(1, 0.5, 10.0, 3.0)
        progress.best("y")
        progress.log("z")
    assert capfd.readouterr() == ("", "")


def test_plain_lines_go_to_stderr_even_while_libraries_are_silenced(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with Progress() as progress, quiet():
        os.write(2, b"noise")
        progress.trying("int8")
    out, err = capfd.readouterr()
    assert out == "" and "int8" in err and "noise" not in err


def test_methods_work_outside_the_block() -> None:
    progress = Progress(stream=io.StringIO())
    progress.phase("early")
    progress.trying("x")
    progress.training(1, 0.5)
    progress.finish()
    progress.finish()


def test_a_closed_stream_does_not_end_the_run() -> None:
    stream = io.StringIO()
    with Progress(stream=stream) as progress:
        progress.trying("one")
        stream.close()
        progress.trying("two")
        progress.trying("three")


class Terminal:
    """A pseudo-terminal; `text()` is everything that was shown on it."""

    def __init__(self) -> None:
        self.master, slave = pty.openpty()
        self.stream = open(slave, "w", encoding="utf-8")  # noqa: SIM115
        self._seen = b""

    def text(self) -> str:
        while select.select([self.master], [], [], 0.05)[0]:
            self._seen += os.read(self.master, 65536)
        return self._seen.decode()

    def close(self) -> None:
        self.stream.close()
        os.close(self.master)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    made = Terminal()
    yield made
    made.close()


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_panel_shows_phases_budget_trying_and_best(terminal: Terminal) -> None:
    before = threading.active_count()
    with Progress(
        stream=terminal.stream, budget_seconds=600, phases=("baseline", "search", "verify")
    ) as progress:
        assert threading.active_count() == before + 1
        progress.phase("baseline")
        progress.phase("search", total_seconds=240)
        progress.trying("4 blocks, int8")
        progress.training(120, 0.231, 2950, 41)
        progress.best("5 blocks: 1.31x at 0.987")
        progress.log("something stays")
        threading.Event().wait(0.6)
        shown = _plain(terminal.text())
    assert threading.active_count() == before
    for said in ("lightformers slim", "/ 10:00", "✓ baseline", "● search", "of 4:00", "· verify", "something stays",
                 "4 blocks, int8: step 120, loss 0.231, 2,950 tokens/s, 41 s left", "5 blocks: 1.31x at 0.987"):  # fmt: skip
        assert said in shown, said
    assert "✓ search" in _plain(terminal.text())


def test_ctrl_c_gives_the_terminal_back(terminal: Terminal) -> None:
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), Progress(stream=terminal.stream, phases=("search",)) as progress:
        progress.phase("search")
        raise KeyboardInterrupt
    shown = terminal.text()
    assert "\x1b[?25l" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is back
    assert "✗ search" in _plain(shown)
    assert threading.active_count() == before


def test_a_vanished_terminal_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    made = Terminal()
    with Progress(stream=made.stream) as progress:
        progress.phase("search")
        os.close(made.master)
        threading.Event().wait(0.4)
        progress.log("still working")
    made.stream.close()
