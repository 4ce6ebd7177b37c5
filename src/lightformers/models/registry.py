"""Our models by class name, made known to the Auto classes of transformers."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
import warnings
from typing import Any

#: Class name, as config.json writes it -> where the class is. Only these are ever looked up.
MODELS: dict[str, str] = {
    "CascadeForImageClassification": "lightformers.models.cascade",
    "CascadeForSequenceClassification": "lightformers.models.cascade",
    "Decoder": "lightformers.models.language.decoder",
    "Encoder": "lightformers.models.language.encoder",
    "EncoderForSequenceClassification": "lightformers.models.language.encoder",
    "GPHT": "lightformers.models.forecasting.gpht",
    "LinearForecaster": "lightformers.models.forecasting.linear",
    "ITransformer": "lightformers.models.forecasting.itransformer",
    "RowTransformer": "lightformers.models.tabular.rows",
    "TSMixer": "lightformers.models.forecasting.tsmixer",
    "TSMixerForPretraining": "lightformers.models.forecasting.tsmixer_pretraining",
    "Tempo": "lightformers.models.forecasting.tempo",
    "TinyTimeMixer": "lightformers.models.forecasting.ttm",
    "TabDPT": "lightformers.models.tabular.tabdpt",
    "UniTabE": "lightformers.models.tabular.unitabe",
}
#: Those that forecast, and those of table rows: their class names say what they are for.
FORECASTERS: tuple[str, ...] = (
    "GPHT",
    "ITransformer",
    "LinearForecaster",
    "TSMixer",
    "Tempo",
    "TinyTimeMixer",
)
TABULAR: tuple[str, ...] = ("RowTransformer", "TabDPT", "UniTabE")
#: Auto class -> the models that it opens.
AUTO: dict[str, tuple[str, ...]] = {
    "AutoModel": ("Encoder", *TABULAR),
    "AutoModelForTimeSeriesPrediction": FORECASTERS,
    "AutoModelForCausalLM": ("Decoder",),
    "AutoModelForImageClassification": ("CascadeForImageClassification",),
    "AutoModelForSequenceClassification": (
        "CascadeForSequenceClassification",
        "EncoderForSequenceClassification",
    ),
}
_LAYERS = "lightformers.models.language.layers"
#: Where transformers keeps its Auto classes.
_HOME = "transformers.models.auto.modeling_auto"


def model_class(name: str) -> Any | None:
    """The class of ours that bears this name, or None."""
    return getattr(importlib.import_module(MODELS[name]), name) if name in MODELS else None


def class_named(name: str) -> Any | None:
    """The model class that bears this name, ours or transformers', or None."""
    import transformers

    found = model_class(name) or getattr(transformers, name, None)
    known = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if known else None


def register() -> None:
    """Lets `AutoConfig`, `AutoModelForCausalLM` and their like open our models. Calling it again changes nothing."""
    import transformers

    for auto, names in AUTO.items():
        for name in filter(_whole, names):
            found: Any = model_class(name)
            transformers.AutoConfig.register(found.config_class.model_type, found.config_class, exist_ok=True)
            getattr(transformers, auto).register(found.config_class, found, exist_ok=True)


def _whole(name: str) -> bool:
    """Whether the class can be had: a module that is being imported registers at its own end."""
    module: Any = sys.modules.get(MODELS[name])
    return hasattr(module, name) or not getattr(getattr(module, "__spec__", None), "_initializing", False)


def register_in_time() -> None:
    """`register`, now if the Auto classes are imported, else as soon as they are.

    So `import lightformers` costs nothing and is enough, on whichever side of the import of transformers it stands.
    transformers has no other place where a package could announce its models.
    """
    if _HOME in sys.modules:
        register()
    elif not any(isinstance(finder, _AutoClasses) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AutoClasses())


class _AutoClasses(importlib.abc.MetaPathFinder):
    """Waits for one module, is gone before it is imported as ever, and registers after it."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != _HOME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            run = loader.exec_module

            def exec_module(module: Any) -> None:
                run(module)
                if any(name in sys.modules for name in (*MODELS.values(), _LAYERS)):
                    return  # it is one of them that imports transformers just now, and it registers at its end
                if _half_imported():
                    sys.meta_path.insert(0, _Later())
                else:
                    _try()

            loader.exec_module = exec_module
        return spec


class _Later(importlib.abc.MetaPathFinder):
    """Registers at the next import for which the layers that our models build on are whole."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if not _half_imported():
            sys.meta_path.remove(self)
            _try()
        return None


def _half_imported() -> bool:
    """It was transformers' own layers that imported the Auto classes: they have no classes themselves yet."""
    layers = sys.modules.get("transformers.modeling_layers")
    return layers is not None and not hasattr(layers, "GradientCheckpointingLayer")


def _try() -> None:
    try:
        register()
    except Exception as error:  # a release that registers otherwise must still be usable by itself
        warnings.warn(
            f"lightformers' models are unknown to transformers' Auto classes: {error}", stacklevel=2
        )
