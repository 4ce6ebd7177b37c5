"""Tiny random models and a tokenizer that needs no files."""

from __future__ import annotations

import torch
import transformers as tf

from lightformers.bundle import Bundle, Pooling

VOCABULARY = 120
WIDTH = 32


class WordTokenizer:
    """Words to ids by their letters; [CLS] 5 in front, [SEP] 6 at the end; padding id 1."""

    padding_side = "right"

    def __init__(self, pad: int = 1, kinds: bool = False) -> None:
        self.pad_token_id = pad
        self.kinds = kinds
        self.calls = 0

    def __call__(self, first, second=None, truncation=False, max_length=None, **_):
        self.calls += 1
        ids = []
        for text in first:
            words = [7 + sum(map(ord, w)) % (VOCABULARY - 7) for w in text.split()]
            row = [5, *words[: (max_length or 99) - 2], 6]
            ids.append(row)
        out = {"input_ids": ids}
        if self.kinds:
            out["token_type_ids"] = [[0] * len(r) for r in ids]
        return out


def _bert_like(config, **more):
    return config(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64, pad_token_id=1, **more,
    )  # fmt: skip


def _llama(**more):
    return tf.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=1, **more,
    )  # fmt: skip


def _gpt2(**more):
    return tf.GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=64, pad_token_id=1, eos_token_id=2,
        bos_token_id=2, **more,
    )  # fmt: skip


def _distilbert(**more):
    return tf.DistilBertConfig(
        vocab_size=VOCABULARY, dim=WIDTH, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=64,
        pad_token_id=1, **more,
    )  # fmt: skip


def _opt():
    return tf.OPTConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=WIDTH, pad_token_id=1,
    )  # fmt: skip


def _decoder(config, **more):
    return config(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=1, **more,
    )  # fmt: skip


BUILDERS = {
    "bert": lambda: tf.BertModel(_bert_like(tf.BertConfig)),
    "bert-classifier": lambda: tf.BertForSequenceClassification(_bert_like(tf.BertConfig, num_labels=3)),
    "bert-tokens": lambda: tf.BertForTokenClassification(_bert_like(tf.BertConfig, num_labels=3)),
    "roberta": lambda: tf.RobertaModel(_bert_like(tf.RobertaConfig)),
    "roberta-classifier": lambda: tf.RobertaForSequenceClassification(_bert_like(tf.RobertaConfig, num_labels=3)),
    "electra": lambda: tf.ElectraModel(_bert_like(tf.ElectraConfig, embedding_size=WIDTH)),
    "electra-classifier": lambda: tf.ElectraForSequenceClassification(
        _bert_like(tf.ElectraConfig, embedding_size=WIDTH, num_labels=3)
    ),
    "albert": lambda: tf.AlbertModel(_bert_like(tf.AlbertConfig, embedding_size=16)),
    "distilbert": lambda: tf.DistilBertModel(_distilbert()),
    "distilbert-classifier": lambda: tf.DistilBertForSequenceClassification(_distilbert(num_labels=3)),
    "gpt2": lambda: tf.GPT2LMHeadModel(_gpt2()),
    "gpt2-classifier": lambda: tf.GPT2ForSequenceClassification(_gpt2(num_labels=3)),
    "llama": lambda: tf.LlamaForCausalLM(_llama()),
    "llama-classifier": lambda: tf.LlamaForSequenceClassification(_llama(num_labels=3)),
    "opt": lambda: tf.OPTForCausalLM(_opt()),
    "qwen3": lambda: tf.Qwen3ForCausalLM(_decoder(tf.Qwen3Config, head_dim=8)),
    "gemma": lambda: tf.GemmaForCausalLM(_decoder(tf.GemmaConfig, head_dim=8)),
    "phi": lambda: tf.PhiForCausalLM(_decoder(tf.PhiConfig)),
    "mistral": lambda: tf.MistralForCausalLM(_decoder(tf.MistralConfig, sliding_window=4)),
    "gpt_neox": lambda: tf.GPTNeoXForCausalLM(
        tf.GPTNeoXConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=64,
        )
    ),
    "mpnet": lambda: tf.MPNetModel(_bert_like(tf.MPNetConfig)),
    "t5": lambda: tf.T5EncoderModel(
        tf.T5Config(vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=1)
    ),
    "modernbert": lambda: tf.ModernBertModel(
        _bert_like(tf.ModernBertConfig, local_attention=4, global_attn_every_n_layers=2, cls_token_id=5, sep_token_id=6)
    ),
}  # fmt: skip


def bundle(name: str = "bert") -> Bundle:
    """A bundle of a tiny random model; backbones get mean pooling, so that their output is an embedding."""
    torch.manual_seed(0)
    model = BUILDERS[name]().eval()
    with torch.no_grad():  # random weights of 0.02 make outputs that hardly depend on the input
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    backbone = name in {"bert", "roberta", "electra", "albert", "distilbert", "mpnet", "t5", "modernbert"}
    kinds = name.startswith("bert")
    pooling = Pooling() if backbone else None
    return Bundle(model=model, processor=WordTokenizer(kinds=kinds), pooling=pooling, max_length=24)


def texts(n: int = 13) -> list[dict]:
    """Texts of mixed length in a fixed order; some lengths occur more than once."""
    sizes = [3, 11, 1, 7, 7, 20, 2, 5, 14, 6, 6, 9, 1, 12, 4][:n]
    return [
        {"text": " ".join(f"word{(i * 7 + k * 3) % 31}" for k in range(s)), "row": i}
        for i, s in enumerate(sizes)
    ]


def per_example(outputs, batch):
    """One array per example, padded positions cut away."""
    (values,) = outputs.values()
    if values.dim() == 2:
        return list(values.numpy())
    mask = batch.inputs["attention_mask"].bool()
    return [v[m].numpy() for v, m in zip(values, mask)]
