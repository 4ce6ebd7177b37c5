"""What shows whether pre-training of TabDPT gets anywhere: tables of scikit-learn that it never learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightformers.errors import MissingExtra
from lightformers.models.tabular.tabdpt import TabDPT
from lightformers.train.synthetic_tables import synthetic
from lightformers.train.tabdpt import loss
from lightformers.train.tabdpt_batches import Episodes, Source, split

#: Names of scikit-learn's sets that are learnt from, and those that are kept apart.
LEARNT, APART = ("iris", "digits", "diabetes"), ("wine", "breast_cancer")


def table(name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows and targets of a set that scikit-learn brings along."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingExtra("tabular", "scikit-learn") from error
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return np.asarray(x, np.float64), np.asarray(y, np.float64)


def bundled(names: Sequence[str] = LEARNT) -> list[Source]:
    """These sets as tables to learn from: the target is a column like any other."""
    return [Source.of(np.column_stack(table(name))) for name in names]


@dataclass(frozen=True)
class Exam:
    """Splits of held-out sets and drawn tables. rivals: accuracy of logistic regression and neighbours on the splits."""

    drawn: Episodes
    splits: dict[str, list[tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]]]
    rivals: str

    @classmethod
    def sit(cls, features: int, contexts: Sequence[int] = (32, 128), splits: int = 5) -> Exam:
        """Draws everything, once and for all runs alike; columns beyond `features` are left out."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        drawn = split(synthetic(64, 224, features, 2**31 - 1), 128)
        made, said = {}, []
        for name in APART:
            x, y = table(name)
            x = np.pad(x, ((0, 0), (0, max(0, features - x.shape[1]))))[:, :features]
            for count in contexts:
                parts = []
                for seed in range(splits):
                    order = np.random.default_rng(seed).permutation(len(x))
                    parts.append((x[order[:count]], y[order[:count]], x[order[count:]], y[order[count:]]))
                made[f"{name}@{count}"] = parts
                for title, rival in (("LR", LogisticRegression()), ("kNN", KNeighborsClassifier())):
                    model = make_pipeline(StandardScaler(), rival)
                    right = [model.fit(a, b).score(c, d) for a, b, c, d in parts]
                    said.append(f"{name}@{count} {title} {np.mean(right):.3f}")
        return cls(drawn, made, ", ".join(said))

    @torch.inference_mode()
    def marks(self, model: TabDPT) -> dict[str, float]:
        """Loss on drawn tables, accuracy on them where they have classes, R2 where numbers, and accuracy on real ones."""
        drawn = self.drawn
        out = model.answers(drawn.context_x, drawn.context_y, drawn.x)
        number = drawn.regression
        right = (out[..., :-1].argmax(-1) == drawn.y)[~number].float().mean()
        error = (out[..., -1] - drawn.y)[number].square().mean(-1) / drawn.y[number].var(-1)
        marks = {
            "drawn": float(loss(out, drawn)),
            "right": float(right),
            "R2": float(1 - error.clamp(max=2).mean()),
        }
        for name, parts in self.splits.items():
            found = []
            for context_x, context_y, x, y in parts:
                given = (torch.from_numpy(np.asarray(a, np.float32)) for a in (context_x, context_y, x))
                found.append(float((model(*given)["logits"].argmax(-1).numpy() == y).mean()))
            marks[name] = float(np.mean(found))
        return marks
