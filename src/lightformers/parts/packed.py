"""Running without padding: all sequences of a batch in one row, attention kept within each.

The idea is that of effective transformers and FlashAttention's variable-length kernels (arXiv 2210.03052,
2205.14135). What differs: there is no such kernel for the CPU, so sequences of equal length share one call of
torch's scaled dot product attention. Models are not rewritten: the attention goes through transformers' attention
interface, and whether a model really went through it is counted and probed on first use.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightformers.errors import ModelError
from lightformers.parts.attention.interface import check_plain

ATTENTION = "lf_varlen"
#: Families whose attention does not go through the interface, or puts a bias on it that is made for one sequence.
REFUSED = {
    "mpnet": "its attention bypasses transformers' attention interface",
    "t5": "its relative position bias is made for one sequence a row",
    "mt5": "its relative position bias is made for one sequence a row",
    "umt5": "its relative position bias is made for one sequence a row",
    "deberta": "its attention bypasses transformers' attention interface",
    "deberta-v2": "its attention bypasses transformers' attention interface",
}
#: What an attention may be given besides q, k, v that this one cannot honour.
_FOREIGN = ("softcap", "position_bias", "s_aux", "cache")
_SIDE = 'Use batching="sorted" instead.'


@dataclass
class Runs:
    """Where each sequence lies in the row: (start, sequences, length) of each group of equal lengths."""

    groups: tuple[tuple[int, int, int], ...]
    calls: int = field(default=0)


_runs: ContextVar[Runs | None] = ContextVar("lightformers_runs", default=None)


def groups_of(lengths: list[int]) -> tuple[tuple[int, int, int], ...]:
    """Lengths of sequences that lie one after another -> (start, how many, length) of neighbours of equal length."""
    groups: list[tuple[int, int, int]] = []
    start = 0
    for n in lengths:
        if groups and groups[-1][2] == n:
            first, count, _ = groups[-1]
            groups[-1] = (first, count + 1, n)
        else:
            groups.append((start, 1, n))
        start += n
    return tuple(groups)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention within each sequence of a packed row.

    query (1, heads, tokens, size), key and value (1, key/value heads, tokens, size) -> (1, tokens, heads, size).
    Honours causality, grouped-query heads and a sliding window (distance < window).
    """
    runs = _runs.get()
    if runs is None:
        raise ModelError(
            "packed attention was called outside of a packed run: call the module that packed() returned"
        )
    runs.calls += 1
    foreign = [name for name in _FOREIGN if options.get(name) is not None]
    if foreign:
        raise ModelError(
            f"packed attention cannot honour {', '.join(foreign)} of {type(module).__name__}. {_SIDE}"
        )
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", False) if causal is None else causal
    window = options.get("sliding_window")
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
    for start, count, length in runs.groups:
        part = slice(start, start + count * length)
        q, k, v = (x[0, :, part].unflatten(1, (count, length)).transpose(0, 1) for x in (query, key, value))
        mask = _window(length, int(window), causal, query.device) if window and length > window else None
        states = nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=scaling, is_causal=causal and mask is None and length > 1,
            enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip
        out[0, part] = states.transpose(1, 2).flatten(0, 1)
    return out, None


def _window(length: int, window: int, causal: bool, device: torch.device) -> Tensor:
    at = torch.arange(length, device=device)
    distance = at[:, None] - at[None, :]
    seen = distance.abs() < window
    return seen & (distance >= 0) if causal else seen


class PackedBackbone(nn.Module):
    """A backbone that is given padded inputs, runs them packed, and gives padded states back.

    Heads after it see what they always saw; padded positions of `last_hidden_state` are zero.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        positions = next((m for n, m in inner.named_modules() if n.endswith("position_embeddings")), None)
        padding = getattr(positions, "padding_idx", None)
        # RoBERTa and its kin begin to count after the padding's row.
        self.first_position = 0 if padding is None else padding + 1
        accepted = inspect.signature(inner.forward).parameters
        self.accepted = frozenset(accepted)
        if "position_ids" not in accepted:
            raise ModelError(
                f"{type(inner).__name__} takes no position_ids, so it cannot run packed. {_SIDE}"
            )

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Any:
        """input_ids, attention_mask (batch, length) -> the inner model's output, last_hidden_state padded."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        lengths = mask.sum(1)
        # Sequences of equal length must lie side by side: they are attended to in one call, without copies.
        order = torch.argsort(lengths, descending=True, stable=True)
        rows, columns = mask[order].nonzero(as_tuple=True)
        rows = order[rows]
        sizes = [int(n) for n in lengths[order].tolist() if n]
        positions = torch.cat([torch.arange(n, device=mask.device) for n in sizes]) + self.first_position
        arguments: dict[str, Any] = {
            "input_ids": input_ids[rows, columns][None],
            "position_ids": positions[None],
        }
        kinds = options.get("token_type_ids")
        if kinds is not None and "token_type_ids" in self.accepted:
            arguments["token_type_ids"] = kinds[rows, columns][None]
        if "use_cache" in self.accepted:
            arguments["use_cache"] = False
        with _running(Runs(groups_of(sizes))):
            outputs = self.inner(**arguments, return_dict=True)
        states = outputs.last_hidden_state[0]
        padded = states.new_zeros(*mask.shape, states.shape[-1])
        padded[rows, columns] = states
        outputs["last_hidden_state"] = padded
        if outputs.get("pooler_output") is not None:
            outputs["pooler_output"] = self._pooled(
                padded
            )  # the inner one read the first token of the row only
        return outputs

    def _pooled(self, states: Tensor) -> Tensor:
        pooler: Any = self.inner.pooler
        if isinstance(pooler, nn.Linear):  # albert
            activation: Any = self.inner.pooler_activation
            return activation(pooler(states[:, 0]))
        return pooler(states)


