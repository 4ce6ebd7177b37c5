"""Another tokenizer for a trained model, without training the model (ZeTT, Minixhofer et al., 2024, arXiv 2405.07883)."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.anatomy.cutting import refit
from lightformers.anatomy.find import host
from lightformers.anatomy.settings import copies
from lightformers.bundle import Bundle
from lightformers.compress import new_rows
from lightformers.compress.spelling import Speller
from lightformers.compress.token_training import Training, train
from lightformers.compress.vocabulary import texts_of
from lightformers.errors import ModelError, UserError, reason
from lightformers.steps import Run, Stage
from lightformers.telemetry import quiet

Rows = Literal["network", "mean", "focus", "lexical"]
#: More pieces than a token has in any tokenizer worth comparing.
_ALL = 64
_ROLES = ("pad_token", "unk_token", "bos_token", "eos_token", "cls_token", "sep_token", "mask_token")


@dataclass(frozen=True)
class ZeroShotTokenizer:
    """Give a model the tokenizer in a folder, with embeddings made from those it has.

    tokenizer: folder of the new tokenizer, which must have every special token that the model's config names.
    rows: where new tokens' embeddings come from. "network": a hypernetwork, trained here on the task's texts with
        the model frozen (causal language models). "mean": tokens that both have are copied, others are the mean of their
        pieces (FVT). "focus": others are mixtures of shared tokens, by likeness. "lexical": others are random.
    pieces: the most pieces of a token that the network looks at; the rest is cut off.
    hidden, layers: of the network. warm_steps: updates in which it learns to give the model's own embeddings;
        steps: updates with sampled tokenizers of `vocabulary` tokens. lr: of the warm-up; a fifth of it thereafter.

    Special tokens keep their rows. Differs from the paper: sizes and steps are small by default; sampled tokenizers are
    unigram models over substrings of a pool of the task's texts; the auxiliary space of "focus" comes from co-occurrence.
    Compare losses per byte, never per token. The teacher of a recipe has another vocabulary from here on, so nothing
    can be distilled from it afterwards.
    """

    tokenizer: str = ""
    rows: Rows = "network"
    pieces: int = 7
    hidden: int = 128
    layers: int = 3
    warm_steps: int = 200
    steps: int = 1000
    vocabulary: int = 4096
    lr: float = 1e-3
    stage: ClassVar[Stage] = Stage.VOCABULARY

    def __post_init__(self) -> None:
        if not self.tokenizer:
            raise UserError("tokenizer must name the folder of the new tokenizer")
        if self.rows not in get_args(Rows):
            raise UserError(f"rows {self.rows!r} is not one of {', '.join(get_args(Rows))}")
        if min(self.pieces, self.hidden, self.layers, self.steps) < 1 or self.warm_steps < 0 or self.lr <= 0:
            raise UserError(
                "pieces, hidden, layers and steps must be at least 1, warm_steps at least 0, lr positive"
            )
        if self.vocabulary < 300:
            raise UserError(
                f"a sampled vocabulary holds all 256 bytes and some pieces: 300 or more, got {self.vocabulary}"
            )

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises ModelError for models and tokenizers that do not fit, UserError where texts are needed and none are."""
        new_tokenizer = read(self.tokenizer)
        old, new = Speller(bundle.processor), Speller(new_tokenizer)
        special = special_tokens(bundle, new_tokenizer)
        check(bundle, new, special)
        if self.rows in ("network", "focus") and task is None:
            raise UserError(f"rows={self.rows!r} learns from texts: give a task, or take rows='mean'")
        source = new_rows.tables(bundle.model)
        made = self.make(bundle, old, new, source, task, run)
        for token, was in special.items():
            made[token] = source[was]
        install(bundle, made, new_tokenizer, special)
        return bundle

    def make(self, bundle: Bundle, old: Speller, new: Speller, source: Tensor, task: Any, run: Run) -> Tensor:
        """(new tokens, columns of `tables`): a row for every new token."""
        count = 1 + max(new.names)
        made = new_rows.at_random(source, count, run.seed)  # what has no pieces (a special token) keeps this
        if self.rows == "network":
            surface, _ = new_rows.surfaces(new, old, self.pieces)
            training = Training(
                pieces=self.pieces, hidden=self.hidden, layers=self.layers, warm_steps=self.warm_steps,
                steps=self.steps, vocabulary=self.vocabulary, lr=self.lr,
            )  # fmt: skip
            network = train(bundle, list(texts_of(bundle, task, ("train",))), training, run)
            spelled = surface[:, 0] >= 0
            with torch.no_grad():
                made[spelled] = torch.cat(
                    [network(s) for s in surface[spelled].to(source.device).split(4096)]
                ).to(made)
            return made
        shared = new_rows.overlap(new, old)
        missing = [i for i in range(count) if i not in shared]
        if self.rows == "mean":
            surface, _ = new_rows.surfaces(new, old, _ALL)
            spelled = surface[:, 0] >= 0
            made[spelled] = new_rows.mean_of_pieces(source, surface[spelled].to(source.device))
        if self.rows == "focus" and missing:
            texts = list(texts_of(bundle, task, ("train",)))
            ids = new.tokenizer(texts, add_special_tokens=False)["input_ids"]
            vectors = new_rows.cooccurrence(ids, count)
            # a token that the texts never show has no neighbours, and is like all shared ones alike
            made[missing] = new_rows.by_neighbours(source, shared, vectors, missing)
        made[list(shared)] = source[list(shared.values())]
        return made


