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

_UNITABE = "lightformers.models.tabular.unitabe:UniTabE"


def _unitabe(width: int, depth: int, heads: int, words: int = 30522) -> dict[str, int]:
    return {
        "vocab_size": words, "embedding_size": width, "hidden_size": width, "num_hidden_layers": depth,
        "num_attention_heads": heads, "intermediate_size": 2 * width,
    }  # fmt: skip


#: Names for `lightformers.create_model`.
PRESETS: dict[str, Preset] = {
    "tabdpt": Preset(
        {},
        25_801_227,
        "lightformers.models.tabular.tabdpt:TabDPT",
        source="the default configuration of the authors' code, arXiv 2410.18164; counted",
    ),
    "unitabe-base": Preset(
        _unitabe(768, 12, 12), 91_982_595, _UNITABE, source="arXiv 2307.09249, the released fine-tuning model"
    ),
    "unitabe-small": Preset(
        _unitabe(512, 6, 8),
        33_500_675,
        _UNITABE,
        source="arXiv 2307.09249, the released code's default sizes, counted",
    ),
    "unitabe-tiny": Preset(_unitabe(64, 2, 4, 2048), 281_667, _UNITABE, source="ours, for a laptop"),
}
