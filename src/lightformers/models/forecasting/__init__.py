"""Forecasters: `model(past_values=...) -> Forecast`, (batch, length, channels) -> (batch, horizon, channels).

Every model is a transformers `PreTrainedModel` whose `forward` takes, by name,

past_values (batch, context_length, channels): the series, oldest first. A model that treats channels alike takes any number.
past_observed_mask (batch, context_length, channels): true where a value was seen; None where all were. What stands at other
    places never changes a forecast.
past_time_features (batch, context_length, marks), future_time_features (batch, horizon, marks): the calendar as numbers in
    [-0.5, 0.5], for models that read it.
future_values (batch, horizon, channels): read at channels alone whose future is known (prices, holidays), which the
    configuration names as `known_channels`; a model that reads none ignores it.
frequency (batch,) whole numbers: the rate of sampling, a row of `processors.series.FREQUENCIES`; 0 where unknown.

and gives back a `Forecast`. The configuration has `context_length`, `prediction_length`, and `num_input_channels` (None: any).
Another length than context_length is refused with a UserError, NaN at observed places too; the scale of a window is the
model's own business (`parts.series.Window`). A model whose training loss is not the error of `prediction` offers
`training_loss(inputs, future_values, future_observed_mask) -> scalar`; `train.forecasting` asks for it.
"""

from __future__ import annotations

from lightformers.models.preset import Preset

_TSMIXER = "lightformers.models.forecasting.tsmixer:TSMixer"
_TTM = "lightformers.models.forecasting.ttm:TinyTimeMixer"
#: Names for `lightformers.create_model`. Prefixed with the paper: "tsmixer-etth1-96".
PRESETS: dict[str, Preset] = {
    "tsmixer-etth1-96": Preset(
        {"prediction_length": 96, "initializer_range": None}, 432_096, _TSMIXER, source="official notebook for ETTh1; counted"
    ),
    "tsmixer-etth1-192": Preset(
        {"prediction_length": 192, "initializer_range": None}, 727_104, _TSMIXER, source="the notebook's sizes at horizon 192; counted"
    ),
    "ttm-512-96": Preset(
        {"prediction_length": 96}, 805_280, _TTM, source="release 1 of TTM, arXiv 2401.03955"
    ),
    "ttm-512-192": Preset(
        {"prediction_length": 192}, 903_680, _TTM, source="the sizes of release 1 at horizon 192; counted"
    ),
    "linear-etth1-96": Preset(
        {},
        64_704,
        "lightformers.models.forecasting.linear:LinearForecaster",
        source="DLinear, arXiv 2205.13504, counted from its sizes",
    ),
    **{
        f"itransformer-etth1-{horizon}": Preset(
            {"prediction_length": horizon, "num_time_features": 4, "hidden_size": width, "intermediate_size": width},
            parameters,
            "lightformers.models.forecasting.itransformer:ITransformer",
            source="arXiv 2310.06625, counted from the official script's sizes",
        )
        for horizon, width, parameters in (
            (96, 256, 841_568), (192, 256, 866_240), (336, 512, 3_379_024), (720, 512, 3_576_016),
        )
    },
    "gpht": Preset({}, 37_977_280, "lightformers.models.forecasting.gpht:GPHT", source="arXiv 2402.16516, counted"),
    "tempo-gpt2-96": Preset(
        {},
        94_326_530,
        "lightformers.models.forecasting.tempo:Tempo",
        source="arXiv 2310.04948, counted from its sizes: six layers of GPT-2, 81,912,576, and what is trained beside them",
    ),
}  # fmt: skip
