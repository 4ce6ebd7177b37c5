"""Two classifiers, one behind the other: the second is asked about the rows that the first is not sure of."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from lightformers.errors import ModelError, UserError
from lightformers.models.registry import class_named, register
from lightformers.parts.recording import recorded

#: Task -> the class of a cascade for it.
CASCADES = {
    "text-classification": "CascadeForSequenceClassification",
    "image-classification": "CascadeForImageClassification",
}


class CascadeConfig(PretrainedConfig):
    """What a cascade is made of.

    first, second: the configurations of the two classifiers, as dictionaries that name their architecture.
    sure: the least probability of the first one's likeliest class with which its answer stands, in [0, 1].
    Raises UserError for another `sure` and for classifiers of different numbers of classes.
    """

    model_type = "lightformers-cascade"

    def __init__(
        self,
        first: Mapping[str, Any] | None = None,
        second: Mapping[str, Any] | None = None,
        sure: float = 0.9,
        **options: Any,
    ) -> None:
        if not 0 <= sure <= 1:
            raise UserError(f"sure is a probability in [0, 1], got {sure}")
        self.first, self.second, self.sure = dict(first or {}), dict(second or {}), sure
        classes = {_config(c).num_labels for c in (self.first, self.second) if c}
        if len(classes) > 1:
            raise UserError(f"both models of a cascade need the same classes; they have {classes}")
        super().__init__(**options)


class CascadeModel(PreTrainedModel):
    """CascadeBERT's complete models, one behind the other (Li et al., 2021, arXiv 2012.14682).

    Takes what its two classifiers take; -> logits (batch, classes): of a row that the first one is sure of, its own,
    else those of the second, which reads only such rows. At sure=0 the second is never asked; at 1 about every row
    whose probability is not rounded to 1.
    """

    config: CascadeConfig
    config_class = CascadeConfig
    #: What a plain transformers folder cannot say of it.
    beyond_transformers = "it is two models, one behind the other"

    def __init__(self, config: CascadeConfig) -> None:
        super().__init__(config)
        self.first, self.second = _built(config.first), _built(config.second)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: both models come with theirs."""

    def forward(self, **inputs: Tensor) -> SequenceClassifierOutput:
        if recorded():
            raise ModelError(
                "a cascade decides row by row, which a traced graph cannot: run it in torch or OpenVINO"
            )
        logits = self.first(**inputs).logits
        rows = unsure(logits, self.config.sure)
        if len(rows):
            asked = self.second(**{name: value[rows] for name, value in inputs.items()}).logits
            logits = logits.index_copy(0, rows, asked.to(logits.dtype))
        return SequenceClassifierOutput(logits=logits)


class CascadeForSequenceClassification(CascadeModel):
    """A cascade of text classifiers."""


class CascadeForImageClassification(CascadeModel):
    """A cascade of image classifiers."""

    main_input_name = "pixel_values"


def unsure(logits: Tensor, sure: float) -> Tensor:
    """(batch, classes) -> (rows,) indices of the rows whose likeliest class is less probable than `sure`."""
    return (logits.float().softmax(-1).amax(-1) < sure).nonzero().squeeze(1)


def join(first: Any, second: Any, sure: float, task: str) -> PreTrainedModel:
    """A cascade of two models as they are; they are not copied. Raises ModelError for other tasks."""
    if task not in CASCADES:
        raise ModelError(f"a cascade needs classes to be sure of ({', '.join(CASCADES)}), not {task}")
    cls: Any = class_named(CASCADES[task])
    named = [m.config.to_dict() | {"architectures": [type(m).__name__]} for m in (first, second)]
    names = {"id2label": first.config.id2label, "label2id": first.config.label2id}
    config = CascadeConfig(named[0], named[1], sure, **names)
    with init_empty_weights():
        cascade: Any = cls(config)
    cascade.first, cascade.second = first, second
    made: PreTrainedModel = cascade.eval()
    return made


def _config(held: Mapping[str, Any]) -> Any:
    return AutoConfig.for_model(**copy.deepcopy(dict(held)))


def _built(held: Mapping[str, Any]) -> nn.Module:
    name = (held.get("architectures") or [""])[0]
    if (cls := class_named(name)) is None:
        raise ModelError(f"{name or 'a model without a name'} is no model class of transformers")
    model: nn.Module = cls(_config(held))
    return model


register()
