"""SwapAttention (long_range_arena): equal where the new attention can express the old, saved, refused with reasons."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import steps_world as world
import torch
import transformers as T
from torch import Tensor, nn

from lightformers import compress, export
from lightformers.bundle import Bundle, load
from lightformers.compress import SwapAttention
from lightformers.errors import ModelError, UserError
from lightformers.manifest import structure
from lightformers.parts.attention import swapped
from lightformers.parts.attention.table import CORES
from lightformers.parts.packed import packed
from lightformers.steps import Recipe, Run

SIZES: dict[str, Any] = {
    "vocab_size": 90, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32,
    "max_position_embeddings": 64,
}  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {
    "softmax": {},
    "local": {"block": 4},
    "sparse": {"block": 4, "columns": 2},
    "longformer": {"window": 4, "tokens": 1},
    "linformer": {"rank": 5},
    "reformer": {"buckets": 4, "chunk": 4},
    "sinkhorn": {"block": 4},
    "synthesizer": {"rank": 3},
    "bigbird": {"block": 2, "random": 1},
    "linear": {},
    "performer": {"features": 16},
}
#: With these, each gives what softmax attention gives, up to 48 positions.
EXACT: dict[str, dict[str, Any]] = {
    "softmax": {},
    "local": {"block": 48},
    "sparse": {"block": 48},
    "longformer": {"window": 94, "tokens": 1},
    "bigbird": {"block": 8, "random": 1},
    "synthesizer": {"form": "random+dot", "std": 0.0},
}


def text_model(family: str) -> nn.Module:
    torch.manual_seed(0)
    no_pool: dict[str, Any] = {"add_pooling_layer": False}
    if family == "roberta":
        made: nn.Module = T.RobertaModel(T.RobertaConfig(**SIZES, pad_token_id=1), **no_pool)
    elif family == "electra":
        made = T.ElectraModel(T.ElectraConfig(**SIZES, embedding_size=24))
    elif family == "distilbert":
        made = T.DistilBertModel(
            T.DistilBertConfig(vocab_size=90, dim=24, n_layers=2, n_heads=3, hidden_dim=32, max_position_embeddings=64)
        )  # fmt: skip
    elif family == "albert":
        made = T.AlbertModel(T.AlbertConfig(**SIZES, embedding_size=24), **no_pool)
    else:
        made = T.BertModel(T.BertConfig(**SIZES), **no_pool)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    return made.eval()


def states(model: nn.Module, padded: bool = True) -> Tensor:
    ids = torch.randint(5, 90, (2, 48), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    if padded:
        mask[1, 31:] = 0
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return out * mask[..., None]


def swap(made: Bundle, to: str, **options: Any) -> Bundle:
    return Recipe([SwapAttention(to, options)]).apply(made, None, Run())


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert", "albert"])
def test_equal_where_the_new_can_express_the_old(family: str) -> None:
    made = Bundle(text_model(family), max_length=48)
    wanted = states(made.model)
    for to, options in EXACT.items():
        new = swap(made, to, **options)
        torch.testing.assert_close(states(new.model), wanted, atol=2e-5, rtol=2e-5)
        assert "gives what the old one gave, up to 48" in new.history[-1]["note"]
    other = swap(made, "local", block=8)
    assert (states(other.model) - wanted).abs().max() > 1e-3
    assert "must be recovered by training" in other.history[-1]["note"]


def test_images_have_one_length() -> None:
    made = world.bundle("vit")  # 17 positions
    wanted = world.outputs(made)
    for to, options in {**EXACT, "linformer": {"rank": 17}}.items():
        new = swap(made, to, **options)
        torch.testing.assert_close(world.outputs(new), wanted, atol=2e-5, rtol=2e-5)
        assert "up to 17" in new.history[-1]["note"]
    assert "recovered" in swap(made, "linformer", rank=16).history[-1]["note"]
    # with texts of any length, linformer never is: padding takes part in its softmax
    assert "recovered" in swap(world.bundle("bert"), "linformer", rank=64).history[-1]["note"]


@pytest.mark.parametrize("to", CORES)
def test_saved_and_loaded(to: str, tmp_path: Path) -> None:
    made = world.bundle("bert")
    new = swap(made, to, **SMALL[to])
    out = world.outputs(new)
    assert torch.isfinite(out).all()
    with pytest.raises(ModelError, match="SwappedAttention"):  # plain transformers would run plain attention
        export.save(new, tmp_path / "plain")
    export.save(new, tmp_path / "made", allow_custom=True)
    back = load(tmp_path / "made", task="embedding")
    assert torch.equal(world.outputs(dataclasses.replace(back, processor=made.processor)), out)
    assert structure(back.model).added == structure(new.model).added != {}
    trained = back.copy()
    trained.model.requires_grad_(True)
    world.outputs(trained).square().sum().backward()
    silent = [n for n, p in trained.model.named_parameters() if p.grad is None]
    assert not silent


def test_padding_changes_nothing() -> None:
    made = Bundle(text_model("bert"), max_length=48)
    ids = torch.randint(5, 90, (1, 21), generator=torch.Generator().manual_seed(0))
    for to, options in SMALL.items():
        model = swap(made, to, **options).model
        mask = torch.tensor([[1] * 21 + [0] * 9])
        with torch.no_grad():
            alone = model(input_ids=ids).last_hidden_state
            wide = nn.functional.pad(ids, (0, 9), value=7)
            padded = model(input_ids=wide, attention_mask=mask).last_hidden_state[:, :21]
        torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)


def test_what_is_not_read_is_gone() -> None:
    made = world.bundle("bert")
    whole = made.parameters
    per_block = world.WIDTH * world.WIDTH + world.WIDTH
    assert swap(made, "reformer", buckets=4).parameters == whole - world.DEPTH * per_block
    tables = world.HEADS * 64 * 64  # as many positions as the model has
    random = swap(made, "synthesizer", form="random").parameters
    assert random == whole - world.DEPTH * (2 * per_block - tables)
    assert swap(made, "performer").parameters == whole


def test_single_blocks_and_mixtures_of_old_and_new() -> None:
    made = Bundle(text_model("bert"), max_length=48)
    new = Recipe([SwapAttention("local", {"block": 4}, blocks=(1,))]).apply(made, None, Run())
    assert list(swapped.cores(new.model)) == ["encoder.layer.1.attention.self.lightformers_core"]
    exact = Recipe([SwapAttention("local", {"block": 48}, blocks=(1,))]).apply(made, None, Run())
    torch.testing.assert_close(states(exact.model), states(made.model), atol=2e-5, rtol=2e-5)
    assert (states(new.model) - states(made.model)).abs().max() > 1e-3
    with pytest.raises(UserError, match="0 to 1"):
        SwapAttention("local", blocks=(2,)).apply(made.copy(), None, Run())


def test_blocks_draw_apart_and_runs_alike() -> None:
    made = world.bundle("bert")
    one, same = (list(swapped.cores(swap(made, "performer", features=8).model).values()) for _ in range(2))
    assert not torch.equal(one[0].core.directions, one[1].core.directions)
    assert torch.equal(one[1].core.directions, same[1].core.directions)
    other = Recipe([SwapAttention("synthesizer")]).apply(made, None, Run(seed=1))
    first = Recipe([SwapAttention("synthesizer")]).apply(made, None, Run(seed=0))
    a, b = (next(iter(swapped.cores(x.model).values())).core.left for x in (other, first))
    assert not torch.equal(a, b)


def test_no_mask_of_length_times_length_is_made() -> None:
    seen = []
    made = swap(Bundle(text_model("bert"), max_length=48), "local", block=4)
    module = next(iter(swapped.cores(made.model).values()))
    module.register_forward_pre_hook(lambda part, args: seen.append(args[3].shape))
    states(made.model)
    assert seen == [(2, 48)]


def test_a_graph_of_linear_attention_holds_for_other_lengths() -> None:
    made = swap(Bundle(text_model("bert"), max_length=48), "performer", features=8)
    q, k, v = torch.randn(3, 2, 3, 10, 8)
    part = next(iter(swapped.cores(made.model).values())).eval()
    mask = torch.tensor([[1] * 10, [1] * 7 + [0] * 3])
    graph = torch.jit.trace(part, (q, k, v, mask))
    longer = torch.randn(3, 2, 3, 15, 8)
    late = torch.tensor([[0] * 4 + [1] * 11, [1] * 15])
    torch.testing.assert_close(graph(*longer, late), part(*longer, late))
    local = next(iter(swapped.cores(swap(made_plain(), "local").model).values()))
    with pytest.raises(ModelError, match="one length"):
        torch.jit.trace(local, (q, k, v, mask))
    n = torch.export.Dim("n", min=2, max=48)
    shapes = ({2: n}, {2: n}, {2: n}, {1: n})
    exported = torch.export.export(part, (q, k, v, mask.bool()), dynamic_shapes=shapes).module()
    torch.testing.assert_close(exported(*longer, late.bool()), part(*longer, late))


def made_plain() -> Bundle:
    return Bundle(text_model("bert"), max_length=48)


@pytest.mark.parametrize(
    ("family", "word"), [("gpt2", "decoder"), ("llama", "decoder"), ("t5", "distance of two positions")]
)
def test_what_cannot_be_swapped_is_refused(family: str, word: str) -> None:
    made = world.bundle(family)
    before = {k: v.clone() for k, v in made.model.state_dict().items()}
    with pytest.raises(ModelError, match=word):
        SwapAttention("performer").apply(made, None, Run())
    after = made.model.state_dict()
    assert set(after) == set(before) and all(torch.equal(v, before[k]) for k, v in after.items())


def test_other_refusals() -> None:
    mpnet = Bundle(T.MPNetModel(T.MPNetConfig(**SIZES)), max_length=48)
    with pytest.raises(ModelError, match=r"mpnet.*distance of two positions"):
        SwapAttention("local").apply(mpnet, None, Run())
    bart = T.BartModel(T.BartConfig(vocab_size=90, d_model=24, encoder_layers=1, decoder_layers=1, encoder_attention_heads=3, decoder_attention_heads=3, encoder_ffn_dim=32, decoder_ffn_dim=32))  # fmt: skip
    with pytest.raises(ModelError, match="another sequence"):
        SwapAttention("local").apply(Bundle(bart), None, Run())
    clip = T.CLIPTextModel(T.CLIPTextConfig(**SIZES)).eval()
    with pytest.raises(ModelError, match="may see later ones"):
        SwapAttention("local").apply(Bundle(clip), None, Run())
    swapped.use(clip)  # and where nobody asks before, the run is refused
    with pytest.raises(ModelError, match="hides some from others"):
        clip(input_ids=torch.ones(1, 5, dtype=torch.long))
    swapped_once = swap(made_plain(), "local")
    with pytest.raises(ModelError, match="masks of padding"):
        swapped_once.model(
            input_ids=torch.ones(1, 5, dtype=torch.long), attention_mask=torch.ones(1, 1, 5, 5)
        )
    with pytest.raises(ModelError, match="swapped attention"):
        SwapAttention("linear").apply(swapped_once, None, Run())
    with pytest.raises(ModelError, match="swapped attention"):
        compress.BlockwiseQuantize(bits=8).apply(swapped_once, None, Run())
    with pytest.raises(ModelError, match="run packed"):
        packed(swapped_once.model)
    quantized = Recipe([compress.BlockwiseQuantize(bits=8)]).apply(made_plain(), None, Run())
    with pytest.raises(ModelError, match="changed already"):
        SwapAttention("local").apply(quantized, None, Run())


@pytest.mark.parametrize(
    ("to", "options", "word"),
    [
        ("nothing", {}, "no attention"),
        ("local", {"window": 4}, "block"),
        ("local", {"causal": True}, "both ways"),
        ("longformer", {"separate": True}, "share"),
    ],
)
def test_bad_settings(to: str, options: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        SwapAttention(to, options)


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    import json

    export.save(swap(world.bundle("bert"), "local"), tmp_path / "made", allow_custom=True)
    file = tmp_path / "made" / "lightformers.json"
    said = json.loads(file.read_text())
    said["added"]["encoder.layer.0.extra"] = {"kind": "linear", "in": 2, "out": 2, "bias": True}
    file.write_text(json.dumps(said))
    with pytest.raises(ModelError, match="damaged"):
        load(tmp_path / "made", task="embedding")
