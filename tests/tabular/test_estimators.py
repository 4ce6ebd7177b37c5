from __future__ import annotations

import json
import pickle
import subprocess
import sys

import numpy as np
import pandas
import pytest
import tables_world
import torch
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

import lightformers as lf
from lightformers.errors import DataError, ModelError, UserError
from lightformers.tabular import Classifier, Regressor, TableError, learners

KIND = "ft-transformer"
TINY = {"width": 8, "depth": 1, "heads": 2, "epochs": 10, "batch": 32, "lr": 1e-2}
CHECKS = (
    "check_n_features_in_after_fitting", "check_estimators_pickle", "check_methods_subset_invariance", "check_dtype_object",
    "check_complex_data", "check_supervised_y_2d", "check_fit2d_1sample", "check_fit_idempotent",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained() -> Classifier:
    x, y = tables_world.frame(400)
    return Classifier(KIND, options=tables_world.SMALL, random_state=0).fit(x, y)


@pytest.fixture(scope="module")
def regressor() -> Regressor:
    x, _ = tables_world.frame(200)
    return Regressor(KIND, options=TINY, random_state=0).fit(x, 2000 + 5 * x["size"].to_numpy())


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("kind", [Classifier, Regressor])
def test_some_checks_of_scikit_learn(kind, name) -> None:
    check = getattr(estimator_checks, name)
    check(kind.__name__, kind(KIND, options=TINY))


@pytest.mark.slow
@parametrize_with_checks(
    [Classifier(KIND, options=tables_world.SMALL), Regressor(KIND, options=tables_world.SMALL)]
)
def test_all_checks_of_scikit_learn(estimator, check) -> None:
    check(estimator)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Classifier, Regressor])
def test_the_default_passes_check_estimator(kind) -> None:
    check_estimator(kind())


def test_a_rule_of_two_columns_is_found(trained) -> None:
    """No sum over columns can say it: a linear model is right half the time."""
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    x, y = tables_world.frame(300, seed=1)
    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["city", "kind"]), (SimpleImputer(), ["size", "noise", "old"])
    )  # fmt: skip
    linear = make_pipeline(columns, LogisticRegression()).fit(*tables_world.frame(400)).score(x, y)
    assert linear < 0.65 and trained.score(x, y) > 0.9
    assert trained.classes_.tolist() == ["no", "yes"] and trained.feature_names_in_[0] == "size"


def test_all_shapes_of_a_table_are_one(trained) -> None:
    x, y = tables_world.frame(60, seed=2)
    mappings, _ = tables_world.rows(60, seed=2)
    expected = trained.predict_proba(x)
    assert np.array_equal(expected, trained.predict_proba(mappings))
    assert np.array_equal(expected[7:8], trained.predict_proba(mappings[7:8]))
    lists = [list(row.values()) for row in mappings]
    again = Classifier(KIND, options=TINY, random_state=0)
    one = again.fit(np.array(lists, dtype=object), y).predict_proba(lists[:5])
    assert np.array_equal(one, again.fit(lists, y).predict_proba(np.array(lists[:5], dtype=object)))


def test_unseen_categories_and_gaps(trained) -> None:
    """What fit never saw is predicted from the other columns; a missing number is not zero."""
    x, _ = tables_world.rows(40)
    strange = [{**row, "kind": "never seen", "noise": None, "old": None} for row in x]
    assert np.isfinite(trained.predict_proba(strange)).all()
    other = [{**row, "kind": "unknown too", "noise": float("nan"), "old": pandas.NA} for row in x]
    assert np.array_equal(trained.predict_proba(strange), trained.predict_proba(other))
    zero = [{**row, "kind": "never seen", "noise": 0.0, "old": None} for row in x]
    assert not np.array_equal(trained.predict_proba(strange), trained.predict_proba(zero))


def test_numbers_as_texts_are_numbers() -> None:
    x = [{"a": str(i), "b": f"{i % 3}%"} for i in range(60)]
    fitted = Classifier(KIND, options=TINY, random_state=0).fit(x, np.arange(60) > 29)
    assert [c.kind for c in fitted.schema_.columns] == ["number", "category"]
    codes = pandas.DataFrame({"a": pandas.Series(np.arange(60) % 4).astype("category"), "b": np.arange(60.0)})
    fitted.fit(codes, np.arange(60) > 29)
    assert [c.kind for c in fitted.schema_.columns] == ["category", "number"]


