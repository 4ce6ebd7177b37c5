"""Models of table rows: `model(**inputs) -> {"logits": (batch, classes)}` or `{"prediction": (batch,)}`.

Every model is a transformers `PreTrainedModel`; its configuration has `task`, "tabular-classification" or
"tabular-regression". Inputs are what its own processor (`lightformers.processors`) makes of rows: mappings from column to
number, text, or None where a cell is missing. A model that predicts in context takes the labelled rows as inputs too: they
come with the processor, not with the weights.
"""

from __future__ import annotations

from lightformers.models.preset import Preset

#: Names for `lightformers.create_model`.
PRESETS: dict[str, Preset] = {
    "tabdpt": Preset(
        {},
        25_801_227,
        "lightformers.models.tabular.tabdpt:TabDPT",
        source="the default configuration of the authors' code, arXiv 2410.18164; counted",
    ),
}