@contextmanager
def _running(runs: Runs) -> Iterator[None]:
    token = _runs.set(runs)
    try:
        yield
    finally:
        _runs.reset(token)
    if not runs.calls:
        raise ModelError(f"this model's attention bypasses transformers' attention interface. {_SIDE}")


def packed(module: nn.Module, tolerance: float = 1e-4) -> nn.Module:
    """A copy of a model (weights shared) that takes the same padded inputs and runs them without padding.

    module: a transformers model, with or without a head, or a module that holds one as `backbone`. Equality with the
    padded run is probed here, in fp32, on made-up sequences; `packed_difference` of the result is the largest
    difference found, relative to the largest output. Raises ModelError, by name, for models that cannot run packed.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, attend)
    tensors = [*module.parameters(), *module.buffers()]
    twin: Any = copy.deepcopy(module, {id(t): t for t in tensors})
    model: Any = getattr(twin, "backbone", twin)
    config = getattr(model, "config", None)
    family = getattr(config, "model_type", type(model).__name__)
    check_plain(module, "run packed")
    if family in REFUSED:
        raise ModelError(f"{family} cannot run packed: {REFUSED[family]}. {_SIDE}")
    if getattr(config, "is_encoder_decoder", False) or not hasattr(model, "set_attn_implementation"):
        raise ModelError(
            f"{family} cannot run packed: only encoders and decoders of transformers can. {_SIDE}"
        )
    if getattr(model, "main_input_name", "input_ids") != "input_ids":
        raise ModelError(f"{family} has no padding to save: packed running is for texts. {_SIDE}")
    try:
        model.set_attn_implementation(ATTENTION)
    except ValueError as error:
        raise ModelError(f"{family} cannot run packed: {error}. {_SIDE}") from error
    base = model.base_model
    if hasattr(base, "decoder") and not hasattr(base, "encoder"):  # opt's heads call the decoder within
        base.decoder = PackedBackbone(base.decoder)
    elif base is model:
        model = PackedBackbone(model)
        if hasattr(twin, "backbone"):
            twin.backbone = model
        else:
            twin = model
    else:
        setattr(model, model.base_model_prefix, PackedBackbone(base))
    twin.packed_difference = _probe(module, twin, family, config, tolerance)
    return twin


def _probe(padded: nn.Module, packed: nn.Module, family: str, config: Any, tolerance: float) -> float:
    """Largest relative difference between padded and packed running of a few made-up sequences."""
    lengths = [9, 4, 1, 9, 6]
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(config.get_text_config().vocab_size)
    ids = torch.randint(min(5, vocabulary - 1), vocabulary, (len(lengths), max(lengths)), generator=generator)
    mask = torch.tensor([[int(i < n) for i in range(max(lengths))] for n in lengths])
    pad = getattr(config, "pad_token_id", None)
    ids = torch.where(mask.bool(), ids, torch.tensor(0 if pad is None else pad))
    device = next(packed.parameters()).device
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    modes = [m for m in padded.modules() if m.training]
    padded.eval(), packed.eval()
    try:
        with torch.inference_mode():
            old, new = (_main(m(**inputs)) for m in (padded, packed))
    finally:
        for m in modes:
            m.training = True
    if old.shape[:2] == mask.shape:  # a state or logits for each token: those of padding mean nothing
        old, new = old[mask.bool()], new[mask.bool()]
    difference = float((old - new).abs().max() / old.abs().max().clamp(min=1e-12))
    if not difference <= tolerance:
        raise ModelError(
            f"{family} does not give the same outputs packed (relative difference {difference:.1e}, allowed "
            f"{tolerance:.0e}): its attention or positions do not follow transformers' interface. {_SIDE}"
        )
    return difference


def _main(outputs: Any) -> Tensor:
    for name in ("embedding", "logits", "last_hidden_state"):
        if outputs.get(name) is not None:
            return outputs[name].float()
    raise ModelError("the model gives neither embedding, logits nor last_hidden_state: it cannot be probed")
