"""Elastic models: train once, then take out the size that fits.

    elastic = Elastic.train(model, task, MatFormer(), Run(use_labels=True))
    small = elastic.extract(elastic.pick("params=10M", task).size)

The sizes and their training are `lightformers.compress.elastic`; this room keeps, picks, extracts and shows them.
"""

from __future__ import annotations

from lightformers.elastic.budget import Budget
from lightformers.elastic.door import Elastic
from lightformers.elastic.picking import Picked

__all__ = ["Budget", "Elastic", "Picked"]
