"""The memory of a run: one SQLite file and a folder, so that a kill at any moment loses at most the trial in flight.

`.slim/study.db` holds the facts of finished phases and every trial from the moment it starts; the same file
holds Optuna's study. Arrays (per-example scores) and checkpoints lie beside it and appear whole.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lightformers.errors import UserError
from lightformers.files import replacing
from lightformers.stats import Metric, Scores

_SCHEMA = """
create table if not exists facts (key text primary key, value text not null);
create table if not exists slim_trials (
  id integer primary key, name text not null, rung integer not null, state text not null, attempts integer not null,
  pid integer, started real, record text not null, unique (name, rung));
"""
ATTEMPTS = 2  # a trial that took the process down twice is left alone


class Store:
    """State of one run under `out/.slim`."""

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)
        self.folder = self.out / ".slim"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "study.db"
        self._db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        self._db.execute("pragma journal_mode=wal")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._db.close()

    # facts -------------------------------------------------------------------------------------
    def get(self, key: str) -> Any:
        row = self._db.execute("select value from facts where key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, key: str, value: Any) -> Any:
        text = json.dumps(value)
        self._db.execute("insert or replace into facts values (?, ?)", (key, text))
        return json.loads(text)

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """The fact under `key`, made now if no earlier run finished making it."""
        found = self.get(key)
        return found if found is not None else self.put(key, make())

    def scores(self, key: str, make: Callable[[], Scores], metric: Metric) -> Scores:
        """Per-example scores under `key`, evaluated now if they are not on disk."""
        path = self.folder / "scores" / f"{key}.npz"
        if path.is_file():
            with np.load(path) as saved:
                groups = saved.get("groups")
                return Scores(saved["stats"], metric, groups)
        made = make()
        arrays: dict[str, Any] = {"stats": made.stats} | (
            {} if made.groups is None else {"groups": made.groups}
        )
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)
        return made

    # trials ------------------------------------------------------------------------------------
    def begin(self, name: str, rung: int, record: dict[str, Any]) -> bool:
        """Open a trial; False if it is done already, has failed, or took the process down too often."""
        row = self._db.execute(
            "select state, attempts from slim_trials where name = ? and rung = ?", (name, rung)
        ).fetchone()
        if row and row[0] != "running":
            return False
        if row and row[1] >= ATTEMPTS:
            self.end(name, rung, {"error": "the process died in this trial twice (out of memory?)"}, "failed")
            return False
        self._db.execute(
            "insert into slim_trials (name, rung, state, attempts, pid, started, record) values (?, ?, 'running', 1, ?, ?, ?)"
            " on conflict (name, rung) do update set attempts = attempts + 1, pid = excluded.pid, started = excluded.started",
            (name, rung, os.getpid(), time.time(), json.dumps(record)),
        )
        return True

    def end(self, name: str, rung: int, found: dict[str, Any], state: str = "complete") -> None:
        """Close a trial with what it found."""
        row = self._db.execute(
            "select record from slim_trials where name = ? and rung = ?", (name, rung)
        ).fetchone()
        record = json.loads(row[0]) | found
        self._db.execute(
            "update slim_trials set state = ?, record = ? where name = ? and rung = ?",
            (state, json.dumps(record), name, rung),
        )

    def trials(self) -> list[dict[str, Any]]:
        """All trials in the order they began: record, with id, name, rung and state."""
        rows = self._db.execute(
            "select id, name, rung, state, record from slim_trials order by id"
        ).fetchall()
        return [json.loads(r) | {"id": i, "name": n, "rung": g, "state": s} for i, n, g, s, r in rows]

    def trial(self, name: str, rung: int) -> dict[str, Any] | None:
        return next((t for t in self.trials() if (t["name"], t["rung"]) == (name, rung)), None)

    # fingerprints ------------------------------------------------------------------------------
    def claim(self, prints: dict[str, str]) -> bool:
        """Hold this folder to one model, data, request and machine. True if an earlier run is being resumed."""
        old = self.get("fingerprints")
        if old is None:
            self.put("fingerprints", prints)
            return False
        changed = [k for k in prints if old.get(k) != prints[k]]
        if changed:
            raise UserError(
                f"{self.out} holds a run with another {' and '.join(changed)}: its trials cannot be mixed with this one's. "
                "Use another --out, or add --restart to throw the old run away"
            )
        return True


def discard(out: str | Path) -> None:
    """Throw away the state of an earlier run (not what it exported)."""
    shutil.rmtree(Path(out) / ".slim", ignore_errors=True)
