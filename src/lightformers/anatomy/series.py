"""Forecasters of transformers: rows of the table of families. Facts: transformers 5.23; tests/anatomy holds them to it."""

from __future__ import annotations

from lightformers.anatomy.rows import Family, StackRow

_PATCHTST = StackRow(
    "encoder",
    ("encoder.layers",),
    q=("self_attn.q_proj",), k=("self_attn.k_proj",), v=("self_attn.v_proj",), o=("self_attn.out_proj",),
    up=("ff.0",), down=("ff.3",), norms=("norm_sublayer1", "norm_sublayer2", "norm_sublayer3"),
    ffn="ffn_dim", width="d_model",
)  # fmt: skip
#: Its blocks mix patches and features by multilayer perceptrons over fixed numbers of both: whole blocks alone are cut.
_PATCHTSMIXER = StackRow(
    "encoder", ("mlp_mixer_encoder.mixers",),
    plain={"patch_mixer": (), "feature_mixer": (), "channel_feature_mixer": ()}, depth="num_layers", heads="", ffn="",
    width="d_model",
)  # fmt: skip
_HEAD = "the prediction head reads the states of all patches side by side, one weight for each"
_MIXERS = "its blocks have neither attention nor a feed-forward over the hidden size alone"

SERIES: tuple[Family, ...] = (
    Family("patchtst", ("patchtst",), (_PATCHTST,), native=frozenset({"blocks", "channels"}),
           reasons={"heads": "its config has no head size of its own (it is hidden size / heads), so fewer heads of the "
                             "same size do not reload"},
           refused={"width": f"width is not cut: {_HEAD}"}),
    Family("patchtsmixer", ("patchtsmixer",), (_PATCHTSMIXER,), native=frozenset({"blocks"}),
           refused={"heads": _MIXERS, "channels": _MIXERS, "width": f"width is not cut: {_HEAD}"}),
)  # fmt: skip
