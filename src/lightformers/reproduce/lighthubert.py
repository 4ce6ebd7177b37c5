"""LightHuBERT (arXiv 2203.15610): does a once-for-all speech encoder need two stages, and what does it cost?

    lightformers reproduce lighthubert

Hardware: two cores, five minutes. Data: free spoken digits (8 kHz). Teacher: an encoder of HuBERT's form (4 blocks,
width 96, 6 heads of 16, 4 convolutions) trained on the digits. Super-networks of random weights (width 48, 72 or 96; per
block 3, 4 or 6 heads and ratio 2, 3 or 4; 3 or 4 blocks) learn its states without labels; then digit and speaker are read off frozen
features by a linear probe. Expected: two stages at least as good as one; the default size close to one distilled
alone; slices of the teacher, not distilled, poor.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightformers import reproduce
from lightformers.bundle import Batch, Bundle
from lightformers.compress.elastic import waves
from lightformers.compress.elastic.lighthubert import LightHuBERT, default_size
from lightformers.compress.elastic.shared import Shared
from lightformers.compress.elastic.size import Size
from lightformers.compress.elastic.space import Space
from lightformers.reproduce import common
from lightformers.reproduce.finding import Finding
from lightformers.steps import Run
from lightformers.train import Feed, Settings, fit

CLAIM = (
    "A speech super-network distilled in two stages serves its sizes at least as well as one trained in a single stage "
    "for equal steps, and at its default size loses at most two points to a network of that size distilled alone."
)
_LONGEST = 6400  # samples: 0.8 s
_SHORTEST = 1700  # samples: two spans of ten frames
_SECONDS = 5.0  # of padded audio in a batch, counted at 16 kHz: 12 clips of the longest
_STEP = LightHuBERT(
    blocks=(3, 4), heads=(3, 4, 6), width=(48, 72, 96), ratios=(2.0, 3.0, 4.0), lr=2e-3, max_seconds=_SECONDS
)
_TWO = "two stages"
_ONE = "one stage"
_ALONE = "default size, distilled alone"
_SLICED = "slices of the teacher"
#: Share of the time in which the teacher learns the digits.
_TEACHER = 0.2


@dataclass(frozen=True)
class Digits:
    """Clips of one part of the set. audio: rows of samples; digit, speaker: (n,)."""

    audio: list[np.ndarray]
    digit: np.ndarray
    speaker: np.ndarray

    def training_examples(self, labels: bool) -> list[dict[str, Any]]:
        return [{"audio": a} for a in self.audio]

    def first(self, count: int) -> Digits:
        return Digits(self.audio[:count], self.digit[:count], self.speaker[:count])

    def batches(self) -> list[Batch]:
        """In order, 32 clips each."""
        return [waves.collate(self.audio[i : i + 32]) for i in range(0, len(self.audio), 32)]


def digits(first: int, last: int, most: int) -> Digits:
    """Recordings `first` to `last` of each speaker and digit (0 to 4 are the test part), at most so many, drawn once."""
    with np.load(reproduce.data("fsdd") / "fsdd.npz") as file:
        held = {name: file[name] for name in ("audio", "offsets", "label", "speaker", "index")}
    length = np.diff(held["offsets"])
    inside = (held["index"] >= first) & (held["index"] <= last) & (length >= _SHORTEST)
    chosen = np.random.default_rng(0).permutation(np.flatnonzero(inside))[:most]
    clips = [
        held["audio"][(at := int(held["offsets"][i])) : at + min(int(length[i]), _LONGEST)] for i in chosen
    ]
    return Digits(
        [c.astype(np.float32) / 32768 for c in clips], held["label"][chosen], held["speaker"][chosen]
    )


def run(budget: float = common.FULL) -> Finding:
    """Train the teacher once, distil every arm and probe its sizes, once per seed."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    train, test = digits(5, 49, clock.size(2600, 60)), digits(0, 4, clock.size(300, 20))
    probed = train.first(clock.size(400, 20))
    teacher = encoder(0)
    taught = teach(teacher, train, budget * _TEACHER)
    space = _STEP.space(teacher)
    sizes = {"smallest": space.smallest, "default": default_size(space), "largest": space.largest}
    if not clock.few:
        rng = np.random.default_rng(1)
        sizes |= {f"random {i}": space.sample(rng) for i in range(1, 7)}
    sliced = Shared(teacher, space.nesting)
    begun = time.monotonic()
    slices = {name: probe(sliced, size, probed, test) for name, size in sizes.items()}
    probing = (time.monotonic() - begun) / len(sizes) * (2 * len(sizes) + 1)
    samples = _plan(clock, teacher, train, probing, len(seeds))
    scores: dict[str, dict[str, list[float]]] = {arm: {} for arm in (_TWO, _ONE, _ALONE, _SLICED)}
    used = []
    for seed, count in clock.rounds(seeds, samples):
        used.append(count)
        for arm, found in scores.items():
            shared = (
                None
                if arm == _SLICED
                else Shared(distilled(arm, teacher, train, space, count, seed), space.nesting)
            )
            for name, size in sizes.items():
                if arm == _ALONE and name != "default":
                    continue
                digit, speaker = probe(shared, size, probed, test) if shared else slices[name]
                found.setdefault(f"digit, {name}", []).append(digit)
                found.setdefault(f"speaker, {name}", []).append(speaker)
    return _conclude(clock, seeds, scores, list(sizes), used, taught, slices["largest"], space, teacher)


