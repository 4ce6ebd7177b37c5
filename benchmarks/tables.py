"""Our table models beside linear models, random forest and gradient boosting, on every table of the shared data.

    python benchmarks/tables.py                              # sixteen tables, five splits: hours on two cores
    python benchmarks/tables.py --quick                      # three tables, two splits, few rows: some minutes
    python benchmarks/tables.py --rows 1000 --only sonar wine --models tabdpt boosting

Every model gets the same rows of a five-fold split (stratified by class) and its own defaults: nothing is tuned. Scores are
ROC-AUC (classes; one against the rest where there are more than two) and R2 (numbers), with accuracy, log-loss and seconds
of fit and prediction beside them. The mean rank over tables comes with a 95 % interval that resamples tables.

Results go to `results/tables.json` and the page beside it, a table at a time: a stopped run goes on. A model that is run
again takes the place of its old figures.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tables_page import OURS, RIVALS, markdown
from training import guarded

from lightformers import measure
from lightformers.errors import DataError, UserError, reason
from lightformers.files import read_json, write_json, write_text
from lightformers.reproduce import data

OUT = Path(__file__).parent / "results" / "tables.json"
FOLDERS = ("tabular", "tabular2")
#: Tables whose target is a number; of the others it is a class. The second file of adult repeats the first one's kind.
NUMBERS = ("abalone", "winequality_white", "winequality_red", "california_housing", "diamonds_10k")
LEFT_OUT = ("adult_test",)
QUICK = ("sonar", "titanic", "winequality_red")


def tables(root: Callable[[str], Path] = data) -> dict[str, Path]:
    """Name -> file, in order."""
    found = [p for folder in FOLDERS for p in sorted(root(folder).glob("*.csv.gz"))]
    return {p.name.removesuffix(".csv.gz"): p for p in found if not p.name.startswith(LEFT_OUT)}


def read(path: Path, rows: int | None) -> tuple[Any, np.ndarray]:
    """(DataFrame of the features, targets), at most so many rows, drawn with seed 0."""
    import pandas

    frame = pandas.read_csv(path)
    if rows is not None and len(frame) > rows:
        frame = frame.sample(rows, random_state=0)
    frame = frame.reset_index(drop=True)
    y = frame.pop("target").to_numpy()
    held = frame.loc[:, frame.notna().any()]  # a sample may leave a column without a value
    return held, y


def splits(y: np.ndarray, regression: bool, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Places of training and test rows: the first `count` of five folds."""
    from sklearn.model_selection import KFold, StratifiedKFold

    kind = KFold if regression else StratifiedKFold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class of fewer rows than folds
        return list(kind(5, shuffle=True, random_state=0).split(y, y))[:count]


def rival(name: str, regression: bool, x: Any) -> Any:
    """A model of scikit-learn with its defaults, behind what it needs of missing cells and categories."""
    from sklearn import ensemble, linear_model
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

    numbers = list(x.select_dtypes("number").columns)
    others = [c for c in x.columns if c not in numbers]
    filled = SimpleImputer(strategy="median", add_indicator=True)
    coded = OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=2)
    if name == "linear":
        model: Any = linear_model.RidgeCV() if regression else linear_model.LogisticRegression(max_iter=2000)
        filled = make_pipeline(filled, StandardScaler())
    elif name == "forest":
        kind = ensemble.RandomForestRegressor if regression else ensemble.RandomForestClassifier
        model = kind(n_estimators=300, random_state=0)
    else:
        kind = (
            ensemble.HistGradientBoostingRegressor if regression else ensemble.HistGradientBoostingClassifier
        )
        few = [x[c].nunique() < 250 for c in others]  # more than its 255 bins are read by their order
        model = kind(
            random_state=0, categorical_features=[len(numbers) + i for i, small in enumerate(few) if small]
        )
        filled = "passthrough"  # reads missing cells itself
        coded = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan)
    return make_pipeline(
        ColumnTransformer([("numbers", filled, numbers), ("others", coded, others)], sparse_threshold=0),
        model,
    )


def estimator(name: str, regression: bool, x: Any, seconds: float | None) -> Any:
    """One of ours or a rival."""
    if name in RIVALS:
        return rival(name, regression, x)
    from lightformers.tabular import Classifier, Regressor

    kind = Regressor if regression else Classifier
    return kind(name, seconds=None if name == "tabdpt" else seconds, random_state=0)


