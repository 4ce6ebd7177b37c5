"""What `model=` of the estimators may be, and the way from rows and targets to a bundle and back."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightformers.bundle import Bundle, load
from lightformers.errors import DataError, ModelError, UserError
from lightformers.processors.schema import Row, Schema
from lightformers.runners.torch_runner import TorchRunner
from lightformers.steps import Deploy
from lightformers.tabular.rows import TableError

#: Name -> the function that makes a bundle of a table.
MODELS: dict[str, str] = {
    "tabdpt": "lightformers.train.tabdpt:learn",
    "unitabe": "lightformers.train.unitabe:learn",
    "ft-transformer": "lightformers.train.rows:learn",
}
#: Model type of a saved model -> its name here.
_TYPES = {
    "lightformers-tabdpt": "tabdpt",
    "lightformers-unitabe": "unitabe",
    "lightformers-rows": "ft-transformer",
}


def learn(
    model: str | Path, rows: Sequence[Row], targets: NDArray[Any], classes: int | None, schema: Schema,
    seed: int, seconds: float | None, device: str, options: Mapping[str, Any],
) -> Bundle:  # fmt: skip
    """A bundle for this table by the learner that `model` names, or whose pre-trained model stands in that folder.

    Raises UserError for an unknown name or option, TableError for a table that the learner refuses.
    """
    name, given = str(model), dict(options)
    if name not in MODELS:
        name, given["weights"] = _of_folder(model)
    module, function = MODELS[name].split(":")
    made = getattr(importlib.import_module(module), function)
    known = inspect.signature(made).parameters
    given |= {} if seconds is None else {"seconds": seconds}
    given |= {"device": device} if "device" in known else {}
    unknown = sorted(set(given) - set(known))
    if unknown == ["weights"]:
        raise ModelError(
            f"a model of the kind {name} belongs to the table that it learned: open {model} with load(), or learn "
            f"anew with model={name!r}"
        )
    if unknown:
        own = [
            k
            for k, p in known.items()
            if p.kind is p.KEYWORD_ONLY and k not in ("seed", "seconds", "device", "weights")
        ]
        raise UserError(f"{name} takes no {', '.join(unknown)}; its options are {', '.join(own)}")
    try:
        bundle: Bundle = made(rows, targets, classes, schema, seed=seed, **given)
    except DataError as error:
        raise TableError(str(error)) from error
    bundle.model.to(device)
    return bundle


def _of_folder(model: str | Path) -> tuple[str, Any]:
    """The name in MODELS of what is saved there, and what its learner takes as `weights`."""
    if not (Path(model) / "config.json").is_file():
        raise UserError(f"model is one of {', '.join(MODELS)}, or the folder of a saved one, not {model!r}")
    bundle = load(model)
    found = kind(bundle)
    if found is None:
        raise ModelError(f"{model} holds no model of tables")
    return found, bundle.model if found == "tabdpt" else bundle


def kind(bundle: Bundle) -> str | None:
    """Its name in MODELS, None for a model of something else."""
    return _TYPES.get(str(getattr(getattr(bundle.model, "config", None), "model_type", "")))


def label(bundle: Bundle, names: Sequence[str]) -> None:
    """Gives the classes of a model their names."""
    config: Any = bundle.model.config
    config.id2label = dict(enumerate(names))
    config.label2id = {n: i for i, n in enumerate(names)}


def note(bundle: Bundle, schema: Schema, columns: Mapping[str, Any], units: tuple[float, float]) -> None:
    """Writes into the model's configuration what an estimator needs to come back: what `noted` reads."""
    config: Any = bundle.model.config
    mean, deviation = units
    own_mean, own_deviation = getattr(config, "target_units", None) or (0.0, 1.0)
    config.target_units = [mean + deviation * float(own_mean), deviation * float(own_deviation)]
    config.table = {"schema": dataclasses.asdict(schema), **columns}


def noted(bundle: Bundle) -> dict[str, Any]:
    """What `note` wrote, the schema as a `Schema`. Raises ModelError for a bundle that no estimator made and whose
    processor has no schema."""
    config = getattr(bundle.model, "config", None)
    table = getattr(config, "table", None)
    if table:
        return {**table, "schema": Schema.from_fields(table["schema"])}
    schema = getattr(bundle.processor, "schema", None)
    if not isinstance(schema, Schema):
        raise ModelError(
            "this bundle does not say which columns its table has: only a model of tables can become an estimator"
        )
    return {"schema": schema, "named": True}


#: Rows that are run at once, where there are few, and where there are many.
FEW, MANY = 32, 256


def outputs(bundle: Bundle, rows: Sequence[Row], field: str) -> NDArray[np.float64]:
    """The model's output of this name for each row, (rows,) or (rows, classes).

    A few rows are filled up with copies of the first, so that each is computed alike in whatever company it comes; not
    where every row brings a context of its own, which makes rows dear and independent of each other.
    """
    few = len(rows) <= FEW and not getattr(bundle.processor, "neighbours", 0)
    batch = FEW if few else MANY
    runner = TorchRunner(bundle, Deploy(batch_size=batch))
    examples = [{"row": row} for row in rows]
    short = FEW - len(examples) if few else 0
    found = runner([*examples, *examples[:1] * short], lambda o, _: list(o[field].double().numpy()))
    return np.stack(found[: len(examples)])