def test_to_bundle_and_back(trained, regressor, tmp_path) -> None:
    x, _ = tables_world.frame(30, seed=3)
    for made, kind, call in ((trained, Classifier, "predict_proba"), (regressor, Regressor, "predict")):
        bundle = made.to_bundle()
        assert bundle.task == f"tabular-{'classification' if kind is Classifier else 'regression'}"
        expected = getattr(made, call)(x)
        back = kind.from_bundle(bundle)
        assert np.array_equal(getattr(back, call)(x), expected) and back.n_features_in_ == 5
        made.save(tmp_path / kind.__name__)
        read = kind.load(tmp_path / kind.__name__)
        assert np.array_equal(getattr(read, call)(x), expected)
        assert read.feature_names_in_.tolist() == list(x.columns) and read.model == KIND
        assert np.array_equal(getattr(pickle.loads(pickle.dumps(read)), call)(x), expected)
        for p in bundle.model.parameters():
            p.data.zero_()
        assert np.array_equal(
            getattr(made, call)(x), expected
        )  # a copy: what slim does leaves the estimator alone
    assert set(Classifier.load(tmp_path / "Classifier").predict(x)) <= {"no", "yes"}
    with pytest.raises(ModelError, match="tabular-classification, not for tabular-regression"):
        Regressor.from_bundle(trained.to_bundle())
    assert json.loads((tmp_path / "Regressor" / "config.json").read_text())["target_units"][
        0
    ] == pytest.approx(2000, abs=5)


@pytest.mark.parametrize("classes", [[1, 5], [-1.0, 2.0], [True, False], ["b", "a"]])
def test_classes_keep_their_type(classes, tmp_path) -> None:
    x = np.arange(40.0)[:, None]
    y = np.array(classes)[(np.arange(40) > 19).astype(int)]
    made = Classifier(KIND, options=TINY, random_state=0).fit(x, y)
    made.save(tmp_path)
    read = Classifier.load(tmp_path)
    assert read.classes_.dtype == y.dtype and np.array_equal(read.predict(x), made.predict(x))
    assert not hasattr(read, "feature_names_in_")


def test_the_bundle_of_an_estimator_does_its_task(regressor) -> None:
    """Task and estimator agree on what the numbers mean."""
    from lightformers.runners import build
    from lightformers.tasks import TabularRegression

    x, _ = tables_world.rows(120, seed=5)
    task = TabularRegression.from_examples([{"row": r, "label": 2000 + 5 * r["size"]} for r in x])
    bundle = regressor.to_bundle()
    task.check(bundle)
    scores = task.evaluate(build(bundle))
    chosen = task.splits["verify"]
    found = regressor.predict([e["row"] for e in chosen])
    error = ((found - np.array([e["label"] for e in chosen])) / task.deviation) ** 2
    assert scores.value == pytest.approx(error.mean(), rel=1e-4)
    batch = task.collate(bundle, chosen)
    with torch.no_grad():
        loss = float(task.loss(bundle.module()(**batch.inputs), batch))
    assert loss == pytest.approx(error.mean(), rel=1e-3)


def test_scikit_learn_clones_and_crosses() -> None:
    x, y = tables_world.frame(80)
    made = Classifier(KIND, options=TINY, random_state=0)
    assert clone(made).get_params() == made.get_params()
    assert len(cross_val_score(made, x, y, cv=2)) == 2


@pytest.mark.parametrize(
    ("change", "y", "message"),
    [
        ({}, ["x"] * 40, "one class only"),
        ({"noise": [None] * 40}, None, "column noise holds no value in any row"),
        ({}, [None, *["a", "b"] * 20][:40], "target of row 0 is missing"),
        ({}, pandas.Series(["a", pandas.NA, *["b"] * 38], dtype="string"), "target of row 1 is missing"),
        ({}, ["a", "b"], "X has 40 rows and y 2"),
    ],
)
def test_wrong_tables(change, y, message) -> None:
    x, given = tables_world.frame(40)
    with pytest.raises(TableError, match=message) as found:
        Classifier(KIND, options=TINY).fit(x.assign(**change), given if y is None else y)
    assert isinstance(found.value, ValueError) and isinstance(found.value, DataError)


def test_wrong_use(trained) -> None:
    x, y = tables_world.frame(40)
    with pytest.raises(TableError, match="no number: for classes use Classifier"):
        Regressor(KIND, options=TINY).fit(x, y)
    with pytest.raises(UserError, match="model is one of tabdpt"):
        Classifier("gbm").fit(x, y)
    with pytest.raises(UserError, match="takes no depths; its options are width, depth"):
        Classifier(KIND, options={"depths": 3}).fit(x, y)
    with pytest.raises(TableError, match="row 1 says 'tall'"):
        trained.predict([{"size": "tall", "city": "Rome"}])
    with pytest.raises(TableError, match="hold 'height', which was not there in fit"):
        trained.predict([{"height": 1.0}])
    with pytest.raises(ModelError, match="does not say which columns"):
        learners.noted(lf.Bundle(trained.bundle_.model.cells, None, "tabular-classification"))


def test_a_trained_folder_is_no_starting_point(trained, tmp_path) -> None:
    trained.save(tmp_path)
    with pytest.raises(ModelError, match="belongs to the table that it learned"):
        Classifier(tmp_path).fit(*tables_world.frame(40))


def test_the_room_is_lazy() -> None:
    code = "import sys, lightformers; lightformers.tabular; print('sklearn' in sys.modules, 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
