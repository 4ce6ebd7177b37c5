"""The estimators. What they share are functions; the classes hold what scikit-learn asks of each kind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import assert_all_finite, check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from lightformers.bundle import Bundle, load
from lightformers.errors import DataError, ModelError
from lightformers.processors.schema import Schema, missing
from lightformers.tabular import learners
from lightformers.tabular.rows import Table, TableError, cell, read
from lightformers.tasks.tabular import class_name


class Classifier(ClassifierMixin, BaseEstimator):
    """Classes of the rows of a table, by a transformer.

    model: "tabdpt" predicts in context, with the weights that come with this library and without a gradient step;
        "unitabe" and "ft-transformer" are trained on the table; or the folder of a pre-trained model.
    seconds: most time that training takes; None: the model's own. options: what else its learner takes.
    device: where it is trained and run. random_state: a number for the same result every time.

    X is a DataFrame, an array, a list of lists or of mappings: numbers, texts and booleans side by side, missing cells as
    None or NaN, and at prediction values that fit never saw. y: classes of any type.
    fit raises TableError (a ValueError) for a column without a single value, and for one class only.
    Attributes after fit: classes_, n_features_in_, feature_names_in_ (where columns have names), schema_, bundle_.
    """

    def __init__(
        self, model: str | Path = "tabdpt", *, seconds: float | None = None, device: str = "cpu",
        options: Mapping[str, Any] | None = None, random_state: Any = None,
    ) -> None:  # fmt: skip
        self.model = model
        self.seconds = seconds
        self.device = device
        self.options = options
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Classifier:
        """X: (rows, columns). y: (rows,)."""
        table = read(self, X, fitting=True)
        y = _targets(self, y, table)
        check_classification_targets(y)
        classes, numbers = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise TableError(f"one class only ({classes[0]}): two or more are needed")
        names = [class_name(c) or str(c) for c in classes.tolist()]
        bundle, schema = _learn(self, table, numbers.astype(np.int64), len(classes))
        found = {**_columns(self), "classes": classes.tolist(), "dtype": classes.dtype.str}
        learners.label(bundle, names)
        learners.note(bundle, schema, found, (0.0, 1.0))
        self.bundle_, self.schema_, self.classes_ = bundle, schema, classes
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """(rows, classes), in the order of `classes_`."""
        logits = _run(self, X, "logits")[:, : len(self.classes_)]
        odds = np.exp(logits - logits.max(1, keepdims=True))
        chances: NDArray[np.float64] = odds / odds.sum(1, keepdims=True)
        return chances

    def predict(self, X: Any) -> NDArray[Any]:
        """(rows,): the likeliest class of each."""
        chances = self.predict_proba(X)
        return self.classes_[chances.argmax(1)]

    def to_bundle(self) -> Bundle:
        """A copy for `slim`, `export` and the like; `from_bundle` makes an estimator of it again."""
        check_is_fitted(self)
        return self.bundle_.copy()

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> Classifier:
        """A fitted estimator. Raises ModelError for a bundle of something else than classes of rows."""
        made, record = _from_bundle(cls(), bundle, "tabular-classification")
        names: Any = getattr(bundle.model.config, "id2label", {})
        found = record.get("classes") or [names[i] for i in sorted(names)]
        made.classes_ = np.array(found, dtype=np.dtype(record["dtype"]) if "dtype" in record else None)
        learners.label(made.bundle_, [class_name(c) or str(c) for c in found])
        return made  # type: ignore[no-any-return]

    def save(self, folder: str | Path) -> None:
        """Writes the folder that `load`, and `lightformers.load`, opens."""
        _save(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> Classifier:
        """A fitted estimator from what `save` wrote, or from the folder of any classifier of rows."""
        return cls.from_bundle(load(folder))

    def __sklearn_tags__(self) -> Any:
        return _tags(super().__sklearn_tags__())


class Regressor(RegressorMixin, BaseEstimator):
    """A number for each row of a table, by a transformer. Parameters and attributes: see `Classifier`.

    y: numbers in any unit; they are standardised for the model and put back. fit raises TableError for a column without a
    single value, ValueError for a target that is no number.
    """

    def __init__(
        self, model: str | Path = "tabdpt", *, seconds: float | None = None, device: str = "cpu",
        options: Mapping[str, Any] | None = None, random_state: Any = None,
    ) -> None:  # fmt: skip
        self.model = model
        self.seconds = seconds
        self.device = device
        self.options = options
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Regressor:
        """X: (rows, columns). y: (rows,)."""
        table = read(self, X, fitting=True)
        y = _targets(self, y, table)
        try:
            y = y.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise TableError(
                "the target holds something that is no number: for classes use Classifier"
            ) from error
        units = float(y.mean()), float(y.std()) or 1.0
        bundle, schema = _learn(self, table, (y - units[0]) / units[1], None)
        learners.note(bundle, schema, _columns(self), units)
        self.bundle_, self.schema_ = bundle, schema
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """(rows,), in the units of y."""
        found = _run(self, X, "prediction")
        mean, deviation = getattr(self.bundle_.model.config, "target_units", None) or (0.0, 1.0)
        predicted: NDArray[np.float64] = found * deviation + mean
        return predicted

    def to_bundle(self) -> Bundle:
        """A copy for `slim`, `export` and the like; `from_bundle` makes an estimator of it again."""
        check_is_fitted(self)
        return self.bundle_.copy()

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> Regressor:
        """A fitted estimator. Raises ModelError for a bundle of something else than numbers of rows."""
        return _from_bundle(cls(), bundle, "tabular-regression")[0]  # type: ignore[no-any-return]

    def save(self, folder: str | Path) -> None:
        """Writes the folder that `load`, and `lightformers.load`, opens."""
        _save(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> Regressor:
        """A fitted estimator from what `save` wrote, or from the folder of any regressor of rows."""
        return cls.from_bundle(load(folder))

    def __sklearn_tags__(self) -> Any:
        return _tags(super().__sklearn_tags__())


def _targets(estimator: Any, y: Any, table: Table) -> NDArray[Any]:
    """(rows,), present and finite."""
    if y is None:
        raise ValueError(f"{type(estimator).__name__} requires y to be passed, but the target y is None")
    y = column_or_1d(y, warn=True)
    if np.iscomplexobj(y):
        raise ValueError("Complex data not supported")
    absent = [missing(cell(v)) for v in y.tolist()] if y.dtype == object else []
    if any(absent):
        raise TableError(f"Input y contains NaN: the target of row {absent.index(True)} is missing")
    assert_all_finite(y, input_name="y", estimator_name=type(estimator).__name__)
    if len(y) != len(table.rows):
        raise TableError(f"X has {len(table.rows)} rows and y {len(y)}: inconsistent numbers of samples")
    return y  # type: ignore[no-any-return]


def _learn(estimator: Any, table: Table, targets: NDArray[Any], classes: int | None) -> tuple[Bundle, Schema]:
    try:
        schema = Schema.of(table.rows, table.categories)
        rows = schema.cast(table.rows)
    except DataError as error:
        raise TableError(str(error)) from error
    state = estimator.random_state
    seed = state if isinstance(state, int) else int(check_random_state(state).randint(2**31 - 1))
    bundle = learners.learn(
        estimator.model, rows, targets, classes, schema, seed, estimator.seconds, estimator.device,
        estimator.options or {},
    )  # fmt: skip
    return bundle, schema


def _columns(estimator: Any) -> dict[str, Any]:
    return {"named": hasattr(estimator, "feature_names_in_")}


def _run(estimator: Any, x: Any, field: str) -> NDArray[np.float64]:
    check_is_fitted(estimator)
    table = read(estimator, x, fitting=False)
    try:
        rows = estimator.schema_.cast(table.rows)
    except DataError as error:
        raise TableError(str(error)) from error
    return learners.outputs(estimator.bundle_, rows, field)


def _from_bundle(made: Any, bundle: Bundle, task: str) -> tuple[Any, dict[str, Any]]:
    if bundle.task != task:
        raise ModelError(f"the bundle is for {bundle.task}, not for {task}")
    record = learners.noted(bundle)
    made.model = learners.kind(bundle) or made.model
    made.bundle_, made.schema_ = bundle.copy(), record["schema"]
    made.n_features_in_ = len(made.schema_.names)
    if record["named"]:
        made.feature_names_in_ = np.array(made.schema_.names, dtype=object)
    return made, record


def _save(estimator: Any, folder: str | Path) -> None:
    from lightformers.export import huggingface

    check_is_fitted(estimator)
    huggingface.save(estimator.bundle_, folder, allow_custom=True)


def _tags(tags: Any) -> Any:
    tags.input_tags.allow_nan = True
    tags.input_tags.string = True
    tags.input_tags.categorical = True
    return tags
