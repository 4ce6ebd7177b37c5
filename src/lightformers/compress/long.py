"""A short encoder made long: copied positions, attention in windows or blocks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.errors import ModelError, UserError
from lightformers.steps import Run, Stage

Pattern = Literal["longformer", "bigbird"]

_MODEL_TYPE = {"longformer": "longformer", "bigbird": "big_bird"}
#: What transformers calls the models of each pattern, and the name of the encoder inside one with a head.
_CLASS = {"longformer": ("Longformer", "longformer"), "bigbird": ("BigBird", "bert")}
_HEADS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
_BERT_LM, _ROBERTA_LM = "cls.predictions.", "lm_head."
_LM = {
    "transform.dense.": "dense.",
    "transform.LayerNorm.": "layer_norm.",
    "decoder.": "decoder.",
    "bias": "bias",
}
#: (source family, pattern, head): beginnings of names there -> here. What is not listed keeps its name.
_RENAMED: dict[tuple[str, str, str], Mapping[str, str]] = {
    ("bert", "longformer", "ForMaskedLM"): {_BERT_LM + a: _ROBERTA_LM + b for a, b in _LM.items()},
    ("roberta", "bigbird", "ForMaskedLM"): {_ROBERTA_LM + b: _BERT_LM + a for a, b in _LM.items()},
    ("bert", "longformer", "ForSequenceClassification"): {
        "bert.pooler.dense.": "classifier.dense.",
        "classifier.": "classifier.out_proj.",
    },
}
_NO_HEAD = {
    ("bert", "bigbird", "ForSequenceClassification"): "its classification head has another activation",
    ("roberta", "bigbird", "ForSequenceClassification"): "its classification head has another activation",
    ("bert", "bigbird", "ForQuestionAnswering"): "its question-answering head has more layers",
    ("roberta", "bigbird", "ForQuestionAnswering"): "its question-answering head has more layers",
    (
        "bert",
        "longformer",
        "ForQuestionAnswering",
    ): "it finds the question by three separators, and BERT writes two",
}


@dataclass(frozen=True)
class ToLong:
    """Make a BERT or RoBERTa read long texts, as a plain Longformer or BigBird of transformers (Clinical-Longformer, Li
    et al., 2022, arXiv 2201.11838; the conversion is that of Longformer, Beltagy et al., 2020, arXiv 2004.05150).

    The learned positions are copied again and again; each token sees `window` / 2 tokens on either side, at cost
    O(length * window). Projections for global tokens start as copies of the local ones, so at window >= 2 * length the
    model gives what it gave. It works at once, a little worse, and should go on learning: masked language modelling
    at rate 3e-5, warm-up 500, for some thousand steps of 2^18 tokens. That never trains the global projections: apply
    `LocalToGlobal` after it. The result is a native model with tokenizer; head and pooling are kept.

    positions: the longest text in tokens, special ones included; more than the model reads now.
    window: tokens seen, both sides together, even; or one number per block.
    pattern: "longformer", or "bigbird": blocks of `block` tokens that see three neighbours, first and last block and
        `random` others (`window` is then unused).
    Global tokens are those of transformers' heads: the first for classification, the question for question answering,
    none for token classification, masked language modelling and vectors. After n blocks without one, evidence has
    travelled n * window / 2 tokens.

    Longformer of transformers 5.23 makes one mask of length * length per call; all else is linear in the length.
    Traps of its BigBird: below (5 + 2 * random) * block tokens it attends in full, and stays so until
    `set_attention_type("block_sparse")`; outside of training its random blocks are all the first block. Its heads for
    classification and question answering differ and are refused, as is BERT's for question answering by Longformer's.
    Positions count from the first token that is no padding: with left padding, BERT counted the padding too.
    """

    positions: int = 4096
    window: int | tuple[int, ...] = 512
    pattern: Pattern = "longformer"
    block: int = 64
    random: int = 3
    stage: ClassVar[Stage] = Stage.ADAPT

    def __post_init__(self) -> None:
        if self.pattern not in get_args(Pattern):
            raise UserError(f"pattern {self.pattern!r} is not one of {', '.join(get_args(Pattern))}")
        if isinstance(self.window, list):
            object.__setattr__(self, "window", tuple(self.window))
        for width in (self.window,) if isinstance(self.window, int) else self.window:
            if width < 2 or width % 2:
                raise UserError(
                    f"a window has two sides of equal size: it must be even and at least 2, not {width}"
                )
        if self.block < 1 or self.random < 1:
            raise UserError("block and random must be at least 1")
        if self.pattern == "bigbird" and self.positions % self.block:
            raise UserError(f"{self.positions} positions are no multiple of the block of {self.block}")

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises ModelError for models that are no plain BERT or RoBERTa, or whose head the pattern does not have;
        UserError for positions that are not more than there are, and windows that are not one per block."""
        model: Any = bundle.model
        family, head = _kind(model, self.pattern)
        separator = getattr(bundle.processor, "sep_token_id", None)
        config = long_config(model.config, family, self, separator)
        made = _build(config, self.pattern, head, getattr(model, "pooler", None) is not None)
        made.load_state_dict(self._tensors(model, family, head, made))
        made.tie_weights()
        some = next(model.parameters())
        bundle.model = made.to(some.device, some.dtype).train(model.training)
        bundle.max_length = self.positions
        if bundle.processor is not None:
            bundle.processor = copy.deepcopy(bundle.processor)
            bundle.processor.model_max_length = self.positions
        return bundle

    def _tensors(self, model: Any, family: str, head: str, made: nn.Module) -> dict[str, Tensor]:
        """The state of the long model, by its names."""
        prefix = model.base_model_prefix if head else ""
        inner = _CLASS[self.pattern][1] if head else ""
        renamed = _RENAMED.get((family, self.pattern, head), {})
        wanted, out = made.state_dict(), {}
        for name, tensor in model.state_dict().items():
            if start := next((s for s in renamed if name.startswith(s)), None):
                name = renamed[start] + name.removeprefix(start)
            elif prefix and name.startswith(prefix + "."):
                name = f"{inner}.{name.removeprefix(prefix + '.')}"
            if self.pattern == "bigbird":
                name = name.replace("pooler.dense.", "pooler.")
            if name.endswith("position_embeddings.weight"):
                tensor = long_table(tensor, self.positions, *_rows(model.config, family, self.pattern))
            if name in wanted:
                out[name] = tensor
            for piece in ("query", "key", "value"):
                if (
                    far := name.replace(f".self.{piece}.", f".self.{piece}_global.")
                ) != name and far in wanted:
                    out[far] = tensor
        # BigBird builds a pooler under every head, and those with one of their own never run it
        out |= {
            n: torch.zeros_like(t) for n, t in wanted.items() if head and ".pooler." in n and n not in out
        }
        if missing := sorted(wanted.keys() - out.keys()):
            raise ModelError(
                f"the model has nothing for {missing[0]} of the long one ({len(missing)} such names)"
            )
        return out


