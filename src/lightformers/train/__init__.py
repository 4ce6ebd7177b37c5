"""Training: one loop for everything, on a budget."""

from __future__ import annotations

from lightformers.train.feed import Feed
from lightformers.train.loop import Diverged, Settings, TrainResult, fit
from lightformers.train.state import TrainState

__all__ = ["Diverged", "Feed", "Settings", "TrainResult", "TrainState", "fit"]
