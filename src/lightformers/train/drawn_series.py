"""Series that nobody recorded: days, weeks and years of drawn shape under trend and noise, to pre-train a forecaster on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lightformers.errors import UserError
from lightformers.tasks.stamps import SEASONS, SPANS
from lightformers.train.resolutions import Source

_DAY = 86400
#: A season is drawn only where the rows hold so many of it.
_OFTEN = 8
#: How much of the noise of a step is carried on to the next, one drawn for each channel.
_CARRIED = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)
_HARMONICS = 4
_ROWS, _LEAST, _MOST = 3000, 16, 100


def seasons(frequency: str) -> tuple[int, ...]:
    """Rows of the seasons that series of this frequency have, shortest first. Raises UserError where none is known."""
    if frequency not in SEASONS:
        raise UserError(f"no season is known of {frequency!r}, but of {', '.join(SEASONS)}")
    span = SPANS.get(frequency, 0)
    spans = [days * _DAY // span for days in (1, 7, 365) if span and days * _DAY > span]
    return tuple(sorted({SEASONS[frequency], *spans}))


def drawn(frequency: str, channels: int = _MOST, rows: int = _ROWS, seed: int = 0) -> Source:
    """Channels that are each a sum of seasons, a random walk and autoregressive noise, all of random size.

    A season's shape is a few random harmonics; its height wanders from one to the next. The shortest is in every channel, a
    longer one in three of four as far as eight of it fit. The mixture is ours; pre-training on drawn seasons beside recorded
    series is common among forecasters (arXiv 2403.07815 draws them from Gaussian processes).
    """
    draw = np.random.default_rng((seed, len(frequency), *frequency.encode()))
    lengths = [n for n in seasons(frequency) if n * _OFTEN <= rows]
    if not lengths:
        raise UserError(
            f"{rows} rows hold fewer than {_OFTEN} seasons of {seasons(frequency)[0]}: draw more rows"
        )
    columns = [_channel(draw, lengths, rows) for _ in range(channels)]
    return Source(f"drawn {frequency}", np.stack(columns, 1), frequency)


def with_drawn(sources: Sequence[Source], window: int) -> list[Source]:
    """The sources, and drawn series of every frequency among them whose season is known: about as many, 16 to 100 channels.

    window: rows that a drawn series has at least twice.
    """
    rows = max(_ROWS, 2 * window)
    count = Counter[str]()
    for source in sources:
        count[source.frequency] += source.values.shape[1]
    known = [f for f in sorted(count) if f in SEASONS and seasons(f)[0] * _OFTEN <= rows]
    return [*sources, *(drawn(f, min(max(count[f], _LEAST), _MOST), rows) for f in known)]


def _channel(draw: np.random.Generator, lengths: list[int], rows: int) -> NDArray[np.float64]:
    made = np.zeros(rows)
    for length in lengths:
        if length == lengths[0] or draw.random() < 0.75:
            made += draw.lognormal(0, 0.7) * _season(draw, length, rows)
    made += draw.lognormal(-0.3, 0.7) * _noise(draw, rows)
    if draw.random() < 0.5:
        made += draw.lognormal(-0.3, 1) * np.cumsum(draw.standard_normal(rows)) / np.sqrt(rows)
    return made


def _season(draw: np.random.Generator, length: int, rows: int) -> NDArray[np.float64]:
    """A shape of deviation 1, repeated, its height a smooth random path about 1."""
    phase = np.arange(length) / length
    count = int(draw.integers(1, _HARMONICS + 1))
    waves = [
        draw.standard_normal() / j * np.cos(2 * np.pi * (j * phase + draw.random()))
        for j in range(1, count + 1)
    ]
    shape = np.sum(waves, 0)
    time, times = np.arange(rows), rows // length + 2
    height = np.exp(0.1 * draw.random() * np.cumsum(draw.standard_normal(times)))
    path: NDArray[np.float64] = np.interp(time / length, np.arange(times), height)
    return path * (shape / max(float(shape.std()), 1e-6))[time % length]


def _noise(draw: np.random.Generator, rows: int) -> NDArray[np.float64]:
    """Autoregressive of order one, deviation 1."""
    carried = float(draw.choice(_CARRIED))
    fresh, made = draw.standard_normal(rows) * np.sqrt(1 - carried**2), np.empty(rows)
    last = 0.0
    for place, value in enumerate(fresh.tolist()):
        made[place] = last = carried * last + value
    return made