@dataclass(frozen=True)
class LocalToGlobal:
    """Copy the local projections of a Longformer into its global ones, in every block.

    After masked language modelling, which has no global tokens and so leaves those projections behind (Longformer,
    arXiv 2004.05150; Clinical-Longformer, arXiv 2201.11838), and before fine-tuning with global tokens.
    """

    stage: ClassVar[Stage] = Stage.ADAPT

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises ModelError for a model without global projections."""
        if not copy_to_global(bundle.model):
            raise ModelError(
                f"a {type(bundle.model).__name__} has no global projections: make it long with ToLong first"
            )
        return bundle


def copy_to_global(model: nn.Module) -> int:
    """Copy query, key, value into query_global, key_global, value_global, in place; how many attentions there were."""
    found = [m for m in model.modules() if hasattr(m, "query_global")]
    for module in found:
        for piece in ("query", "key", "value"):
            getattr(module, f"{piece}_global").load_state_dict(getattr(module, piece).state_dict())
    return len(found)


def long_table(table: Tensor, positions: int, skip: int, first: int) -> Tensor:
    """Position embeddings (rows, width) -> (first + positions, width): rows from `skip` on, again and again.

    skip: rows of the old table that stand for no position; first: those of the new one. They are kept where both
    have them and zero else. The last copy is cut where `positions` is no multiple.
    """
    own = table[skip:]
    again = own[torch.arange(positions, device=table.device) % len(own)]
    start = table.new_zeros(first, table.shape[1])
    kept = min(first, skip)
    start[:kept] = table[:kept]
    return torch.cat([start, again])


def long_config(config: Any, family: str, step: ToLong, separator: int | None = None) -> Any:
    """The transformers config of the long model. separator: id of the separator, if the config does not name it.

    Raises UserError where positions or windows do not fit."""
    from transformers import CONFIG_MAPPING

    skip, first = _rows(config, family, step.pattern)
    now = config.max_position_embeddings - skip
    if step.positions <= now:
        raise UserError(f"the model reads {now} tokens already: positions must be more, not {step.positions}")
    if not isinstance(step.window, int) and len(step.window) != config.num_hidden_layers:
        raise UserError(f"{len(step.window)} windows were given for {config.num_hidden_layers} blocks")
    kind = CONFIG_MAPPING[_MODEL_TYPE[step.pattern]]
    known = kind().to_dict().keys() - {"model_type", "architectures", "transformers_version"}
    fields = {name: value for name, value in config.to_dict().items() if name in known}
    fields["max_position_embeddings"] = step.positions + first
    # question answering looks for it; some configs have no such field
    fields["sep_token_id"] = fields.get(
        "sep_token_id", config.eos_token_id if separator is None else separator
    )
    if step.pattern == "longformer":
        fields["attention_window"] = step.window if isinstance(step.window, int) else list(step.window)
    else:
        fields |= {
            "attention_type": "block_sparse",
            "block_size": step.block,
            "num_random_blocks": step.random,
        }
    return kind(**fields)


def _rows(config: Any, family: str, pattern: str) -> tuple[int, int]:
    """How many rows of the position table stand for no position: in the model, and in the long one."""
    before = int(config.pad_token_id) + 1  # RoBERTa and Longformer count on from the padding id
    return (before if family == "roberta" else 0), (before if pattern == "longformer" else 0)


def _kind(model: Any, pattern: str) -> tuple[str, str]:
    """(family, ending of the head's class). Raises ModelError for what cannot be said in the long form."""
    family = anatomy.of(model).family
    name = type(model).__name__
    if family not in ("bert", "roberta"):
        raise ModelError(f"only BERT and RoBERTa are made long, and {name} is of the family {family}")
    if reasons := anatomy.native_reasons(model):
        raise ModelError(f"a long model is built from a plain one, but {reasons[0]}")
    config = model.config
    if getattr(config, "is_decoder", False) or config.pad_token_id is None:
        raise ModelError("a long encoder is made from an encoder (is_decoder=False) that has a padding token")
    if getattr(config, "position_embedding_type", None) not in (None, "absolute"):
        raise ModelError(f"positions are {config.position_embedding_type}: only absolute ones can be copied")
    head = next((h for h in _HEADS if name.endswith(h)), "")
    if not head and not name.endswith("Model"):
        raise ModelError(
            f"{name} has a head that has no long form; there are {', '.join(_HEADS)} and the bare model"
        )
    if why := _NO_HEAD.get((family, pattern, head)):
        raise ModelError(f"{_CLASS[pattern][0]} has no place for the head of {name}: {why}")
    exact = head == "ForMaskedLM" and pattern == "longformer" and family == "bert"
    if exact and config.hidden_act != "gelu":
        raise ModelError(
            f"Longformer's language modelling head has gelu, the model's has {config.hidden_act}"
        )
    return family, head


def _build(config: Any, pattern: str, head: str, pooler: bool) -> Any:
    import transformers

    kind = getattr(transformers, _CLASS[pattern][0] + (head or "Model"))
    with torch.random.fork_rng():  # the weights that are drawn here are all written over
        return kind(config) if head else kind(config, add_pooling_layer=pooler)
