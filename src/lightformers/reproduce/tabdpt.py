"""TabDPT (arXiv 2410.18164): can a transformer that learnt from other tables answer for rows of a new one, untrained?

    lightformers reproduce tabdpt

Hardware: two cores, five minutes. Models of width 64, three layers and 32 columns learn from real tables (iris, digits and
diabetes of scikit-learn, California housing, hours of ETTh1; any column may be the target) and from drawn ones; wine and
breast cancer are held out. With 32 and 128 labelled rows, no gradient step, accuracy and AUC stand beside nearest
neighbours, logistic regression, gradient boosting, and the same network untrained. Further: real against drawn tables, near
against random context, three sizes. Expected: above neighbours and boosting at so few rows, near logistic regression.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import gzip
import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightformers import reproduce
from lightformers.models.tabular.tabdpt import TabDPT, TabDPTConfig
from lightformers.reproduce import common
from lightformers.reproduce.finding import Finding
from lightformers.train.synthetic_tables import synthetic
from lightformers.train.tabdpt import Settings, loss, orders, pretrain
from lightformers.train.tabdpt_batches import Source, split
from lightformers.train.tabdpt_progress import APART, bundled, table

CLAIM = (
    "Pre-trained on other tables, a transformer answers for rows of an unseen table from labelled rows in its context, without a "
    "gradient step, more accurately than nearest neighbours and than gradient boosting trained on these rows."
)
_FEATURES, _CONTEXTS = 32, (32, 128)
_SIZES = {"width 32, 2 layers": (32, 2), "width 64, 3 layers": (64, 3), "width 96, 4 layers": (96, 4)}
_MAIN = "width 64, 3 layers"
#: Share of drawn tables in pre-training.
_ARMS = {"real and drawn tables": 0.5, "real tables alone": 0.0, "drawn tables alone": 1.0}
_BOTH, _UNTRAINED = "real and drawn tables", "untrained"
_NEIGHBOURS, _LINEAR, _TREES = "nearest neighbours", "logistic regression", "gradient boosting"
_NEAR, _ANY = "accuracy, 32 near rows", "accuracy, 32 random rows"
Array = NDArray[np.float64]
Predict = Callable[[Array, Array, Array], Array]


def _config(size: str = _MAIN) -> TabDPTConfig:
    width, layers = _SIZES[size]
    return TabDPTConfig(_FEATURES, width, 2 * width, 4, layers, softmax_temperature=1.0)


def real_tables(most: int = 15_000) -> list[Source]:
    """Of scikit-learn and of the shared sets, at most so many rows: numbers alone, the target a column like any other."""
    made = bundled()
    for name, file in (("tabular2", "california_housing.csv.gz"), ("etth1", "ETTh1.csv.gz")):
        with gzip.open(reproduce.data(name) / file, "rt", encoding="utf-8", newline="") as opened:
            rows = list(itertools.islice(csv.DictReader(opened), most))
        columns = [c for c in rows[0] if _number(rows[0][c])]
        made.append(
            Source.of(np.array([[float(r[c]) if _number(r[c]) else np.nan for c in columns] for r in rows]))
        )
    return made


def _number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def in_context(model: TabDPT, context_x: Array, context_y: Array, x: Array) -> Array:
    """Probabilities (rows, classes) of rows x; context_x of its own for each row where it has three axes.

    The model's configuration is set to the table.
    """
    pooled = context_x.reshape(-1, context_x.shape[-1])
    mean, deviation = pooled.mean(0), pooled.std(0) + 1e-9

    def ready(values: Array) -> torch.Tensor:
        scaled = ((values - mean) / deviation)[..., :_FEATURES]
        wide = np.pad(scaled, [(0, 0)] * (scaled.ndim - 1) + [(0, _FEATURES - scaled.shape[-1])])
        return torch.from_numpy(wide.astype(np.float32))

    model.config.permutations = orders(min(x.shape[1], _FEATURES), _FEATURES, 4, 0)
    model.config.classes = int(context_y.max()) + 1
    with torch.inference_mode():
        labels = torch.from_numpy(context_y.astype(np.float32))
        return model(ready(context_x), labels, ready(x))["logits"].softmax(-1).double().numpy()


def _rivals(trees: int) -> dict[str, Predict]:
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def fitted(make: Callable[[], Any]) -> Predict:
        def predict(context_x: Array, context_y: Array, x: Array) -> Array:
            model = make_pipeline(StandardScaler(), make()).fit(context_x, context_y)
            out = np.zeros((len(x), int(context_y.max()) + 1))
            out[:, model.classes_.astype(int)] = model.predict_proba(x)
            return out

        return predict

    return {
        _NEIGHBOURS: fitted(KNeighborsClassifier),
        _LINEAR: fitted(lambda: LogisticRegression(max_iter=500)),
        _TREES: fitted(lambda: GradientBoostingClassifier(n_estimators=trees, random_state=0)),
    }


def marks(predict: Predict, seed: int, splits: int, most: int) -> dict[str, float]:
    """Accuracy and AUC on the held-out sets, mean of the seed's splits, and accuracy over all of them.

    most: rows that are asked for of a split.
    """
    from sklearn.metrics import roc_auc_score

    cells: dict[str, float] = {}
    for name in APART:
        x, y = table(name)
        for count in _CONTEXTS:
            right, area = [], []
            for part in range(splits):
                order = np.random.default_rng([seed, part]).permutation(len(x))
                known, asked = order[:count], order[count : count + most]
                chance = predict(x[known], y[known], x[asked])
                chance = chance / chance.sum(1, keepdims=True)
                right.append((chance.argmax(1) == y[asked]).mean())
                score = chance[:, 1] if chance.shape[1] == 2 else chance
                area.append(roc_auc_score(y[asked], score, multi_class="ovr"))
            cells[f"accuracy, {name}, {count} rows"] = float(np.mean(right))
            cells[f"AUC, {name}, {count} rows"] = float(np.mean(area))
    mean = float(np.mean([v for k, v in cells.items() if k.startswith("accuracy")]))
    return {"accuracy": mean, **cells}


def nearness(model: TabDPT, seed: int, splits: int, most: int) -> dict[str, float]:
    """Accuracy from 32 rows out of two thirds of a set: the nearest to each query, or any."""
    found: dict[str, list[float]] = {_NEAR: [], _ANY: []}
    for name in APART:
        x, y = table(name)
        scaled = (x - x.mean(0)) / x.std(0)
        for part in range(splits):
            order = np.random.default_rng([seed, part]).permutation(len(x))
            known, asked = order[: 2 * len(x) // 3], order[2 * len(x) // 3 :][:most]
            distance = np.square(scaled[asked][:, None] - scaled[known][None]).sum(-1)
            near = known[np.argsort(distance, 1)[:, :32]]
            for cell, chance in (
                (_NEAR, in_context(model, x[near], y[near], x[asked])),
                (_ANY, in_context(model, x[known[:32]], y[known[:32]], x[asked])),
            ):
                found[cell].append(float((chance.argmax(1) == y[asked]).mean()))
    return {cell: float(np.mean(values)) for cell, values in found.items()}


def run(budget: float = common.FULL) -> Finding:
    """Pre-train every arm once per seed with equal steps, and let all of them and the rivals sit the same splits."""
    clock = common.Clock(budget)
    seeds, splits = clock.seeds(), 1 if clock.short else 5
    trees, most = clock.size(100, 5), clock.size(500, 40)
    tables = real_tables(clock.size(15_000, 500))
    base = Settings(
        rows=4096,
        context=_CONTEXTS,
        queries=96,
        warmup=30,
        lr=3e-3,
        steps=2,
        synthetic=0.5,
        precision=common.precision(),
    )
    begun = time.monotonic()
    pretrain(tables, base, _config())
    step = (time.monotonic() - begun) / 2
    # Arms of the main size once per seed; the other two sizes once, which cost about as much as two arms.
    steps = max(2, int(clock.left(0.3) / step / (len(seeds) * len(_ARMS) + 2)))
    rivals = _rivals(trees)
    scores: dict[str, dict[str, list[float]]] = {}
    sizes: dict[str, float] = {}
    drawn = split(synthetic(clock.size(64, 8), 224, _FEATURES, 2**31 - 1), 128)
    for seed in seeds:
        found = {arm: marks(predict, seed, splits, most) for arm, predict in rivals.items()}
        torch.manual_seed(seed)
        found[_UNTRAINED] = marks(functools.partial(in_context, TabDPT(_config()).eval()), seed, splits, most)
        for arm, share in _ARMS.items():
            settings = dataclasses.replace(
                base, steps=steps, synthetic=share, seed=seed, warmup=max(1, min(30, steps // 5))
            )
            model = pretrain(tables, settings, _config())
            found[arm] = marks(functools.partial(in_context, model), seed, splits, most) | nearness(
                model, seed, splits, most
            )
            if seed == seeds[0] and arm == _BOTH:
                for size in _SIZES:
                    other = model if size == _MAIN else pretrain(tables, settings, _config(size))
                    with torch.inference_mode():
                        sizes[size] = float(
                            loss(other.answers(drawn.context_x, drawn.context_y, drawn.x), drawn)
                        )
        for arm, cells in found.items():
            for cell, value in cells.items():
                scores.setdefault(arm, {}).setdefault(cell, []).append(value)
    return _conclude(
        clock,
        seeds,
        scores,
        sizes,
        {"steps": steps, "splits per seed": splits, "seconds a step": round(step, 4)},
    )


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], scores: dict[str, dict[str, list[float]]], sizes: dict[str, float],
    settings: dict[str, Any],
) -> Finding:  # fmt: skip
    mine = scores[_BOTH]["accuracy"]
    over = {arm: common.gain(mine, scores[arm]["accuracy"]) for arm in scores if arm != _BOTH}
    verdict = common.together(reproduce.judge(over[_NEIGHBOURS]), reproduce.judge(over[_TREES]))
    near = common.gain(scores[_BOTH][_NEAR], scores[_BOTH][_ANY])
    order = [_NEIGHBOURS, _LINEAR, _TREES, _UNTRAINED, *_ARMS]
    return reproduce.conclude(
        slug="tabdpt",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"Accuracy over two held-out tables and two sizes of context: {np.mean(mine):.3f}; over nearest neighbours "
            f"{common.said(over[_NEIGHBOURS])}, gradient boosting {common.said(over[_TREES])}, logistic regression "
            f"{common.said(over[_LINEAR])}, the untrained network {common.said(over[_UNTRAINED])}. Over learning from real "
            f"tables alone {common.said(over['real tables alone'])}, from drawn ones alone "
            f"{common.said(over['drawn tables alone'])}. The nearest 32 rows over any 32: {common.said(near)}. Loss on drawn "
            f"tables by size: {', '.join(f'{k} {v:.3f}' for k, v in sizes.items())}."
        ),
        table=[reproduce.row(arm, **scores[arm]) for arm in order],
        baseline=_TREES,
        settings={
            "model": f"{_MAIN}, 4 heads, {_FEATURES} columns, 4 orders of the columns averaged",
            "real tables": "iris, digits, diabetes, California housing, ETTh1",
            "held out": list(APART),
            "rows of a step": clock.size(4096, 256),
            "context": list(_CONTEXTS),
            "loss on drawn tables": {k: round(v, 4) for k, v in sizes.items()},
            **settings,
        },
        limits=(
            "Seconds of pre-training, models of some hundred thousand parameters, two small tables on which linear models do "
            "well; other sizes were trained once. Superiority over tuned trees on large tables and the power laws of the "
            "paper cannot be shown." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )
