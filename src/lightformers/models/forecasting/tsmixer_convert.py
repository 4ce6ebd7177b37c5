"""transformers' PatchTSMixer as a TSMixer with the same weights."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from lightformers.errors import UserError
from lightformers.models.forecasting.tsmixer import TSMixer, TSMixerConfig
from lightformers.models.forecasting.tsmixer_pretraining import TSMixerForPretraining

_NAMES = (
    (r"^model\.encoder\.patcher\.", "mixer.embedding."),
    (r"^model\.encoder\.positional_encoder\.position_enc$", "mixer.positions"),
    (r"^model\.encoder\.mlp_mixer_encoder\.mixers\.", "mixer.layers."),
    (r"\.channel_feature_mixer\.", ".channels."),
    (r"\.patch_mixer\.", ".patches."),
    (r"\.feature_mixer\.", ".features."),
    (r"\.norm\.norm\.(batchnorm\.)?", ".norm."),
    (r"\.gating_block\.attn_layer\.", ".gate.linear."),
    (r"^head\.(base_forecast_block|base_pt_block)\.", "head."),
)


def from_transformers(model: nn.Module) -> Any:
    """PatchTSMixerForPrediction -> TSMixer, PatchTSMixerForPretraining -> TSMixerForPretraining: the same outputs.

    With `prediction_channel_indices` theirs are these channels of ours. Raises UserError for what has no counterpart: self
    attention, heads of distributions, scaling by the mean, masks that differ between channels, and other models.
    """
    kind = type(model).__name__
    made = {"PatchTSMixerForPrediction": TSMixer, "PatchTSMixerForPretraining": TSMixerForPretraining}.get(
        kind
    )
    if made is None:
        raise UserError(f"a {kind} is no PatchTSMixerForPrediction or PatchTSMixerForPretraining")
    theirs: Any = model.config
    pretraining = made is TSMixerForPretraining
    for name, wrong in (
        ("self_attn", theirs.self_attn),
        ("loss", not pretraining and theirs.loss != "mse"),
        ("scaling", theirs.scaling not in ("std", True, None, False)),
        ("mask_value", pretraining and theirs.mask_value != 0),
        ("masked_loss", pretraining and not theirs.masked_loss),
        ("unmasked_channel_indices", pretraining and theirs.unmasked_channel_indices),
        ("channel_consistent_masking", pretraining and not theirs.channel_consistent_masking),
    ):
        if wrong:
            raise UserError(f"a PatchTSMixer with {name} = {getattr(theirs, name)!r} has no counterpart here")
    last = theirs.num_forecast_mask_patches
    last = last if isinstance(last, int) else (last or [None])[0]
    batch_norm = "batch" in theirs.norm_mlp.lower()
    config = TSMixerConfig(
        context_length=theirs.context_length, prediction_length=theirs.prediction_length,
        num_input_channels=theirs.num_input_channels, patch_length=theirs.patch_length,
        patch_stride=theirs.patch_stride, hidden_size=theirs.d_model, num_hidden_layers=theirs.num_layers,
        expansion_factor=theirs.expansion_factor, dropout=theirs.dropout, head_dropout=theirs.head_dropout,
        gated=theirs.gated_attn, norm="batch" if batch_norm else "layer", norm_eps=theirs.norm_eps,
        mode="mix_channel" if theirs.mode == "mix_channel" else "common_channel",
        positions=_positions(theirs), instance_norm=bool(theirs.scaling), mask_ratio=theirs.random_mask_ratio,
        mask_last=last if pretraining and theirs.mask_type == "forecast" else None, initializer_range=theirs.init_std,
    )  # fmt: skip
    new = made(config)
    new.load_state_dict({_renamed(name): value for name, value in model.state_dict().items()})
    return new.train(model.training)


def _positions(theirs: Any) -> Any:
    if not theirs.use_positional_encoding:
        return None
    return "sinusoidal" if theirs.positional_encoding_type == "sincos" else "learned"


def _renamed(name: str) -> str:
    for pattern, new in _NAMES:
        name = re.sub(pattern, new, name)
    return name
