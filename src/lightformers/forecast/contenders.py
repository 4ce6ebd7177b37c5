"""Models that can be trained on a series: which there are, how large they are made for it, how they are trained; and those
that a folder holds."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lightformers.bundle import Bundle, load
from lightformers.errors import DataError, ModelError, UserError
from lightformers.models import forecasting as presets
from lightformers.processors.series import SeriesProcessor
from lightformers.tasks.forecasting import Forecasting

Fields = dict[str, Any]
#: The folder, in that of a run, where its model lies.
MODEL = "model"


@dataclass(frozen=True)
class Family:
    """A kind of model, made to the measure of a series.

    model: "module:Class". fields: of its configuration, besides context_length and prediction_length, for a task.
    training: fields of `train.forecasting.Epochs`. share: of the training time, beside the others of a run.
    """

    label: str
    model: str
    fields: Callable[[Forecasting], Fields] = lambda task: {}
    training: Mapping[str, Any] = field(default_factory=dict)
    share: float = 1.0

    @property
    def there(self) -> bool:
        """Whether this version has it."""
        try:
            return hasattr(importlib.import_module(self.model.split(":")[0]), self.model.split(":")[1])
        except ModuleNotFoundError:
            return False


def _marks(task: Forecasting) -> int:
    found = task.series.marks()
    return 0 if found is None else int(found.shape[1])


def _known(task: Forecasting) -> Fields:
    if not task.known:
        return {}
    return {"num_input_channels": len(task.columns), "known_channels": list(task.known)}


def _segments(task: Forecasting) -> Fields:
    """GPHT's segments divide the window, as long as can be; each stage pools by a divisor of them."""
    sizes = [d for d in range(1, min(48, task.context) + 1) if task.context % d == 0]
    rates = {d: [r for r in (8, 4, 2, 1) if d % r == 0] for d in sizes}
    token = max(sizes, key=lambda d: (len(rates[d]), d))
    return {"token_length": token, "pooling": rates[token]}


