"""Models that can be trained on a series: which there are, how large they are made for it, how they are trained."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from lightformers.bundle import Bundle
from lightformers.errors import DataError, UserError
from lightformers.models import forecasting as presets
from lightformers.tasks.forecasting import Forecasting

Fields = dict[str, Any]
#: The folder, in that of a run, where its model lies.
MODEL = "model"


@dataclass(frozen=True)
class Family:
    """A kind of model, made to the measure of a series.

    model: "module:Class". fields: of its configuration, besides context_length and prediction_length, for a task.
    training: fields of `train.forecasting.Epochs`. share: of the training time, beside the others of a run. frozen: what
    stays as it is when a saved model is adapted: patterns of parameter names. known: it reads the future of known columns.
    """

    label: str
    model: str
    fields: Callable[[Forecasting], Fields] = lambda task: {}
    training: Mapping[str, Any] = field(default_factory=dict)
    share: float = 1.0
    frozen: tuple[str, ...] = ()
    known: bool = False


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


def patch(context: int, least: int) -> int:
    """The longest patch, a power of two up to 64, of which a window holds at least so many."""
    return max((size for size in (64, 32, 16, 8, 4, 2) if context // size >= least), default=1)


def _tsmixer(task: Forecasting) -> Fields:
    """Half as wide as in the paper, so that two minutes on two cores hold epochs enough."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "expansion_factor": 2}
    return {**sizes, "patch_length": min(patch(task.context, 8), 16), "dropout": 0.2, "head_dropout": 0.5}


def small_ttm(context: int) -> Fields:
    """A Tiny Time Mixer of about a tenth of the published one, for two cores."""
    return {"patch_length": patch(context, 6), "hidden_size": 64, "decoder_hidden_size": 64}


def _ttm(task: Forecasting) -> Fields:
    known = {**_known(task), "channel_context": 1} if task.known else {}
    return {**small_ttm(task.context), **known}


_MODELS = "lightformers.models.forecasting"
#: Name -> how it is made. The sizes are the papers' for ETTh1 where they say some; smaller where those need a GPU.
FAMILIES: dict[str, Family] = {
    "tsmixer": Family(
        "TSMixer", f"{_MODELS}.tsmixer:TSMixer", _tsmixer,
        {"epochs": 20, "patience": 4, "lr": 2e-3, "schedule": "cosine", "windows": 2048},
    ),
    "ttm": Family(
        "Tiny Time Mixer", f"{_MODELS}.ttm:TinyTimeMixer", _ttm,
        {"epochs": 20, "patience": 4, "lr": 1e-3, "schedule": "cosine", "windows": 2048}, 1.0, ("backbone.*",), True,
    ),
    "linear": Family(
        "Linear (trend, season)", f"{_MODELS}.linear:LinearForecaster", _known,
        {"epochs": 10, "patience": 4, "lr": 3e-3, "schedule": "cosine", "windows": 8192}, 0.3, (), True,
    ),
    "itransformer": Family(
        "iTransformer", f"{_MODELS}.itransformer:ITransformer",
        lambda task: {"num_time_features": _marks(task), "hidden_size": 128, "intermediate_size": 128},
        {"epochs": 20, "patience": 4, "lr": 5e-4, "schedule": "cosine", "windows": 2048},
    ),
    "gpht": Family(
        "GPHT", f"{_MODELS}.gpht:GPHT",
        lambda task: {**_segments(task), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
        {"epochs": 10, "patience": 3, "lr": 5e-4, "schedule": "cosine", "windows": 4096},
    ),
}  # fmt: skip
#: Tried unless one is named.
DEFAULT, DEFAULT_KNOWN = ("tsmixer", "itransformer", "linear"), ("ttm", "linear")


def names() -> list[str]:
    """What --model may name, besides baselines and folders."""
    return [*FAMILIES, *presets.PRESETS]


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
        return outfitted(_of_family(family, task) if family else _of_preset(name, task), task)

    found = family or _kin(name)
    return Contender(
        name, family.label if family else name, make(), paced(found.training, task), found.share, make
    )  # fmt: skip


def default(task: Forecasting, seed: int) -> list[Contender]:
    """Those that are tried where none is named: with known columns, those that read their future; without columns to mix or
    a calendar to read, no iTransformer."""
    names = DEFAULT_KNOWN if task.known else DEFAULT
    apart = len(task.columns) == 1 and not _marks(task)
    return [contender(name, task, seed) for name in names if name != "itransformer" or not apart]


def _of_family(family: Family, task: Forecasting) -> Any:
    module, name = family.model.split(":")
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


def reads_known(made: Contender) -> bool:
    """Whether it reads the future of the known columns."""
    return bool(made.bundle.processor.known)


def masked(model: Any) -> bool:
    """True. Raises DataError where the model cannot be told which values are missing."""
    if "past_observed_mask" not in inspect.signature(model.forward).parameters:
        raise DataError(
            f"the series has missing values, and a {type(model).__name__} cannot read a series with some: fill them, or name another --model"
        )
    return True


def outfitted(model: Any, task: Forecasting, bundle: Bundle | None = None) -> Bundle:
    """With a processor that gives the model what it reads."""
    config = model.config
    known = bool(getattr(config, "known_channels", None))
    if known and tuple(config.known_channels) != task.known:
        raise DataError("the model reads the future of known columns: name the same ones with --known")
    processor = task.processor(
        masked=task.missing and masked(model), marks=bool(getattr(config, "num_time_features", 0)),
        coded="frequency" in inspect.signature(model.forward).parameters and _codes(config), known=known,
    )  # fmt: skip
    made = bundle or Bundle(model, None, "forecasting")
    made.processor = processor
    if bundle is None and known and hasattr(model, "start_known"):
        model.start_known(torch.from_numpy(processor.standardise(task.series.values[: task.borders[0]])))
    return made


def _codes(config: Any) -> bool:
    """Whether the model has a table of rates of sampling."""
    return bool(getattr(config, "resolution_prefix", getattr(config, "resolution_prefix_tuning", False)))
