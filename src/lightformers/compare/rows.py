"""One method on one model: apply, recover, weigh, score, time. What goes wrong becomes part of the row."""

from __future__ import annotations

import errno
import gc
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightformers import export, measure, memory
from lightformers.bundle import Bundle
from lightformers.compare.session import Apart, Session
from lightformers.compress import weights
from lightformers.compress.distill import Recover
from lightformers.compress.distill.common import LANGUAGE_MODELS
from lightformers.compress.methods import Method, applicable
from lightformers.errors import UserError, reason
from lightformers.steps import Recipe, Run, Stage, Step

#: Shares of the blocks' bytes that are tried where a speed is asked for.
RATIOS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
#: Seconds that a method which trains inside gets where only its speed is wanted, and rounds of that timing.
GLIMPSE, GLIMPSE_ROUNDS = 1.0, 3
Row = dict[str, Any]


def open_methods(session: Session) -> tuple[tuple[Method, ...], dict[str, str]]:
    """Methods that can be tried on this model and data, and why the others cannot: name -> reason."""
    fit, reasons = applicable(session.bundle, session.task)
    if session.bundle.task in LANGUAGE_MODELS:
        name = "trim-vocabulary"
        fit = tuple(m for m in fit if m.name != name)
        reasons.setdefault(name, "fewer classes in the softmax would flatter a language model's perplexity")
    return fit, reasons


def steps_of(method: Method, ratio: float, session: Session, recover: bool = True) -> list[Step]:
    """The steps of a method with the recovery that it gets: after the cuts, before what only stores them small."""
    steps = list(method.make(ratio, session.bundle))
    if not (recover and method.recovers and session.settings.seconds):
        return steps
    late = [i for i, s in enumerate(steps) if s.stage is Stage.QUANTIZE or type(s).__name__ == "PackSparse"]
    place = late[0] if late else len(steps)
    return [*steps[:place], Recover(labels=0.5 if session.settings.use_labels else 0.0), *steps[place:]]


def applied(session: Session, method: Method, steps: Sequence[Step], seconds: float) -> Bundle:
    """The original with these steps done to it, on a training budget of `seconds`."""
    run = Run(
        teacher=session.bundle,
        seed=session.settings.seed,
        seconds=seconds,
        use_labels=session.settings.use_labels or method.needs_labels,
        progress=lambda event: session.progress.training(**event) if "step" in event else None,
    )
    return Recipe(steps).apply(session.bundle, Apart(session.task), run)


def matched(session: Session, method: Method) -> float:
    """The largest share of the blocks' bytes at which the method runs as fast as asked, in torch; not trained for it.

    Raises UserError where no size is fast enough.
    """
    assert session.settings.speedup is not None
    reachable = [r for r in RATIOS if _reaches(session, method, r)] if method.sized else [RATIOS[-1]]
    if not reachable:
        method.make(RATIOS[0], session.bundle)  # says why
    seen: dict[float, float] = {}

    def fast(place: int) -> bool:
        ratio = reachable[place]
        session.progress.trying(f"{method.name}: speed at {ratio:.0%} of the blocks")
        steps = steps_of(method, ratio, session, recover=False)
        made = applied(session, method, steps, GLIMPSE)
        seen[ratio] = session.speed(made, session.plain, GLIMPSE_ROUNDS)["speedup"]["estimate"]
        return seen[ratio] >= float(session.settings.speedup or 1)

    found = weights.largest(range(len(reachable)), fast)
    if found is None:
        ratio, speed = max(seen.items(), key=lambda item: item[1])
        raise UserError(
            f"not {session.settings.speedup:g} times as fast at any size: {speed:.2f} times at {ratio:.0%} of the blocks"
        )
    return reachable[found]


def _reaches(session: Session, method: Method, ratio: float) -> bool:
    try:
        method.make(ratio, session.bundle)
    except UserError:
        return False
    return True


def head(method: Method) -> Row:
    """What is known of a method before it is tried."""
    return {"name": method.name, "kind": method.kind, "sized": method.sized, "note": method.speed}


def refused(method: Method, reason: str) -> Row:
    """The row of a method that cannot be tried."""
    return head(method) | {"state": "refused", "reason": reason}


def row(session: Session, method: Method) -> Row:
    """Try a method; a refusal or a failure is a row with its reason. A full disk and Ctrl-C are not caught."""
    started = time.monotonic()
    try:
        return head(method) | _tried(session, method) | {"seconds": round(time.monotonic() - started, 1)}
    except UserError as error:
        return refused(method, reason(error))
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        state = {"state": "failed", "reason": f"{type(error).__name__}: {reason(error)}"}
        return head(method) | state | {"seconds": round(time.monotonic() - started, 1)}
    finally:
        gc.collect()
        memory.release()


def _tried(session: Session, method: Method) -> Row:
    settings = session.settings
    ratio = settings.ratio if settings.speedup is None else matched(session, method)
    steps = steps_of(method, ratio, session)
    session.progress.trying(f"{method.name}: {' + '.join(type(s).__name__ for s in steps)}")
    made = applied(session, method, steps, settings.seconds)
    took = sum(entry["seconds"] for entry in made.history)
    session.progress.trying(f"{method.name}: size, quality and speed")
    stored = weigh(made)
    found = {
        "state": "done",
        "asked": ratio if method.sized else None,
        "recipe": Recipe(steps).to_dict()["steps"],
        # a language model's text is its own label
        "labels": settings.use_labels or (method.needs_labels and session.bundle.task not in LANGUAGE_MODELS),
        "apply_seconds": round(took, 1),
        "blocks": weights.block_bytes(made.model) / weights.block_bytes(session.bundle.model),
        # packed numbers are weights still: quantizing makes none fewer
        "parameters": session.bundle.parameters if method.kind == "quantize" else made.parameters,
        **stored,
        **session.quality(made),
        "torch": session.speed(made, session.plain),
        "openvino": None,
    }
    if stored["native"] and session.graph is not None:
        try:
            found["openvino"] = session.speed(made, session.graph)
        except Exception as error:  # a converter that cannot take the model: torch's figures stand
            found["openvino_note"] = reason(error)
    return found


def weigh(bundle: Bundle) -> Row:
    """Write the model out and weigh it: bytes of its weights on disk, and whether plain transformers opens them."""
    with tempfile.TemporaryDirectory() as folder:
        reasons = export.save(bundle, folder, allow_custom=True)
        size = sum(measure.size_on_disk(f) for f in Path(folder).glob("*.safetensors"))
    return {"bytes": size, "native": not reasons, "native_reason": reasons[0] if reasons else None}
