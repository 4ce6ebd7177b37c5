"""What a slim run shows while it works: a live panel on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import io
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TextIO, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lightformers.slim.numbers import clock, duration

REFRESH_SECONDS = 0.25
QUIET_SECONDS = 10.0  # between two lines about training, where lines are all there is


@dataclass
class _Phase:
    name: str
    expected: float | None = None
    started: float | None = None
    ended: float | None = None
    broken: bool = False


class _Tough:
    """A stream that may vanish (a closed window, a broken pipe) without ending hours of work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def close(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.close()

    def isatty(self) -> bool:
        return _is_terminal(self._stream)

    def fileno(self) -> int:
        return self._stream.fileno()


class Progress:
    """Shows what is being tried, the best so far, the time against the budget, and the phases.

        with Progress("lightformers slim", budget_seconds=600, phases=("baseline", "search")) as progress:
            progress.phase("search", total_seconds=300)
            progress.trying("4 blocks, int8")

    title: the first words of the panel. budget_seconds: of the whole run, or None. phases: those that are known to
    come, shown as open; others join the list when they begin. quiet: show nothing. stream: where to show, by
    default stderr (stdout if only that is a terminal).

    The display writes to a copy of the stream's file descriptor, so that `telemetry.quiet()`, which points the
    descriptors elsewhere for a while, does not blind it. Leaving the block, also by Ctrl-C, ends the refreshing
    thread and gives the terminal its cursor back.
    """

    def __init__(
        self,
        title: str = "lightformers slim",
        budget_seconds: float | None = None,
        phases: Sequence[str] = (),
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title, self.budget_seconds, self.quiet = title, budget_seconds, quiet
        self._phases = [_Phase(name) for name in phases]
        self._stream, self._clock = stream, clock
        self._own: _Tough | None = None
        self._live: Live | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._out: _Tough | None = None
        self._started: float | None = None
        self._trying = self._training = self._best = ""
        self._trained_at = float("-inf")
        self._last_line = ""

    def __enter__(self) -> Progress:
        self._started = self._clock()
        if self.quiet:
            return self
        self._out = self._open()
        if self._out.isatty() and os.environ.get("TERM") != "dumb":
            console = Console(file=cast(TextIO, self._out))
            self._live = Live(
                console=console, get_renderable=self._panel, auto_refresh=False, vertical_overflow="crop",
                redirect_stdout=_is_terminal(sys.stdout), redirect_stderr=_is_terminal(sys.stderr),
            )  # fmt: skip
            self._live.start(refresh=True)
            self._thread = threading.Thread(target=self._refresh, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            for phase in self._phases:
                if phase.started is not None and phase.ended is None:
                    phase.ended, phase.broken = self._clock(), True
        self.finish()

    def phase(self, name: str, total_seconds: float | None = None) -> None:
        """A part of the run begins, and the one before it is done. total_seconds: what it is expected to take."""
        now = self._clock()
        self._end_phase(now)
        found = next((p for p in self._phases if p.name == name and p.started is None), None)
        if found is None:
            found = _Phase(name)
            done = sum(p.started is not None for p in self._phases)
            self._phases.insert(done, found)
        found.expected, found.started = total_seconds, now
        self._trying = self._training = ""
        self._line(f"== {name}" + (f" (about {duration(total_seconds)})" if total_seconds else ""))

    def trying(self, text: str) -> None:
        """What is being tried now."""
        self._trying, self._training = str(text), ""
        self._line(f"   {text}")

    def best(self, text: str) -> None:
        """The best result so far."""
        if str(text) != self._best:
            self._best = str(text)
            self._line(f"   best so far: {text}")

    def log(self, text: str) -> None:
        """A line that stays."""
        if self._live is not None:
            self._live.console.print(Text(str(text)))
        self._line(f"   {text}")

    def training(
        self,
        step: int,
        loss: float,
        tokens_per_second: float | None = None,
        seconds_left: float | None = None,
        **more: Any,
    ) -> None:
        """How a training goes. Further figures of the training loop are accepted and not shown."""
        parts = [f"step {step:,}", f"loss {loss:.4g}"]
        if tokens_per_second:
            parts.append(f"{tokens_per_second:,.0f} tokens/s")
        if seconds_left is not None:
            parts.append(f"{duration(seconds_left)} left")
        self._training = ", ".join(parts)
        now = self._clock()
        if self._live is None and now - self._trained_at >= QUIET_SECONDS:
            self._trained_at = now
            self._line(f"   {self._training}")

    def finish(self) -> None:
        """End the last phase, stop the display, free the terminal. May be called again."""
        self._end_phase(self._clock())
        self._trying = self._training = ""
        self._stop.set()
        thread, self._thread = self._thread, None
        live, self._live = self._live, None
        try:
            if thread is not None and thread is not threading.current_thread():
                thread.join(timeout=5)
        finally:
            if live is not None:
                live.stop()
            own, self._own, self._out = self._own, None, None
            if own is not None:
                own.close()

    def _end_phase(self, now: float) -> None:
        for phase in self._phases:
            if phase.started is not None and phase.ended is None:
                phase.ended = now

    def _open(self) -> _Tough:
        stream = self._stream
        if stream is None:
            stream = sys.stdout if _is_terminal(sys.stdout) and not _is_terminal(sys.stderr) else sys.stderr
        try:
            copy = os.dup(stream.fileno())
        except (OSError, ValueError, AttributeError, io.UnsupportedOperation):
            return _Tough(stream)
        encoding = getattr(stream, "encoding", None) or "utf-8"
        self._own = _Tough(open(copy, "w", encoding=encoding, errors="replace"))  # noqa: SIM115
        return self._own

    def _line(self, text: str) -> None:
        """One plain line, where there is no panel. The same line twice in a row is said once."""
        if self._out is None or self._live is not None or text == self._last_line:
            return
        self._last_line = text
        spent = clock(self._clock() - (self._started or 0.0))
        self._out.write(f"{time.strftime('%H:%M:%S')} {spent:>8}  {text}\n")
        self._out.flush()

    def _refresh(self) -> None:
        while not self._stop.wait(REFRESH_SECONDS):
            live = self._live
            if live is None:
                return
            live.refresh()

    def _panel(self) -> RenderableType:
        now = self._clock()
        marks = _marks(getattr(self._out, "encoding", None))
        spent = now - (self._started or now)
        head = Table.grid(padding=(0, 2))
        cells: list[RenderableType] = [Text(self.title, style="bold")]
        if self.budget_seconds:
            cells += [
                Text(f"{clock(spent)} / {clock(self.budget_seconds)}"),
                ProgressBar(total=self.budget_seconds, completed=min(spent, self.budget_seconds), width=28),
            ]
        else:
            cells.append(Text(clock(spent)))
        head.add_row(*cells)
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=1)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        grid.add_column(justify="right", style="dim", no_wrap=True)
        for phase in list(self._phases):
            grid.add_row(*_phase_row(phase, now, marks))
        rows: list[RenderableType] = [head, grid]
        told = Table.grid(padding=(0, 1))
        told.add_column(width=7, style="dim")
        told.add_column(overflow="fold")
        if self._trying or self._training:
            trying = Text(self._trying)
            if self._training:
                trying.append(f"{': ' if self._trying else ''}{self._training}", style="dim")
            told.add_row("trying", trying)
        if self._best:
            told.add_row("best", Text(self._best, style="bold"))
        if told.row_count:
            rows.append(told)
        return Group(*rows)


def _phase_row(phase: _Phase, now: float, marks: Sequence[str]) -> tuple[Text, Text, Text]:
    done, running, waiting, broken = marks
    if phase.started is None:
        return Text(waiting, style="dim"), Text(phase.name, style="dim"), Text("")
    spent = clock((now if phase.ended is None else phase.ended) - phase.started)
    if phase.ended is None:
        about = f" of {clock(phase.expected)}" if phase.expected else ""
        return Text(running, style="bold cyan"), Text(phase.name, style="bold"), Text(spent + about)
    mark = Text(broken, style="bold red") if phase.broken else Text(done, style="green")
    return mark, Text(phase.name), Text(spent)


def _marks(encoding: str | None) -> tuple[str, str, str, str]:
    """Done, running, waiting, broken off; plain letters where the terminal has no others."""
    marks = ("✓", "●", "·", "✗")
    try:
        "".join(marks).encode(encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return "x", ">", "-", "!"
    return marks


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False
