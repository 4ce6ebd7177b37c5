"""The table of families: where the pieces are, and what the config calls their sizes. Data only.

Names are tried in order, the first that exists wins, so one row serves every transformers release from 5.0 on
(paths move between releases). Block names are relative to a block; the others match the end of a path, so a row
serves the bare backbone and every task head. Facts: transformers 5.0.0 to 5.23; tests/anatomy holds them to it.
"""

from __future__ import annotations

from dataclasses import replace

from lightformers.anatomy.rows import CUTS, Family, Names, StackRow
from lightformers.anatomy.series import SERIES

__all__ = ["CUTS", "FAMILIES", "Family", "Names", "StackRow", "family_of"]

_BOUND = "its config has no head size of its own (it is hidden size / heads), so fewer heads of the same size do not reload"
_NO_HEADS = {
    "native": frozenset(CUTS) - {"heads"},
    "reasons": {"heads": _BOUND + "; cut width and heads in proportion instead"},
}


def _no_width(why: str) -> dict[str, str]:
    return {"width": f"width is not cut: {why}"}


_BERT = StackRow(
    "encoder",
    ("encoder.layer",),
    q=("attention.self.query",), k=("attention.self.key",), v=("attention.self.value",), o=("attention.output.dense",),
    cross=(("crossattention.self.query",), ("crossattention.self.key",), ("crossattention.self.value",),
           ("crossattention.output.dense",)),
    up=("intermediate.dense",), down=("output.dense",),
    norms=("attention.output.LayerNorm", "crossattention.output.LayerNorm", "output.LayerNorm"),
    words=("embeddings.word_embeddings",), positions=("embeddings.position_embeddings",),
    embedding_norm=("embeddings.LayerNorm",),
)  # fmt: skip
_MPNET = replace(
    _BERT, q=("attention.attn.q",), k=("attention.attn.k",), v=("attention.attn.v",), o=("attention.attn.o",),
    norms=("attention.LayerNorm", "output.LayerNorm"), head_bias=("encoder.relative_attention_bias",),
)  # fmt: skip
_DISTILBERT = StackRow(
    "encoder",
    ("transformer.layer",),
    q=("attention.q_lin",), k=("attention.k_lin",), v=("attention.v_lin",), o=("attention.out_lin",),
    up=("ffn.lin1",), down=("ffn.lin2",), norms=("sa_layer_norm", "output_layer_norm"),
    words=("embeddings.word_embeddings",), positions=("embeddings.position_embeddings",),
    embedding_norm=("embeddings.LayerNorm",), depth="n_layers", heads="n_heads", ffn="hidden_dim", width="dim",
)  # fmt: skip
_ALBERT = replace(
    _BERT, blocks=("albert_layer_groups.0.albert_layers",),
    q=("attention.query",), k=("attention.key",), v=("attention.value",), o=("attention.dense",),
    up=("ffn",), down=("ffn_output",), norms=("attention.LayerNorm", "full_layer_layer_norm"), shared=True,
)  # fmt: skip
_GPT2 = StackRow(
    "decoder",
    ("h",),
    qkv=("attn.c_attn",), o=("attn.c_proj",), fused="thirds",
    cross=(("crossattention.q_attn",), (), (), ("crossattention.c_proj",)), cross_qkv=("crossattention.c_attn",),
    up=("mlp.c_fc",), down=("mlp.c_proj",), norms=("ln_1", "ln_cross_attn", "ln_2"),
    words=("wte",), positions=("wpe",), final_norm=("ln_f",),
    depth="n_layer", heads="n_head", ffn="n_inner", width="n_embd",
)  # fmt: skip
_NEOX = StackRow(
    "decoder",
    ("layers",),
    qkv=("attention.query_key_value",), o=("attention.dense",), fused="per_head",
    up=("mlp.dense_h_to_4h",), down=("mlp.dense_4h_to_h",), norms=("input_layernorm", "post_attention_layernorm"),
    words=("embed_in",), final_norm=("final_layer_norm",),
)  # fmt: skip
_OPT = StackRow(
    "decoder",
    ("decoder.layers",),
    q=("self_attn.q_proj",), k=("self_attn.k_proj",), v=("self_attn.v_proj",), o=("self_attn.out_proj",),
    up=("fc1",), down=("fc2",), norms=("self_attn_layer_norm", "final_layer_norm"),
    words=("decoder.embed_tokens",), positions=("decoder.embed_positions",), final_norm=("decoder.final_layer_norm",),
    ffn="ffn_dim",
)  # fmt: skip
_LLAMA = StackRow(
    "decoder",
    ("layers",),
    q=("self_attn.q_proj",), k=("self_attn.k_proj",), v=("self_attn.v_proj",), o=("self_attn.o_proj",),
    q_norm=("self_attn.q_norm",), k_norm=("self_attn.k_norm",),
    gate=("mlp.gate_proj",), up=("mlp.up_proj",), down=("mlp.down_proj",),
    norms=("input_layernorm", "post_attention_layernorm"),
    words=("embed_tokens",), final_norm=("norm",), kv_heads="num_key_value_heads", head_dim="head_dim",
)  # fmt: skip
_PHI = replace(
    _LLAMA, o=("self_attn.dense",), gate=(), up=("mlp.fc1",), down=("mlp.fc2",), norms=("input_layernorm",),
    q_norm=("self_attn.q_layernorm",), k_norm=("self_attn.k_layernorm",), final_norm=("final_layernorm",),
)  # fmt: skip
_VIT = StackRow(
    "encoder",
    ("layers", "encoder.layer"),
    q=("attention.q_proj", "attention.attention.query"), k=("attention.k_proj", "attention.attention.key"),
    v=("attention.v_proj", "attention.attention.value"), o=("attention.o_proj", "attention.output.dense"),
    up=("mlp.fc1", "intermediate.dense"), down=("mlp.fc2", "output.dense"),
    norms=("layernorm_before", "layernorm_after"),
    positions=("embeddings.position_embeddings",), final_norm=("layernorm",), head_dim="head_dim",
)  # fmt: skip
_DINOV2 = replace(
    _VIT, blocks=("encoder.layer", "layers"), norms=("norm1", "norm2"), ffn="",
    gate=("mlp.gate_proj",), up=("mlp.fc1", "mlp.up_proj"), packed=("mlp.weights_in",),
    down=("mlp.fc2", "mlp.down_proj", "mlp.weights_out"),
)  # fmt: skip
_T5_ENCODER = StackRow(
    "encoder",
    ("encoder.block",),
    q=("layer.0.SelfAttention.q",), k=("layer.0.SelfAttention.k",), v=("layer.0.SelfAttention.v",),
    o=("layer.0.SelfAttention.o",),
    gate=("layer.1.DenseReluDense.wi_0",), up=("layer.1.DenseReluDense.wi_1", "layer.1.DenseReluDense.wi"),
    down=("layer.1.DenseReluDense.wo",), norms=("layer.0.layer_norm", "layer.1.layer_norm"),
    words=("shared", "encoder.embed_tokens"), final_norm=("encoder.final_layer_norm",),
    first_block_bias="relative_attention_bias",
    depth="num_layers", heads="num_heads", head_dim="d_kv", ffn="d_ff", width="d_model",
)  # fmt: skip
_T5_DECODER = replace(
    _T5_ENCODER, name="decoder", blocks=("decoder.block",),
    cross=tuple((f"layer.1.EncDecAttention.{p}",) for p in "qkvo"),  # type: ignore[arg-type]
    gate=("layer.2.DenseReluDense.wi_0",), up=("layer.2.DenseReluDense.wi_1", "layer.2.DenseReluDense.wi"),
    down=("layer.2.DenseReluDense.wo",), norms=("layer.0.layer_norm", "layer.1.layer_norm", "layer.2.layer_norm"),
    words=("shared", "decoder.embed_tokens"), final_norm=("decoder.final_layer_norm",), depth="num_decoder_layers",
)  # fmt: skip
_BART_ENCODER = replace(
    _OPT, name="encoder", blocks=("encoder.layers",),
    words=("shared", "encoder.embed_tokens"), positions=("encoder.embed_positions",),
    embedding_norm=("encoder.layernorm_embedding",), final_norm=("encoder.layer_norm",),
    depth="encoder_layers", heads="encoder_attention_heads", ffn="encoder_ffn_dim", width="d_model",
)  # fmt: skip
_BART_DECODER = replace(
    _BART_ENCODER, name="decoder", blocks=("decoder.layers",),
    cross=tuple((f"encoder_attn.{p}_proj",) for p in ("q", "k", "v", "out")),  # type: ignore[arg-type]
    norms=("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
    words=("shared", "decoder.embed_tokens"), positions=("decoder.embed_positions",),
    embedding_norm=("decoder.layernorm_embedding",), final_norm=("decoder.layer_norm",),
    depth="decoder_layers", heads="decoder_attention_heads", ffn="decoder_ffn_dim",
)  # fmt: skip
_CLIP_TEXT = StackRow(
    "text",
    ("text_model.encoder.layers",),
    q=("self_attn.q_proj",), k=("self_attn.k_proj",), v=("self_attn.v_proj",), o=("self_attn.out_proj",),
    up=("mlp.fc1",), down=("mlp.fc2",), norms=("layer_norm1", "layer_norm2"),
    words=("embeddings.token_embedding",), positions=("text_model.embeddings.position_embedding",),
    final_norm=("text_model.final_layer_norm",), config="text_config",
)  # fmt: skip
_CLIP_VISION = replace(
    _CLIP_TEXT, name="vision", blocks=("vision_model.encoder.layers",), words=(),
    positions=("vision_model.embeddings.position_embedding",), embedding_norm=("vision_model.pre_layrnorm",),
    final_norm=("vision_model.post_layernorm",), config="vision_config",
)  # fmt: skip
_WAV2VEC2 = StackRow(
    "encoder",
    ("encoder.layers",),
    q=("attention.q_proj",), k=("attention.k_proj",), v=("attention.v_proj",), o=("attention.out_proj",),
    up=("feed_forward.intermediate_dense",), down=("feed_forward.output_dense",),
    norms=("layer_norm", "final_layer_norm"), positions=("encoder.pos_conv_embed",),
    final_norm=("encoder.layer_norm",),
)  # fmt: skip
_OWN = StackRow(
    "decoder",
    ("layers",),
    q=("mixer.query",), k=("mixer.key",), v=("mixer.value",), o=("mixer.out",),
    q_norm=("mixer.query_norm",), k_norm=("mixer.key_norm",), gate=("ffn.gate",), up=("ffn.up",), down=("ffn.down",),
    norms=("mixer_norm", "ffn_norm"), words=("embedding",), positions=("positions",), final_norm=("norm",),
    plain={"mixer": ("Attention",), "ffn": ("MLP", "SwiGLU")}, rows="layers", depth="", heads="", ffn="",
)  # fmt: skip
_SERIES = StackRow("encoder", ("layers",), ("attention.query",), ("attention.key",), ("attention.value",), ("attention.out",),
                   up=("up",), down=("down",), norms=("attention_norm", "ffn_norm"), final_norm=("norm",), head_dim="head_dim")  # fmt: skip
_ROWS = StackRow("encoder", ("layers",), ("attention.q_proj",), ("attention.k_proj",), ("attention.v_proj",), ("attention.o_proj",),
                 up=("mlp.up_proj",), down=("mlp.down_proj",), norms=("attention_norm", "mlp_norm"), head_dim="head_dim")  # fmt: skip
_STAGES = tuple(replace(_SERIES, name=f"stage{i}", blocks=(f"stages.{i}.layers",), final_norm=(f"stages.{i}.norm",)) for i in range(8))  # fmt: skip

_SHARED = "one block is shared by all layers, so a cut of it would be a cut of every layer at once"
_UNEQUAL = _no_width("each of its layers names sizes of its own")
_SEQ2SEQ = _no_width("encoder and decoder share one hidden size; only one-stack models are cut in width")
_SPEECH = _no_width(
    "the grouped convolution that gives the positions ties groups of hidden channels together "
    "(heads='keep' cuts it all the same)"
)

FAMILIES: tuple[Family, ...] = (
    Family("bert", ("bert",), (_BERT,), **_NO_HEADS),  # type: ignore[arg-type]
    Family("roberta", ("roberta", "xlm-roberta", "camembert"), (_BERT,), pad_counts=True, **_NO_HEADS),  # type: ignore[arg-type]
    Family("distilbert", ("distilbert",), (_DISTILBERT,), **_NO_HEADS),  # type: ignore[arg-type]
    Family("electra", ("electra",), (_BERT,), follows=("embedding_size",), **_NO_HEADS),  # type: ignore[arg-type]
    Family("mpnet", ("mpnet",), (_MPNET,), pad_counts=True, **_NO_HEADS),  # type: ignore[arg-type]
    Family("albert", ("albert",), (_ALBERT,), native=frozenset({"vocabulary"}),
           refused=dict.fromkeys(("blocks", "heads", "channels", "width"), _SHARED)),
    Family("gpt2", ("gpt2",), (_GPT2,), **_NO_HEADS),  # type: ignore[arg-type]
    Family("gpt_neox", ("gpt_neox",), (_NEOX,), **_NO_HEADS),  # type: ignore[arg-type]
    Family("opt", ("opt",), (_OPT,), follows=("word_embed_proj_dim",), **_NO_HEADS),  # type: ignore[arg-type]
    Family("llama", ("llama",), (_LLAMA,)),
    Family("mistral", ("mistral",), (_LLAMA,)),
    Family("qwen2", ("qwen2",), (_LLAMA,)),
    Family("qwen3", ("qwen3",), (_LLAMA,)),
    Family("gemma", ("gemma",), (_LLAMA,), native=frozenset(CUTS) - {"width"},
           refused=_no_width("the word embedding is multiplied by the root of the hidden size")),
    Family("phi", ("phi",), (_PHI,)),
    Family("t5", ("t5", "mt5"), (_T5_ENCODER, _T5_DECODER), native=frozenset(CUTS) - {"width"}, refused=_SEQ2SEQ),
    Family("bart", ("bart",), (_BART_ENCODER, _BART_DECODER), native=frozenset(CUTS) - {"width", "heads"},
           reasons={"heads": _BOUND}, refused=_SEQ2SEQ),
    Family("vit", ("vit",), (_VIT,), native=frozenset(CUTS) - {"vocabulary"}),
    Family("deit", ("deit",), (_VIT,), native=frozenset(CUTS) - {"vocabulary"}),
    Family("dinov2", ("dinov2",), (_DINOV2,), native=frozenset({"blocks", "heads", "channels"}),
           refused=_no_width("the config gives the feed-forward as a whole multiple of the hidden size"),
           channels_multiple="width"),
    Family("clip", ("clip",), (_CLIP_TEXT, _CLIP_VISION), native=frozenset({"blocks", "channels", "vocabulary"}),
           reasons={"heads": _BOUND}, refused=_no_width("two towers meet in one projection")),
    Family("clip", ("clip_text_model",),
           (replace(_CLIP_TEXT, blocks=("encoder.layers",), positions=("embeddings.position_embedding",),
                    final_norm=("final_layer_norm",), config=""),),
           native=frozenset({"blocks", "channels", "vocabulary"}), reasons={"heads": _BOUND},
           refused=_no_width("the tower's output feeds a projection trained with the other tower")),
    Family("clip", ("clip_vision_model",),
           (replace(_CLIP_VISION, blocks=("encoder.layers",), positions=("embeddings.position_embedding",),
                    embedding_norm=("pre_layrnorm",), final_norm=("post_layernorm",), config=""),),
           native=frozenset({"blocks", "channels"}), reasons={"heads": _BOUND},
           refused=_no_width("the tower's output feeds a projection trained with the other tower")),
    Family("wav2vec2", ("wav2vec2",), (_WAV2VEC2,), native=frozenset({"blocks", "channels", "vocabulary"}),
           reasons={"heads": _BOUND}, refused=_SPEECH, custom=frozenset({"width"})),
    Family("hubert", ("hubert",), (_WAV2VEC2,), native=frozenset({"blocks", "channels", "vocabulary"}),
           reasons={"heads": _BOUND}, refused=_SPEECH, custom=frozenset({"width"})),
    Family("whisper", ("whisper",), (_BART_ENCODER, _BART_DECODER), native=frozenset(CUTS) - {"width", "heads"},
           reasons={"heads": _BOUND}, refused=_SEQ2SEQ),
    Family("decoder", ("lightformers-decoder",), (_OWN,), native=frozenset(CUTS) - {"width"}, refused=_UNEQUAL),
    Family("encoder", ("lightformers-encoder",), (replace(_OWN, name="encoder"),), native=frozenset(CUTS) - {"width"},
           refused=_UNEQUAL),
    Family("rows", ("lightformers-rows",), (replace(_OWN, name="rows", words=(), positions=()),),
           native=frozenset({"blocks", "heads", "channels"}), refused=_UNEQUAL),
    Family("itransformer", ("lightformers-itransformer",), (_SERIES,), native=frozenset(CUTS) - {"vocabulary"}),
    Family("gpht", ("lightformers-gpht",), _STAGES, native=frozenset({"blocks", "heads", "channels"}), refused=_no_width("its stages share one hidden size")),
    Family("unitabe", ("lightformers-unitabe",), (replace(_SERIES, words=("unit.words",), final_norm=()),), native=frozenset({"blocks", "heads", "channels"}),
           refused=_no_width("the decoder of its prompts has the width of the encoder")
           | {"vocabulary": "the config names tokens of prompts and classes by number"}),
    *SERIES,
    Family("tabdpt", ("lightformers-tabdpt",), (_ROWS,), native=frozenset({"blocks", "heads", "channels"}),
           refused=_no_width("rows and labels are embedded in the width, and the head reads it")),
)  # fmt: skip


def family_of(model_type: str) -> Family | None:
    """The row of a config's `model_type`, or None."""
    return next((row for row in FAMILIES if model_type in row.model_types), None)
