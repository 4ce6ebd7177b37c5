"""No telemetry, and a terminal that is ours alone.

OpenVINO and NNCF post usage data unless their telemetry module is kept out before the first import of
either. Call `silence()` before importing them; it is idempotent and cheap.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator

_NOISY = ("transformers", "huggingface_hub", "sentence_transformers", "nncf", "openvino", "onnxscript", "torch.onnx",
          "onnx_ir", "optuna", "accelerate", "datasets", "httpx", "torch.export", "torch._dynamo", "torch._export")  # fmt: skip


def silence() -> None:
    """Keep telemetry out of this process, and other libraries' bars, logs and warnings off the terminal."""
    if "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # makes the import fail: nothing is posted
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    if os.environ.get("LIGHTFORMERS_DEBUG"):
        return
    warnings.filterwarnings("ignore")
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow what libraries print on file descriptors 1 and 2 (C++ code included) while the block runs.

    If the block raises, what was swallowed is attached to the error as a note (Python 3.11) so that nothing
    is lost. With LIGHTFORMERS_DEBUG set, nothing is swallowed.
    """
    silence()
    if os.environ.get("LIGHTFORMERS_DEBUG"):
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
        try:
            yield
        except Exception as error:
            sys.stdout.flush()
            sys.stderr.flush()
            sink.seek(0)
            said = sink.read().decode(errors="replace")[-2000:]
            if said and hasattr(error, "add_note"):
                error.add_note(said)
            raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            os.close(saved[0])
            os.close(saved[1])