_MODELS = "lightformers.models.forecasting"
#: Name -> how it is made. The sizes are the papers' for ETTh1 where they say some; smaller where those need a GPU.
FAMILIES: dict[str, Family] = {
    "linear": Family(
        "Linear (trend, season)", f"{_MODELS}.linear:LinearForecaster", _known,
        {"epochs": 10, "patience": 4, "lr": 3e-3, "schedule": "cosine", "windows": 8192}, 0.3,
    ),
    "itransformer": Family(
        "iTransformer", f"{_MODELS}.itransformer:ITransformer",
        lambda task: {"num_time_features": _marks(task), "hidden_size": 128, "intermediate_size": 128},
        {"epochs": 10, "patience": 3, "lr": 5e-4, "schedule": "cosine", "windows": 8192},
    ),
    "gpht": Family(
        "GPHT", f"{_MODELS}.gpht:GPHT",
        lambda task: {**_segments(task), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
        {"epochs": 10, "patience": 3, "lr": 5e-4, "schedule": "cosine", "windows": 4096},
    ),
}  # fmt: skip
#: Tried unless one is named.
DEFAULT = ("tsmixer", "linear")


def names() -> list[str]:
    """What --model may name, besides baselines and folders."""
    return [*(name for name, family in FAMILIES.items() if family.there), *presets.PRESETS]


@dataclass
class Contender:
    """A model for this series. training: fields of `Epochs`; None: it forecasts as it is. share: see `Family`. make: the
    same model anew, untrained, for the refit on all rows; None: it is trained on from what it is."""

    name: str
    label: str
    bundle: Bundle
    training: Mapping[str, Any] | None
    share: float = 1.0
    make: Callable[[], Bundle] | None = None


#: Updates of a training on few windows, and epochs at most for it.
_UPDATES, _EPOCHS = 600, 100


def paced(training: Mapping[str, Any], task: Forecasting) -> Fields:
    """So many more epochs as few windows need; patience grows with them."""
    found = {
        "epochs": 10,
        "patience": 3,
        "batch": 32,
        "lr": 1e-3,
        "schedule": "cosine",
        "windows": 8192,
        **training,
    }
    updates = -(-min(len(task.splits["train"]), found["windows"]) // found["batch"])
    epochs = max(found["epochs"], min(-(-_UPDATES // updates), _EPOCHS))
    return {**found, "epochs": epochs, "patience": max(found["patience"], epochs // 5)}


def contender(name: str, task: Forecasting, seed: int) -> Contender:
    """An untrained model by the name of a family or a preset. Raises UserError for unknown names."""
    family = FAMILIES.get(name)
    if family is None and name not in presets.PRESETS:
        raise UserError(
            f"there is no forecaster {name!r}: --model names one of {', '.join(names())}, a baseline, or a folder"
        )

    def make() -> Bundle:
        torch.manual_seed(seed)
        return _bundle(_of_family(family, task) if family else _of_preset(name, task), task)

    found = family or _kin(name)
    return Contender(
        name, family.label if family else name, make(), paced(found.training, task), found.share, make
    )  # fmt: skip


def default(task: Forecasting, seed: int) -> list[Contender]:
    """Those that are tried where none is named."""
    return [contender(name, task, seed) for name in DEFAULT if FAMILIES.get(name) and FAMILIES[name].there]


def _of_family(family: Family, task: Forecasting) -> Any:
    module, name = family.model.split(":")
    if not family.there:
        raise UserError(f"this version has no {family.label}")
    cls = getattr(importlib.import_module(module), name)
    return cls(
        cls.config_class(context_length=task.context, prediction_length=task.horizon, **family.fields(task))
    )


def _of_preset(name: str, task: Forecasting) -> Any:
    """The preset's model with this series' horizon, context, columns and calendar."""
    from lightformers.models import create_model

    with torch.device("meta"):
        config = create_model(name).config
    changed: Fields = {"context_length": task.context, "prediction_length": task.horizon}
    if getattr(config, "num_input_channels", None):
        changed["num_input_channels"] = len(task.columns)
    if getattr(config, "num_time_features", 0):
        changed["num_time_features"] = _marks(task)
    return create_model(name, **changed)


def preset_context(name: str) -> int | None:
    """The context that a preset was published with; None for another name."""
    if name not in presets.PRESETS:
        return None
    from lightformers.models import create_model

    with torch.device("meta"):
        return int(create_model(name).config.context_length)


def _kin(name: str) -> Family:
    """The family whose class a preset has, for how it is trained."""
    same = [f for f in FAMILIES.values() if f.model == presets.PRESETS[name].model]
    return same[0] if same else Family(name, presets.PRESETS[name].model)


def folder_of(name: str) -> Path | None:
    """The model's folder that --model means, also by the folder of the run that saved it; None for a name."""
    if name in FAMILIES or name in presets.PRESETS or not Path(name).is_dir():
        return None
    inner = Path(name) / MODEL
    return (
        inner
        if (inner / "config.json").is_file() and not (Path(name) / "config.json").is_file()
        else Path(name)
    )


def opened(folder: str | Path) -> Bundle:
    """The forecaster in a folder. Raises ModelError where it holds none."""
    bundle = load(folder, task="forecasting")
    if not getattr(bundle.model.config, "context_length", None):
        raise ModelError(f"{folder} holds no forecaster: its config.json names no context_length")
    return bundle


def fitted(bundle: Bundle, task: Forecasting, adapt: bool, folder: str) -> Contender:
    """The model of a folder for this series. For the columns that it was made for it keeps its scale; other series are
    standardised by their own training rows. Raises DataError where it cannot read them."""
    held, config = bundle.processor, bundle.model.config
    channels = getattr(config, "num_input_channels", None)
    if channels and channels != len(task.columns):
        raise DataError(
            f"the model in {folder} reads {channels} columns together, the series has {len(task.columns)} "
            f"({', '.join(task.columns)}): train one, without --model {folder}"
        )
    if isinstance(held, SeriesProcessor) and held.columns == task.columns and held.known == task.known:
        if task.missing and not held.masked:
            _masked(bundle.model)
            bundle.processor = dataclasses.replace(held, masked=True)
    else:
        _bundle(bundle.model, task, bundle)
    kin = [f for f in FAMILIES.values() if f.model.endswith(f":{type(bundle.model).__name__}")]
    label = f"{kin[0].label if kin else type(bundle.model).__name__} ({folder})"
    if not adapt:
        return Contender(folder, label, bundle, None)
    training = paced(kin[0].training if kin else {}, task)
    return Contender(folder, label, bundle, {**training, "lr": training["lr"] / 4}, make=bundle.copy().copy)


def _masked(model: Any) -> bool:
    if "past_observed_mask" not in inspect.signature(model.forward).parameters:
        raise DataError(
            f"the series has missing values, and a {type(model).__name__} cannot read a series with some: fill them, or name another --model"
        )
    return True


def _bundle(model: Any, task: Forecasting, bundle: Bundle | None = None) -> Bundle:
    """With a processor that gives the model what it reads."""
    config = model.config
    known = bool(getattr(config, "known_channels", None))
    if known and tuple(config.known_channels) != task.known:
        raise DataError("the model reads the future of known columns: name the same ones with --known")
    processor = task.processor(
        masked=task.missing and _masked(model), marks=bool(getattr(config, "num_time_features", 0)),
        coded="frequency" in inspect.signature(model.forward).parameters and _codes(config), known=known,
    )  # fmt: skip
    made = bundle or Bundle(model, None, "forecasting")
    made.processor = processor
    return made


def _codes(config: Any) -> bool:
    """Whether the model has a table of rates of sampling."""
    return bool(getattr(config, "resolution_prefix", getattr(config, "resolution_prefix_tuning", False)))
