"""Filling a folder that may hold other things: each entry appears whole, the config last."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lightformers.files import replacing


@contextmanager
def filling(folder: str | Path, owned: Sequence[str], last: str = "config.json") -> Iterator[Path]:
    """Yield an empty directory; what is written there takes its place in `folder` when the block ends well.

    owned: entries (or patterns) that belong to this writer; old ones that were not written anew are removed, so that a
    second export leaves nothing of the first. Everything else in `folder` (reports, a study) stays.
    last: the entry without which nobody opens the folder; it goes first and comes last.
    """
    target = Path(folder)
    if not target.exists() or not any(target.iterdir()):
        with replacing(target, directory=True) as temporary:
            yield temporary
            _readable(temporary)
        return
    temporary = Path(tempfile.mkdtemp(prefix=".export.", dir=target))
    try:
        yield temporary
        _readable(temporary)
        (target / last).unlink(missing_ok=True)
        for old in {path for pattern in owned for path in target.glob(pattern)}:
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        for new in sorted(temporary.iterdir(), key=lambda path: path.name == last):
            if new.is_dir():
                shutil.rmtree(target / new.name, ignore_errors=True)
            os.replace(new, target / new.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _readable(folder: Path) -> None:
    """safetensors writes files for their owner only; a model folder is there to be shared."""
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
