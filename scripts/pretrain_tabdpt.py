"""Pre-trains the small TabDPT that comes with the package.

    python scripts/pretrain_tabdpt.py --minutes 50 --threads 1

It learns from drawn tables and from iris, digits and diabetes of scikit-learn; wine and breast cancer are kept for looking
at the progress, which is printed once a minute. Stopped at any time it goes on from its checkpoint, and the weights so far
lie where the package reads them.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes", type=float, default=50.0, help="of training in all, earlier runs included"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "out" / "tabdpt-pretraining")
    parser.add_argument("--out", type=Path, help="weights; by default those of the package")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=224)
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--rows", type=int, default=6144, help="per update")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--beta", type=float, default=0.9)
    parser.add_argument("--real", type=float, default=0.1, help="share of real tables")
    parser.add_argument("--most", type=int, default=512, help="rows of the largest context")
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--every", type=float, default=60.0, help="seconds between reports")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(given.threads))

    import torch

    from lightformers.models.tabular.tabdpt import TabDPTConfig
    from lightformers.train import tabdpt
    from lightformers.train.tabdpt_progress import Exam, bundled

    torch.set_num_threads(given.threads)
    config = TabDPTConfig(
        given.features, given.width, given.hidden, given.heads, given.layers, softmax_temperature=1.0
    )
    settings = tabdpt.Settings(
        rows=given.rows, context=(24, given.most), lr=given.lr, betas=(given.beta, 0.999), synthetic=1 - given.real,
        seconds=60 * given.minutes, precision=given.precision, seed=given.seed,
    )  # fmt: skip
    exam, target = Exam.sit(given.features), given.out or tabdpt.PACKAGED
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f"beside it: {exam.rivals}", flush=True)

    def report(now: tabdpt.Progress) -> None:
        marks = exam.marks(now.model)
        said = "  ".join(f"{name} {value:.3f}" for name, value in marks.items())
        print(f"{now.seconds / 60:6.1f} min  step {now.step:6d}  loss {now.loss:.4f}  {said}", flush=True)
        facts = {
            "minutes": round(now.seconds / 60, 1),
            "steps": now.step,
            "rows per step": given.rows,
            "seed": given.seed,
        }
        tabdpt.save_weights(now.model, target, {**facts, "marks": {k: round(v, 4) for k, v in marks.items()}})

    tabdpt.pretrain(bundled(), settings, config, given.checkpoint, report, given.every)


if __name__ == "__main__":
    main()