def encoder(seed: int) -> Bundle:
    """HuBERT's form, small, with random weights: 100 frames a second at 8 kHz."""
    from transformers import HubertConfig, HubertModel

    config = HubertConfig(
        vocab_size=8, hidden_size=96, num_hidden_layers=4, num_attention_heads=6, intermediate_size=384,
        conv_dim=(96,) * 4, conv_kernel=(10, 8, 4, 4), conv_stride=(5, 4, 2, 2),
        feat_extract_norm="layer", num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=8,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: nn.Module = HubertModel(config)
    return Bundle(model.eval())


class _Classifier(nn.Module):
    """The mean of the real frames' states, and a linear layer."""

    def __init__(self, model: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.model = model
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.head = nn.Linear(width, classes)

    def forward(self, **inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(_mean(self.model(**inputs).last_hidden_state, self.model, inputs))
        return logits


def _mean(states: Tensor, model: nn.Module, inputs: Any) -> Tensor:
    count = torch.from_numpy(waves.frames(model, Batch(dict(inputs), {})))[:, None]
    real = (torch.arange(states.shape[1])[None] < count).to(states)
    return torch.einsum("btd,bt->bd", states, real) / real.sum(1, keepdim=True)


def teach(bundle: Bundle, data: Digits, seconds: float) -> int:
    """Train the encoder, in place, to tell the digits apart; returns the steps made."""
    job = _Classifier(bundle.model, 96, 10)
    rows = list(zip(data.audio, data.digit))

    def pad(items: list[Any], seed: int) -> Batch:
        batch = waves.collate([audio for audio, _ in items])
        return Batch(batch.inputs, {"label": torch.tensor([int(label) for _, label in items])})

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(module(**batch.inputs).float(), batch.targets["label"])

    lengths = np.array([len(a) for a in data.audio])
    feed = Feed(rows, pad, lengths, int(_SECONDS * waves.RATE))
    # fp32: in bf16 the loss became NaN after a hundred steps
    settings = Settings(seconds=max(seconds, 0.2), lr=1e-3, warmup=0.1, precision="fp32")
    return fit(job, feed, loss, settings).steps


def distilled(arm: str, teacher: Bundle, data: Digits, space: Space, samples: int, seed: int) -> Bundle:
    """The super-network of an arm after training on so many samples of audio."""
    step = _STEP if arm == _TWO else replace(_STEP, first=0.0)
    if arm == _ALONE:
        size = default_size(space)
        ratio = size.channels[0] / size.width
        step = replace(
            step, blocks=(size.blocks,), heads=(size.heads[0],), width=(size.width,), ratios=(ratio,)
        )
    return step.train(encoder(seed + 1), data, Run(teacher=teacher, tokens=samples, seed=seed, dtype="fp32"))


@torch.no_grad()
def probe(shared: Shared, size: Size, train: Digits, test: Digits) -> tuple[float, float]:
    """Accuracy on digits and on speakers of a linear probe (ridge) on frozen features."""

    def features(data: Digits) -> np.ndarray:
        model = shared.bundle.model
        found = [_mean(shared(size, **b.inputs).last_hidden_state, model, b.inputs) for b in data.batches()]
        return torch.cat(found).double().numpy()

    x, z = features(train), features(test)
    middle, spread = x.mean(0), x.std(0) + 1e-6
    x, z = (np.c_[(f - middle) / spread, np.ones(len(f))] for f in (x, z))
    gram = x.T @ x + 0.01 * len(x) * np.eye(x.shape[1])
    out = []
    for known, wanted in ((train.digit, test.digit), (train.speaker, test.speaker)):
        goals = np.eye(int(known.max()) + 1)[known]
        guess = (z @ np.linalg.solve(gram, x.T @ goals)).argmax(1)
        out.append(float((guess == wanted).mean()))
    return out[0], out[1]


def _plan(clock: common.Clock, teacher: Bundle, data: Digits, probing: float, seeds: int) -> int:
    """Samples of audio that one arm may hear, from a short timed training. probing: seconds per seed."""
    space, few = _STEP.space(teacher), int(_SECONDS * waves.RATE)
    distilled(_ONE, teacher, data, space, few, 0)  # first calls are slow
    begun, count = time.monotonic(), (1 if clock.few else 8) * few
    distilled(_ONE, teacher, data, space, count, 0)
    rate = count / (time.monotonic() - begun)
    return max(int(rate * (clock.left() / seeds - probing) / 3), few)


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], scores: dict[str, dict[str, list[float]]], names: list[str],
    used: list[int], taught: int, ceiling: tuple[float, float], space: Space, teacher: Bundle,
) -> Finding:  # fmt: skip
    def mean(arm: str, among: list[str]) -> list[float]:
        return [sum(v) / len(among) for v in zip(*(scores[arm][f"digit, {name}"] for name in among))]

    stages = common.gain(mean(_TWO, names), mean(_ONE, names))
    alone = common.gain(scores[_TWO]["digit, default"], scores[_ALONE]["digit, default"])
    smaller = [name for name in names if name != "largest"]  # the largest slice is the teacher itself
    sliced = common.gain(mean(_TWO, smaller), mean(_SLICED, smaller))
    verdict = common.together(reproduce.judge(stages, margin=-0.005), reproduce.judge(alone, margin=-0.02))
    caution = ""
    if np.mean(scores[_TWO]["digit, largest"]) < 0.3:
        verdict, caution = "inconclusive", " Nothing follows: the students have hardly learnt."
    table = []
    for arm, cells in scores.items():
        random = [
            cells.pop(f"digit, {n}") for n in names if n.startswith("random") and f"digit, {n}" in cells
        ]
        shown: dict[str, Any] = {k: v for k, v in cells.items() if "random" not in k}
        if random:
            shown["digit, mean of 6 random"] = [sum(v) / len(random) for v in zip(*random)]
        table.append(reproduce.row(arm, **shown))
    shared = Shared(teacher, space.nesting)
    shapes = (("smallest", space.smallest), ("default", default_size(space)), ("largest", space.largest))
    return reproduce.conclude(
        slug="lighthubert",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"digit accuracy over {len(names)} sizes, two stages against one: {common.said(stages)}; the default size "
            f"against one distilled alone: {common.said(alone)}; two stages against smaller slices of the teacher: "
            f"{common.said(sliced)}.{caution}"
        ),
        table=table,
        baseline=_ONE,
        settings={
            "teacher": f"4 blocks, width 96, 6 heads of 16; {taught} steps on digits; probe: digit {ceiling[0]:.3f}, speaker {ceiling[1]:.3f}",
            "sizes": {n: f"{s}: {shared.parameters_of(s):,} parameters" for n, s in shapes},
            "sizes in the space": space.count,
            "seconds of audio per arm": {str(s): round(n / 8000) for s, n in zip(seeds, used)},
            "masked": "65 % in spans of 10 frames; stage 1 has half of the budget",
            "data": "free spoken digits, clips of 0.21 to 0.8 s; 5 of 50 recordings of each digit and speaker are test",
        },
        limits=(
            "A small teacher trained on the very digits, minutes of distillation, one language of ten words: speech "
            "recognition and SUPERB cannot be shown, nor a teacher trained without labels. Chance is 0.1 for digits, 0.17 "
            "for speakers." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )  # fmt: skip
