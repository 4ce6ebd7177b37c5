"""Models of table rows: `model(**inputs) -> {"logits": (batch, classes)}` or `{"prediction": (batch,)}`.

Every model is a transformers `PreTrainedModel`; its configuration has `task`, "tabular-classification" or
"tabular-regression". Inputs are what its own processor (`lightformers.processors`) makes of rows: mappings from column to
number, text, or None where a cell is missing. A model that predicts in context takes the labelled rows as inputs too: they
come with the processor, not with the weights.

`prediction` is of the target in the units of `config.target_units`, (mean, deviation): prediction * deviation + mean is what
the data hold; without that field it is (0, 1). `config.id2label` names the classes.
"""

from __future__ import annotations

from lightformers.models.preset import Preset

#: Names for `lightformers.create_model`.
PRESETS: dict[str, Preset] = {}
