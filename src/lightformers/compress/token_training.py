"""Training of ZeTT's hypernetwork: sampled tokenizers, a frozen language model, and the two losses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.func import functional_call

from lightformers import anatomy
from lightformers.bundle import Batch, Bundle
from lightformers.compress import calibration
from lightformers.compress.new_rows import output, tables
from lightformers.compress.spelling import Speller, byte_letters
from lightformers.errors import DataError, ModelError
from lightformers.parts.token_network import TokenNetwork
from lightformers.runners.named import plain_arguments
from lightformers.steps import Run
from lightformers.train import Settings, fit

_LONGEST = 16
_SPLIT = pre_tokenizers.ByteLevel(add_prefix_space=False)


@dataclass(frozen=True)
class Training:
    """Sizes of the network and of its training; batch, length: texts of a batch, and tokens of a text; pool: texts that a
    tokenizer is sampled from; lexical: weight of the loss on tokens that are one piece."""

    pieces: int = 7
    hidden: int = 128
    layers: int = 3
    warm_steps: int = 200
    steps: int = 1000
    vocabulary: int = 4096
    lr: float = 1e-3
    batch: int = 16
    length: int = 64
    pool: int = 128
    lexical: float = 0.5


def sample_vocabulary(texts: Sequence[str], size: int, rng: np.random.Generator) -> list[tuple[str, float]]:
    """A random unigram vocabulary of byte-level pieces with log probabilities: all bytes, and the likeliest substrings.

    Probabilities are shares of the counts of substrings (up to 16 bytes within a word) plus normal noise, whose deviation
    is drawn from a log-normal distribution (log 1e-5, 4), so that tokenizers of one text differ much.
    """
    words = Counter(w for text in texts for w, _ in _SPLIT.pre_tokenize_str(text))
    counts: Counter[str] = Counter()
    for word, often in words.items():
        for start in range(len(word)):
            for end in range(start + 1, min(start + _LONGEST, len(word)) + 1):
                counts[word[start:end]] += often
    pieces = list(counts)
    shares = np.array([counts[p] for p in pieces], dtype=float)
    shares = shares / max(shares.sum(), 1.0) + rng.normal(0, rng.lognormal(np.log(1e-5), 4.0), len(pieces))
    letters = list(byte_letters().values())
    single = set(letters)
    floor = 1e-9
    known = {p: max(float(s), floor) for p, s in zip(pieces, shares)}
    chosen = [pieces[i] for i in np.argsort(-shares, kind="stable") if pieces[i] not in single]
    kept = [*letters, *chosen[: max(size - len(letters), 0)]]
    return [(p, float(np.log(known.get(p, floor)))) for p in kept]


class _Sampled:
    """Batches without end: each has a tokenizer of its own, sampled from texts at hand."""

    def __init__(self, texts: Sequence[str], speller: Speller, training: Training, seed: int) -> None:
        self.texts, self.speller, self.training, self.seed = texts, speller, training, seed
        self.known: dict[str, list[int]] = {}

    def batch(self, position: int) -> Batch:
        rng = np.random.default_rng((self.seed, position))
        pool = [self.texts[i] for i in rng.integers(0, len(self.texts), self.training.pool)]
        vocabulary = sample_vocabulary(pool, self.training.vocabulary, rng)
        tokenizer = Tokenizer(models.Unigram(vocabulary, None, False))
        tokenizer.pre_tokenizer = _SPLIT
        rows = [e.ids[: self.training.length] for e in tokenizer.encode_batch(pool[: self.training.batch])]
        rows = [r for r in rows if len(r) > 1] or [[0, 0]]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
            mask[place, : len(row)] = 1
        return Batch(
            {"input_ids": ids, "attention_mask": mask}, {"surface": self.surface([p for p, _ in vocabulary])}
        )

    def surface(self, pieces: Sequence[str]) -> Tensor:
        """(pieces, most pieces): byte-level pieces as the source splits them, -1 behind the last."""
        table = torch.full((len(pieces), self.training.pieces), -1, dtype=torch.long)
        back = _Letters.numbers
        for row, piece in zip(table, pieces):
            if piece not in self.known:
                self.known[piece] = self.speller.split(bytes(back[c] for c in piece))[: self.training.pieces]
            found = self.known[piece]
            row[: len(found)] = torch.tensor(found)
        return table


class _Letters:
    numbers = {letter: b for b, letter in byte_letters().items()}


class _Own:
    """Batches of the source's own tokens, for the warm-up: each is one piece, itself."""

    def __init__(self, tokens: Sequence[int], pieces: int, seed: int, size: int = 1024) -> None:
        self.tokens, self.pieces, self.seed, self.size = np.asarray(tokens), pieces, seed, size

    def batch(self, position: int) -> Batch:
        chosen = np.random.default_rng((self.seed, position)).choice(
            self.tokens, min(self.size, len(self.tokens)), False
        )
        surface = torch.full((len(chosen), self.pieces), -1, dtype=torch.long)
        surface[:, 0] = torch.from_numpy(chosen)
        return Batch({"input_ids": surface}, {"surface": surface})


