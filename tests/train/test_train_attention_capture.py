import math

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    GPTNeoXConfig,
    GPTNeoXModel,
    LlamaConfig,
    LlamaModel,
    OPTConfig,
    OPTModel,
    Qwen3Config,
    Qwen3Model,
    RobertaConfig,
    RobertaModel,
    ViTConfig,
    ViTModel,
)

from lightformers import anatomy
from lightformers.train.attention import NAME, quick_attention
from lightformers.train.capture import Capture

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
MODELS = {
    "bert": lambda: BertModel(BertConfig(**SMALL), add_pooling_layer=False),
    "roberta": lambda: RobertaModel(RobertaConfig(**SMALL, max_position_embeddings=40), add_pooling_layer=False),
    "distilbert": lambda: DistilBertModel(DistilBertConfig(vocab_size=50, dim=32, n_layers=2, n_heads=4, hidden_dim=48)),
    "gpt2": lambda: GPT2Model(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4)),
    "gpt_neox": lambda: GPTNeoXModel(GPTNeoXConfig(**SMALL)),
    "opt": lambda: OPTModel(OPTConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, word_embed_proj_dim=32)),
    "llama": lambda: LlamaModel(LlamaConfig(**SMALL, num_key_value_heads=2)),
    "qwen3": lambda: Qwen3Model(Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8)),
    "vit": lambda: ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=8, patch_size=4), add_pooling_layer=False),
}  # fmt: skip


def build(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    if name == "vit":
        return model, {"pixel_values": torch.randn(3, 3, 8, 8)}, torch.ones(3, 5)
    ids = torch.randint(4, 50, (3, 7))
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = 0
    mask[2, 2:] = 0
    return model, {"input_ids": ids, "attention_mask": mask}, mask


def gradients(model, inputs, mask):
    model.zero_grad()
    states = model(**inputs).last_hidden_state
    weight = torch.randn(states.shape, generator=torch.Generator().manual_seed(5)) * mask[..., None]
    (states * weight).sum().backward()
    return states[mask.bool()].detach(), {
        k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("name", MODELS)
def test_quick_attention_equals_the_fused_one_in_outputs_and_gradients(name):
    model, inputs, mask = build(name)
    before = model.config._attn_implementation
    assert before == "sdpa"
    want, want_gradients = gradients(model, inputs, mask)
    with quick_attention(model):
        assert model.config._attn_implementation == NAME
        got, got_gradients = gradients(model, inputs, mask)
    assert model.config._attn_implementation == before
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)
    assert got_gradients.keys() == want_gradients.keys()
    for key, value in want_gradients.items():
        torch.testing.assert_close(got_gradients[key], value, atol=1e-4, rtol=1e-3)


def test_an_explicit_choice_of_attention_is_left_alone():
    model = BertModel(BertConfig(**SMALL), add_pooling_layer=False)
    model.set_attn_implementation("eager")
    with quick_attention(model):
        assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2", "opt", "vit"])
def test_caught_queries_and_keys_give_the_models_own_attention(name):
    model, inputs, mask = build(name)
    model.set_attn_implementation("eager")
    found = anatomy.of(model)
    with Capture(model, found, relations=[1], hidden=[0, 1]) as caught, torch.no_grad():
        out = model(**inputs, output_attentions=True, output_hidden_states=True)
        q, k, v = (caught.qkv(1, piece) for piece in "qkv")
        hidden = [caught.hidden(0), caught.hidden(1)]
    size = q.shape[-1]
    assert q.shape == v.shape == (3, 4, mask.shape[1], 8)
    keys = mask[:, None, None, :].bool()
    if name in ("gpt2", "opt"):
        keys = keys & torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool).tril()
    scores = (q @ k.transpose(-1, -2) / math.sqrt(size)).masked_fill(~keys, float("-inf")).softmax(-1)
    real = mask[:, None, :, None].bool()
    torch.testing.assert_close((scores * real).nan_to_num(), out.attentions[1] * real, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(hidden[0], out.hidden_states[1])


@pytest.mark.parametrize("name", ["gpt_neox", "llama", "qwen3"])
def test_rotary_and_grouped_families_are_caught_before_rotation(name):
    model, inputs, _ = build(name)
    found = anatomy.of(model)
    with Capture(model, found, relations=[0]) as caught:
        model(**inputs)
        q, k, v = (caught.qkv(0, piece) for piece in "qkv")
        assert q.shape == k.shape == v.shape == (3, 4, 7, 8) and q.requires_grad
        if name != "gpt_neox":  # two key/value heads serve four
            assert torch.equal(k[:, 0], k[:, 1]) and not torch.equal(k[:, 1], k[:, 2])
        v.sum().backward()
    weight = anatomy.rows(found.blocks[0].attention, "v")[0] + ".weight"
    assert dict(model.named_parameters())[weight].grad is not None


def test_hooks_are_gone_and_what_did_not_run_is_said():
    model, inputs, _ = build("bert")
    with Capture(model, anatomy.of(model), relations=[0]) as caught:
        with pytest.raises(RuntimeError, match="did not run"):
            caught.qkv(0, "q")
        model(**inputs)
    hooks = [h for m in model.modules() for h in m._forward_hooks.values()]
    assert not [h for h in hooks if h.__module__.startswith("lightformers")]