def scored(
    name: str, x: Any, y: np.ndarray, train: np.ndarray, test: np.ndarray, regression: bool, seconds: float | None
) -> dict[str, float]:  # fmt: skip
    """Scores and seconds of one model on one split."""
    from sklearn import metrics

    model = estimator(name, regression, x, seconds)
    begun = time.perf_counter()
    model.fit(x.iloc[train], y[train])
    middle = time.perf_counter()
    if regression:
        found = model.predict(x.iloc[test])
        took = time.perf_counter() - middle
        quality = {
            "score": metrics.r2_score(y[test], found),
            "rmse": float(np.sqrt(np.mean((y[test] - found) ** 2))),
        }
    else:
        chances = model.predict_proba(x.iloc[test])
        took = time.perf_counter() - middle
        quality = judged(chances, model.classes_, y[test])
    return {**{k: float(v) for k, v in quality.items()}, "fit": middle - begun, "predict": took}


def judged(chances: np.ndarray, classes: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """ROC-AUC (mean over the classes that both stand and lack in y), accuracy, and log-loss in nats."""
    from sklearn import metrics

    each = [(chances[:, i], y == c) for i, c in enumerate(classes) if 0 < (y == c).sum() < len(y)]
    areas = [metrics.roc_auc_score(there, chance) for chance, there in each]
    place = {c: i for i, c in enumerate(classes)}
    right = np.array([chances[i, place[c]] if c in place else 0.0 for i, c in enumerate(y)])
    return {
        "score": float(np.mean(areas)),
        "accuracy": float(np.mean(classes[chances.argmax(1)] == y)),
        "log-loss": float(-np.log(np.clip(right, 1e-15, 1)).mean()),
    }


def row(
    name: str, path: Path, models: Sequence[str], given: argparse.Namespace, say: Any = print
) -> dict[str, Any]:
    """All models on one table: the values of every split."""
    regression = name in NUMBERS
    x, y = read(path, given.rows)
    if not regression:
        y = y.astype(str)
    found: dict[str, Any] = {}
    for model in models:
        begun = time.perf_counter()
        try:
            runs = [
                scored(model, x, y, train, test, regression, given.seconds)
                for train, test in splits(y, regression, given.splits)
            ]
            found[model] = {k: [r[k] for r in runs] for k in runs[0]}
            say(f"{name}: {model} {np.mean(found[model]['score']):.4f} ({time.perf_counter() - begun:.0f} s)")
        except (UserError, ValueError) as error:
            found[model] = {"error": reason(error)}
            say(f"{name}: {model} failed: {found[model]['error']}")
    kinds = {"rows": len(x), "columns": x.shape[1], "texts": x.select_dtypes(exclude="number").shape[1]}
    return {"regression": regression, **kinds, "models": found}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="TABLE", help="these tables")
    parser.add_argument("--models", nargs="+", choices=(*OURS, *RIVALS), default=[*OURS, *RIVALS])
    parser.add_argument(
        "--rows", type=int, default=2000, help="most rows of a table, training and test together; 0: all"
    )
    parser.add_argument("--splits", type=int, default=5, choices=range(1, 6), help="of the five folds")
    parser.add_argument("--seconds", type=float, default=60.0, help="most a training of ours takes")
    parser.add_argument(
        "--quick", action="store_true", help="a look: three tables, two splits, 300 rows, 5 s"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(arguments)
    if given.quick:
        given.only, given.splits, given.rows, given.seconds = given.only or list(QUICK), 2, 300, 5.0
    given.rows = given.rows or None
    return given


def run(given: argparse.Namespace, root: Callable[[str], Path] = data, say: Any = print) -> dict[str, Any]:
    """Every table that is asked for, written down as it is done. Raises UserError for unknown tables, other settings."""
    files = tables(root)
    if unknown := sorted(set(given.only or ()) - set(files)):
        raise DataError(f"there is no table {', '.join(unknown)}; there are {', '.join(files)}")
    settings = {"rows": given.rows, "splits": given.splits, "seconds": given.seconds}
    result: dict[str, Any] = read_json(given.out) if given.out.is_file() else {"tables": {}}
    if result["tables"] and result["settings"] != settings:
        raise UserError(
            f"{given.out} holds figures of other settings ({result['settings']}): give another --out"
        )
    for name, path in files.items():
        if given.only and name not in given.only:
            continue
        old = result["tables"].get(name, {}).get("models", {})
        left = [m for m in given.models if "score" not in old.get(m, {}) or given.only]
        if not left:
            say(f"{name}: done")
            continue
        made = row(name, path, left, given, say)
        result["tables"][name] = {**made, "models": {**old, **made["models"]}}
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        result |= {"created": created, "machine": measure.machine(), "settings": settings}
        write_json(given.out, result)
        write_text(given.out.with_suffix(".md"), markdown(result))
    return result


def main() -> None:
    run(parse())


if __name__ == "__main__":
    sys.exit(guarded(main))