def lexical_loss(network: TokenNetwork, made: Tensor, surface: Tensor) -> Tensor:
    """Mean squared distance to the source's rows of tokens that are one source token, over the mean norm of those rows."""
    alone = (surface >= 0).sum(1) == 1
    goal = network.source[surface[alone, 0]]
    if not len(goal):
        return made.sum() * 0.0
    return (made[alone] - goal).square().sum(1).mean() / network.source.norm(dim=1).mean()


def train(bundle: Bundle, texts: Sequence[str], training: Training, run: Run) -> TokenNetwork:
    """A network for this bundle's tokenizer and tables; the model stays as it is.

    Raises ModelError for other than causal language models, DataError without texts.
    """
    if bundle.task != "causal-lm":
        raise ModelError(
            "the hypernetwork learns through a causal language model: others take rows='mean' or 'focus'"
        )
    texts = [t for t in texts if len(t) > 1]
    if not texts:
        raise DataError("there are no texts to sample tokenizers from")
    model, found, speller = bundle.model, anatomy.of(bundle.model), Speller(bundle.processor)
    source = tables(model)
    heads = max(1, training.hidden // 64)
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        network = TokenNetwork(source, training.pieces, training.hidden, training.layers, heads).to(
            source.device
        )
    width = source.shape[1] // (1 if output(model) is None else 2)
    head = found.head if output(model) is not None else None
    arguments = plain_arguments(bundle.module())
    learns = [p.requires_grad for p in model.parameters()]

    def identity(module: nn.Module, batch: Batch) -> Tensor:
        surface = batch.targets["surface"].to(network.source.device)
        return (
            module(surface) - network.source[surface[:, 0]]
        ).square().mean() / network.deviation.square().mean()

    def through_the_model(module: nn.Module, batch: Batch) -> Tensor:
        surface = batch.targets["surface"].to(network.source.device)
        made = module(surface)
        replaced: dict[str, Any] = {f"{found.embeddings}.weight": made[:, :width]}
        if head is not None:
            replaced[f"{head}.weight"] = made[:, width:]
        outputs: Any = functional_call(model, replaced, (), {**batch.inputs, **arguments})
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
        scored = mask[:, 1:] & mask[:, :-1]
        nats = nn.functional.cross_entropy(outputs.logits[:, :-1][scored].float(), ids[:, 1:][scored])
        return nats + training.lexical * lexical_loss(network, made, surface)

    fields: dict[str, Any] = {
        "weight_decay": 0.01,
        "betas": (0.9, 0.95),
        "precision": "fp32",
        "seed": run.seed,
    }
    own = [t for t in speller.names if speller.spell(t) is not None]
    try:
        model.requires_grad_(False)
        with calibration.evaluating(model), torch.enable_grad():
            if training.warm_steps:
                warm = Settings(steps=training.warm_steps, lr=training.lr, clip=0.1, **fields)
                fit(
                    network,
                    _Own(own, training.pieces, run.seed),
                    identity,
                    warm,
                    run.progress,
                    device=run.device,
                )
            batches = _Sampled(texts, speller, training, run.seed)
            main = Settings(steps=training.steps, lr=training.lr / 5, clip=0.1, **fields)
            fit(network, batches, through_the_model, main, run.progress, device=run.device)
    finally:
        for parameter, was in zip(model.parameters(), learns):
            parameter.requires_grad_(was)
    return network.eval()