def read(folder: str) -> Any:
    """The tokenizer of a folder. Raises UserError where there is none."""
    from transformers import AutoTokenizer

    if not Path(folder).is_dir():
        raise UserError(f"there is no folder {folder} with a tokenizer")
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no tokenizer: {reason(error)}") from error


def special_tokens(bundle: Bundle, tokenizer: Any) -> dict[int, int]:
    """New id -> old id of the special tokens that both have in the same role."""
    found: dict[int, int] = {}
    for role in _ROLES:
        was, now = (getattr(t, f"{role}_id", None) for t in (bundle.processor, tokenizer))
        if was is not None and now is not None:
            found.setdefault(int(now), int(was))
    return found


def check(bundle: Bundle, new: Speller, special: dict[int, int]) -> None:
    """Raises ModelError where the model or the new tokenizer cannot be used."""
    found = anatomy.of(bundle.model)
    owner: Any = host(bundle.model)[1]
    if found.embeddings is None or not hasattr(owner, "config"):
        raise ModelError("this model has no word embedding whose rows could be made anew")
    words: Any = anatomy.get(bundle.model, found.embeddings).weight
    head = new_rows.output(bundle.model)
    if head is not None and head.shape != words.shape:
        raise ModelError(
            "word embedding and output layer have other widths: their rows cannot be made together"
        )
    known = set(special.values())
    for key, value in vars(owner.config).items():
        if (
            key.endswith("_token_id")
            and type(value) is int
            and 0 <= value < len(words)
            and value not in known
        ):
            name = bundle.processor.convert_ids_to_tokens(value)
            raise ModelError(
                f"the new tokenizer has no token for {key} ({name}): give it the model's special tokens"
            )
    if any(r.name == found.family and r.pad_counts for r in anatomy.FAMILIES):
        was, now = bundle.processor.pad_token_id, new.tokenizer.pad_token_id
        if was != now:
            raise ModelError(
                f"a {found.family} counts positions from its padding id: it must stay {was}, not be {now}"
            )


@torch.no_grad()
def install(bundle: Bundle, made: Tensor, tokenizer: Any, special: dict[int, int]) -> None:
    """Put the rows into the model, renumber the config's special tokens, and hand the bundle its new tokenizer."""
    model = bundle.model
    found, owner = anatomy.of(model), cast(Any, host(model)[1])
    words: Any = anatomy.get(model, found.embeddings or "").weight
    head = new_rows.output(model)
    size, width = words.shape
    new = {id(words): made[:, :width]}
    if head is not None:
        new[id(head)] = made[:, width:]
    layer = owner.get_output_embeddings() if hasattr(owner, "get_output_embeddings") else None
    bias = getattr(layer, "bias", None)
    if isinstance(bias, Tensor) and len(bias) == size:
        new[id(bias)] = bias.new_zeros(len(made))  # how common a token is: nothing is known of the new ones
    new_of = {was: now for now, was in special.items()}
    _swap(model, new, size, new_of)
    for held in (owner.config, getattr(owner, "generation_config", None)):
        for config in copies(owner, held) if held is not None else ():
            if getattr(config, "vocab_size", None) == size:
                config.vocab_size = len(made)
            for key, value in list(vars(config).items()):
                if key.endswith("_token_id") and type(value) is int:
                    setattr(config, key, new_of.get(value, value))
    bundle.processor = copy.copy(tokenizer)
    # rows have no source any more; distillation refuses such a map
    bundle.origin = replace(bundle.origin, vocabulary=(-1,) * len(made))


def _swap(model: nn.Module, new: dict[int, Tensor], size: int, new_of: dict[int, int]) -> None:
    """Other tensors for parameters known by identity, so that what is tied stays tied; modules learn their new sizes."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, held in module._parameters.items():
            if held is None or id(held) not in new:
                continue
            if id(held) not in made:
                value = new[id(held)].to(held).contiguous().clone()
                made[id(held)] = nn.Parameter(value, requires_grad=held.requires_grad)
            module._parameters[name] = made[id(held)]
            refit(module)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.padding_idx = new_of.get(module.padding_idx)
        if module.__dict__.get("vocab_size") == size:
            module.vocab_size = len(next(iter(new.values())))  # type: ignore[assignment]
        for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
            if type(module.__dict__.get(name)) is int:
                setattr(module, name, new_of.get(module.__dict__[name], module.__dict__[name]))
