"""Models that no row knows: inspected by structure, described by hand, or refused with what was found."""

from __future__ import annotations

import pytest
import torch
import transformers
import zoo
from torch import nn

from lightformers import anatomy
from lightformers.errors import ModelError


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        if fused:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        split = (*x.shape[:2], self.num_heads, self.head_dim)
        pieces = (
            self.qkv(x).chunk(3, -1) if hasattr(self, "qkv") else (self.to_q(x), self.to_k(x), self.to_v(x))
        )
        q, k, v = (piece.view(split).transpose(1, 2) for piece in pieces)
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, fused)
        self.mlp = nn.Sequential(nn.Linear(width, 40), nn.GELU(), nn.Linear(40, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Home(nn.Module):
    """What someone wrote at home."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 24)
        self.trunk = nn.ModuleList(Layer(24, 4, fused) for _ in range(3))
        self.out = nn.Linear(24, 30)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.trunk:
            x = layer(x)
        return self.out(x)


IDS = torch.arange(12).reshape(2, 6)


@pytest.mark.parametrize("fused", [False, True])
def test_plain_module(fused: bool) -> None:
    torch.manual_seed(0)
    model = Home(fused).eval()
    if fused:
        with pytest.raises(ModelError, match="fused='thirds'"):
            anatomy.surgery.keep_heads(model, {0: [1]})
        anatomy.describe(
            model, blocks="trunk", qkv="attn.qkv", o="attn.proj", up="mlp.0", down="mlp.2", words="embed"
        )
    found = anatomy.of(model)
    assert (found.width, len(found.blocks), found.embeddings) == (24, 3, "embed")
    block = found.blocks[1]
    assert block.attention is not None and block.feed_forward is not None
    assert (block.attention.heads, block.attention.head_dim, block.attention.o) == (4, 6, "trunk.1.attn.proj")
    assert (block.feed_forward.up, block.feed_forward.down, block.feed_forward.width) == (
        "trunk.1.mlp.0", "trunk.1.mlp.2", 40,
    )  # fmt: skip
    with torch.no_grad():
        anatomy.linear(model, block.attention.o)[0][:, 6:12] = 0
        anatomy.linear(model, block.feed_forward.down)[0][:, :3] = 0
        before = model(IDS)
        anatomy.surgery.keep_heads(model, {1: [0, 2, 3]})
        anatomy.surgery.keep_channels(model, {1: range(3, 40)})
        assert (model(IDS) - before).abs().max() < 1e-6
    anatomy.surgery.keep_blocks(model, [0, 1])
    assert len(anatomy.of(model).blocks) == len(model.trunk) == 2
    assert anatomy.native_reasons(model) and "not a transformers model" in str(
        anatomy.native(model, "blocks")
    )
    with pytest.raises(ModelError, match="families of the table"):
        anatomy.surgery.keep_width(model, range(12))


def test_vocabulary_of_a_plain_module() -> None:
    model = Home().eval()
    anatomy.describe(
        model, blocks="trunk", q="attn.to_q", k="attn.to_k", v="attn.to_v", o="attn.proj", words="embed"
    )
    with torch.no_grad():
        before = model(IDS)
        anatomy.surgery.keep_vocabulary(model, range(15))
        assert model.embed.num_embeddings == 15
        assert torch.equal(model(IDS), before)


def test_torch_encoder_layers() -> None:
    """torch's own layers: blocks and channels can be cut, heads are refused with the reason."""
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 3).eval()
    found = anatomy.of(model)
    assert [b.feed_forward.width for b in found.blocks if b.feed_forward] == [32, 32, 32]
    assert found.blocks[0].attention is not None and found.blocks[0].attention.heads == 4
    anatomy.surgery.keep_channels(model, {0: range(10)})
    anatomy.surgery.keep_blocks(model, [0, 2])
    assert model(torch.randn(2, 5, 16)).shape == (2, 5, 16)
    with pytest.raises(ModelError, match="MultiheadAttention"):
        anatomy.surgery.keep_heads(model, {0: [1]})


def test_inside_a_wrapper() -> None:
    """A transformers model inside another module: paths are relative to what was given, cuts keep its config."""
    wrapper = nn.ModuleDict({"encoder": zoo.make("bert:BertModel"), "head": nn.Linear(32, 2)})
    found = anatomy.of(wrapper)
    assert found.blocks[0].attention is not None
    assert found.blocks[0].attention.q == "encoder.encoder.layer.0.attention.self.query"
    assert found.stacks[0].final_norm is None and found.embeddings == "encoder.embeddings.word_embeddings"
    assert anatomy.linear(wrapper, found.blocks[0].attention.q)[0].shape == (32, 32)
    anatomy.surgery.keep_blocks(wrapper, [0])
    assert wrapper["encoder"].config.num_hidden_layers == 1


BASE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
        "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip


@pytest.mark.parametrize("kind", ["Olmo2", "Gemma2", "StableLm"])
def test_transformers_model_without_a_row(kind: str) -> None:
    """Blocks and channels of an unknown family cut and reload; the rehearsal says which cuts do."""
    config = getattr(transformers, f"{kind}Config")(**BASE, num_key_value_heads=2)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    assert anatomy.native_reasons(model) == []
    assert anatomy.native(model, "blocks") is None and anatomy.native(model, "channels") is None
    heads = {i: [2, 3] for i in range(3)}
    if anatomy.native(model, "heads") is None:
        anatomy.surgery.keep_heads(model, heads)
    anatomy.surgery.keep_blocks(model, [0, 2])
    anatomy.surgery.keep_channels(model, {0: range(9), 1: range(9)})
    given = zoo.inputs(model)
    with torch.no_grad():
        assert zoo.difference(zoo.outputs(model, given), zoo.outputs(zoo.reloaded(model), given)) < 1e-6


def test_unknown_family_is_cut_with_care() -> None:
    config = transformers.ModernBertConfig(**BASE, cls_token_id=1, sep_token_id=2)
    model = transformers.ModernBertModel(config)
    assert "Identity" in str(anatomy.native(model, "blocks"))  # its first block has no norm
    config = transformers.GPTNeoConfig(hidden_size=32, num_layers=2, num_heads=4, vocab_size=64,
                                       attention_types=[[["global", "local"], 1]])  # fmt: skip
    model = transformers.GPTNeoForCausalLM(config)
    assert "layer_id" in str(anatomy.native(model, "blocks"))  # global and local layers alternate by number
    model = transformers.DebertaV2Model(
        transformers.DebertaV2Config(
            **BASE, relative_attention=True, share_att_key=False, pos_att_type=["c2p", "p2c"]
        )
    )
    with pytest.raises(ModelError, match="pos_key_proj"):
        anatomy.surgery.keep_heads(model, {0: [0, 1]})


def test_what_cannot_be_understood_is_named() -> None:
    with pytest.raises(ModelError) as error:
        anatomy.of(nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    assert "anatomy.describe(" in str(error.value) and "no list of alike blocks" in str(error.value)
    odd = nn.Module()
    odd.parts = nn.ModuleList(nn.Sequential(nn.Linear(4, 5), nn.Linear(6, 4), nn.ReLU()) for _ in range(2))
    with pytest.raises(ModelError, match=r"parts \(2 x Sequential\)"):
        anatomy.of(odd)
    with pytest.raises(ModelError, match="nothing at 'attn"):
        anatomy.describe(Home(), blocks="trunk", q="attn.nowhere", k="k", v="v", o="o")
    with pytest.raises(ModelError, match="no cut 'depth'"):
        anatomy.native(Home(), "depth")
