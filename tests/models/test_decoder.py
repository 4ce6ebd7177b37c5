"""The decoder skeleton: configuration, masks, generation with every kind of search, saving, refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lightformers as lf
from lightformers.errors import UserError
from lightformers.models.language import layers as layers_module
from lightformers.models.language.decoder import Decoder, DecoderConfig
from lightformers.models.patterns import stack

ATTENTION = {"kind": "attention", "heads": 2}
LAYER = {"mixer": ATTENTION, "ffn": {"kind": "mlp", "hidden": 24}}
WINDOW = {"mixer": {**ATTENTION, "window": 4, "kv_heads": 1}, "ffn": {"kind": "swiglu", "hidden": 16}}


def made(seed: int = 0, **fields: Any) -> Decoder:
    torch.manual_seed(seed)
    model = Decoder(DecoderConfig(**{"vocab_size": 40, "hidden_size": 16, "layers": [LAYER, WINDOW], **fields})).eval()  # fmt: skip
    with torch.no_grad():  # as drawn, so small a model says almost the same everywhere
        for p in model.parameters():
            p.mul_(8 if p.ndim > 1 else 1)
    return model


def tokens(batch: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 40, (batch, n), generator=torch.Generator().manual_seed(seed))


def tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "word": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        folder
    )


def greedy(model: Decoder, ids: torch.Tensor, more: int) -> torch.Tensor:
    for _ in range(more):
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    return ids


LEARNED = {"positions": "learned", "max_position_embeddings": 32, "norm": "layer"}


@pytest.mark.parametrize("fields", [{}, LEARNED], ids=["rotary", "learned"])
@torch.no_grad()
def test_prompts_of_unequal_length_generate_as_alone(fields: dict[str, Any]) -> None:
    model, ids = made(**fields), tokens(3, 7)
    mask = torch.ones_like(ids)
    mask[0, :4], mask[2, :1] = 0, 0
    found = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=9, do_sample=False, pad_token_id=0
    )
    for row, start in enumerate((4, 0, 1)):
        assert torch.equal(found[row : row + 1, start:], greedy(model, ids[row : row + 1, start:], 9))


@torch.no_grad()
def test_beams_with_states_are_beams_without() -> None:
    model, ids = made(), tokens(2, 5)
    options = {
        "num_beams": 3,
        "max_new_tokens": 8,
        "do_sample": False,
        "pad_token_id": 0,
        "num_return_sequences": 2,
    }
    found = model.generate(input_ids=ids, **options)
    assert torch.equal(found, model.generate(input_ids=ids, use_cache=False, **options))


@torch.no_grad()
def test_samples_with_states_are_samples_without() -> None:
    model, ids = made(), tokens(2, 5)
    out = []
    for use_cache in (True, False):
        torch.manual_seed(1)
        out.append(model.generate(input_ids=ids, max_new_tokens=12, do_sample=True, top_k=8, pad_token_id=0, use_cache=use_cache))  # fmt: skip
    assert torch.equal(*out)


@torch.no_grad()
def test_a_text_continues_in_pieces() -> None:
    model, ids = made(**LEARNED), tokens(2, 12)
    whole = model(input_ids=ids).logits
    first = model(input_ids=ids[:, :5], use_cache=True)
    second = model(input_ids=ids[:, 5:6], past_key_values=first.past_key_values)
    third = model(
        input_ids=ids[:, 6:], past_key_values=second.past_key_values, attention_mask=torch.ones(2, 12)
    )
    pieces = torch.cat([first.logits, second.logits, third.logits], 1)
    torch.testing.assert_close(pieces, whole, atol=1e-4, rtol=1e-4)
    assert third.past_key_values.get_seq_length() == 12
    again = model.generate(input_ids=ids, past_key_values=model(input_ids=ids[:, :-1], use_cache=True).past_key_values, max_new_tokens=4, do_sample=False, pad_token_id=0)  # fmt: skip
    assert torch.equal(again, greedy(model, ids, 4))


@pytest.mark.parametrize("fields", [{}, LEARNED], ids=["rotary", "learned"])
@torch.no_grad()
def test_packed_documents_are_documents_apart(fields: dict[str, Any]) -> None:
    model = made(**fields).double()
    a, b = tokens(1, 6), tokens(1, 9, seed=1)
    mask = torch.tensor([[1] * 6 + [2] * 9 + [0] * 2])
    ids = torch.cat([a, b, a[:, :2]], 1)
    packed = model(input_ids=ids, attention_mask=mask).logits[:, :15]
    torch.testing.assert_close(packed, torch.cat([model(input_ids=a).logits, model(input_ids=b).logits], 1))


def test_the_loss_is_the_usual_one_and_passes_over_starts() -> None:
    model, ids = made(), tokens(2, 8)
    loss = model(input_ids=ids, labels=ids).loss
    logits = model(input_ids=ids).logits[:, :-1]
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
    mask = torch.tensor([[1] * 4 + [2] * 4] * 2)
    found = model(input_ids=ids, labels=ids, attention_mask=mask).loss
    apart = [model(input_ids=ids[:, part], labels=ids[:, part]).loss for part in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(found, sum(apart) / 2)


def test_checkpointing_changes_no_gradient() -> None:
    grads = []
    for checkpointing in (False, True):
        model = made().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(input_ids=tokens(2, 9)).logits.square().mean().backward()
        grads.append({k: p.grad for k, p in model.named_parameters()})
    assert all(g is not None for g in grads[0].values())
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name])


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    model, ids = made(tie_word_embeddings=False, residual_fp32=True, embedding_scale="sqrt", eos_token_id=3), tokens(2, 8)  # fmt: skip
    model.save_pretrained(tmp_path)
    config = DecoderConfig.from_pretrained(tmp_path)
    assert (
        config.layers == model.config.layers and config.eos_token_id == 3 and not config.tie_word_embeddings
    )
    assert config.num_hidden_layers == 2 and config.embedding_scale == "sqrt"
    again, info = Decoder.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(again.eval()(input_ids=ids).logits, model(input_ids=ids).logits)
    tokenizer(tmp_path)
    bundle = lf.load(tmp_path)
    assert isinstance(bundle.model, Decoder) and bundle.task == "causal-lm"
    torch.testing.assert_close(bundle.model(input_ids=ids).logits, model(input_ids=ids).logits)


def test_tied_words_are_one_matrix_and_stay_so(tmp_path: Path) -> None:
    model = made()
    assert model.head.weight is model.embedding.weight
    model.save_pretrained(tmp_path)
    again = Decoder.from_pretrained(tmp_path)
    assert again.head.weight is again.embedding.weight
    torch.testing.assert_close(again.embedding.weight, model.embedding.weight)


class Noisy(nn.Module):
    """A mixer with a buffer that is saved, one that is not, and an uncommon start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width, width), 3.0))
        self.weight.no_decay = True  # type: ignore[attr-defined]
        self.register_buffer("drawn", torch.randn(width))
        self.register_buffer("fixed", torch.arange(width) / width, persistent=False)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return (x + self.drawn + self.fixed) @ self.weight

    def begin(self, *given: Any) -> dict[str, torch.Tensor]:
        return {}


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(layers_module.MIXERS, "noisy", f"{__name__}:Noisy")


def test_buffers_and_absent_weights_have_values_after_loading(noisy: None, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = Decoder(
        DecoderConfig(40, 16, [{"mixer": {"kind": "noisy"}}, {"mixer": {"kind": "noisy"}}])
    ).eval()
    assert model.layers[0].mixer.weight.min() == 3  # transformers' own start did not overwrite the part's
    model.save_pretrained(tmp_path)
    again = Decoder.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(input_ids=tokens(1, 4)).logits, model(input_ids=tokens(1, 4)).logits)
    kept = load_file(tmp_path / "model.safetensors")
    del kept["layers.1.mixer.weight"], kept["norm.weight"]
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    again = Decoder.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(input_ids=tokens(1, 4)).logits, model(input_ids=tokens(1, 4)).logits)


def test_marks_against_decay_survive_copies_and_loading(noisy: None, tmp_path: Path) -> None:
    import copy

    from lightformers.train.optim import adamw, trainable, weights

    model = Decoder(
        DecoderConfig(40, 16, [{"mixer": {"kind": "noisy"}, "ffn": {"kind": "mlp", "hidden": 8}}])
    )
    model.save_pretrained(tmp_path)
    for found in (model, copy.deepcopy(model), Decoder.from_pretrained(tmp_path)):
        for half in (False, True):
            with trainable(found, None, ()) as named, weights(found, named, half) as held:
                optimizer = adamw(held.masters, 1e-3, 0.1, (0.9, 0.95))
                decays, spared = ({id(p) for p in g["params"]} for g in optimizer.param_groups)
                assert id(held.masters["layers.0.mixer.weight"]) in spared
                assert id(held.masters["layers.0.ffn.up.weight"]) in decays
                assert id(held.masters["layers.0.ffn_norm.weight"]) in spared


def test_norms_behind_the_part_and_a_wide_stream() -> None:
    row = {**LAYER, "ffn_norm": "post-output"}
    model = made(layers=[row], residual_fp32=True)
    layer, x = model.layers[0], torch.randn(1, 3, 16)
    middle = x + layer.mixer(layer.mixer_norm(x))
    torch.testing.assert_close(layer(x), middle + layer.ffn_norm(layer.ffn(middle)))
    half = made(layers=[row, row], residual_fp32=True).bfloat16()
    _, read = half.features(tokens(1, 4), every=True)
    assert read[1].dtype == torch.float32 and half(input_ids=tokens(1, 4)).logits.dtype == torch.bfloat16


@torch.no_grad()
def test_hidden_states_logits_to_keep_and_tuples() -> None:
    model, ids = made(), tokens(2, 6)
    out = model(input_ids=ids, output_hidden_states=True)
    assert len(out.hidden_states) == 3
    torch.testing.assert_close(model.head(out.hidden_states[-1]), out.logits)
    torch.testing.assert_close(model(input_ids=ids, logits_to_keep=2).logits, out.logits[:, -2:])
    embedded = model(inputs_embeds=model.embedding(ids), return_dict=False)
    torch.testing.assert_close(embedded[0], out.logits)
    assert model(input_ids=ids).past_key_values is None


@torch.no_grad()
def test_compiled_it_is_the_same() -> None:
    model, ids = made(), tokens(2, 6)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"layers": [{"mixer": {"kind": "mambo"}}]}, "layer 0: 'mambo' is not one of"),
        ({"layers": [{"mixer": {"kind": "attention", "headz": 2}}]}, "no option headz; it takes heads"),
        ({"layers": [{"mixer": {"kind": "attention"}}]}, "attention needs heads"),
        (
            {"layers": [LAYER, {"mixer": {**ATTENTION, "causal": False}}]},
            "layer 1: attention looks both ways",
        ),
        ({"layers": [{"mixer": {"kind": "fourier", "heads": 2}}]}, "looks both ways"),
        ({"layers": [{"mixer": None, "ffn": None}]}, "neither a mixer nor"),
        ({"layers": [{**LAYER, "mlp": {}}]}, "a layer has mixer, ffn"),
        ({"layers": [{**LAYER, "ffn_norm": "after"}]}, "ffn_norm is one of pre"),
        ({"layers": [{"mixer": "attention"}]}, "a mixer is a mapping"),
        ({"layers": [{"mixer": {**ATTENTION, "heads": nn.Linear}}]}, "plain mappings"),
        ({"norm": "batch"}, "norm is one of rms, layer"),
        ({"positions": "rotary"}, "positions are 'learned' or None"),
        ({"positions": "learned"}, "need max_position_embeddings"),
        ({"vocab_size": 0}, "nothing to model"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        DecoderConfig(**fields)


def test_what_cannot_run_is_refused() -> None:
    with pytest.raises(UserError, match="names no layers"):
        Decoder(DecoderConfig())
    with pytest.raises(UserError, match="layer 0: 3 heads"):
        Decoder(DecoderConfig(40, 16, [{"mixer": {"kind": "attention", "heads": 3}}]))
    model, ids = made(max_position_embeddings=8), tokens(2, 6)
    with pytest.raises(UserError, match="9 tokens are more than the 8"):
        model(input_ids=tokens(1, 9))
    with pytest.raises(UserError, match="9 tokens are more than the 8"):
        model.generate(input_ids=ids, max_new_tokens=5, pad_token_id=0)
    packed = torch.tensor([[1] * 5 + [2] * 7])
    assert model(input_ids=tokens(1, 12), attention_mask=packed).logits.shape[1] == 12  # each is short enough
    with pytest.raises(UserError, match="pack without use_cache"):
        model(input_ids=ids, attention_mask=torch.tensor([[1, 1, 2, 2, 2, 2]] * 2), use_cache=True)
    with pytest.raises(UserError, match="attention_mask is"):
        model(input_ids=ids, attention_mask=torch.ones(2, 5))
    with pytest.raises(UserError, match="padded on the left"):
        model.generate(input_ids=ids, attention_mask=torch.tensor([[1, 1, 1, 1, 0, 0]] * 2), pad_token_id=0)
    states = made(layers=[LAYER])(input_ids=ids, use_cache=True).past_key_values
    with pytest.raises(UserError, match="hold 1 layers of 2 texts"):
        model(input_ids=ids, past_key_values=states)
    with pytest.raises(UserError, match="hold 2 layers of 3 texts"):
        model(input_ids=ids, past_key_values=model.begin(3))
    with pytest.raises(UserError, match="cut back"):
        states.crop(-1)
    with pytest.raises(UserError, match="leave position_ids out"):
        model(input_ids=ids, position_ids=torch.arange(6)[None])
    with pytest.raises(UserError, match="one of them"):
        model()
    with pytest.raises(ValueError, match="not supported with stateful"):
        model.generate(input_ids=ids[:1], assistant_model=made(), max_new_tokens=2, pad_token_id=0)


def test_patterns() -> None:
    found = stack("AW" * 2, {"A": LAYER, "W": WINDOW})
    assert [row == LAYER for row in found] == [True, False, True, False]
    found[0]["mixer"]["heads"] = 7
    assert LAYER["mixer"]["heads"] == 2 and found[2]["mixer"]["heads"] == 2
    with pytest.raises(UserError, match="no X; it has A"):
        stack("AX", {"A": LAYER})


@pytest.mark.parametrize("first", ["lightformers", pytest.param("transformers", marks=pytest.mark.slow)])
def test_transformers_auto_classes_open_it(first: str, tmp_path: Path) -> None:
    made().save_pretrained(tmp_path)
    imports = {"lightformers": "import lightformers", "transformers": "from transformers import AutoModelForCausalLM, AutoConfig"}  # fmt: skip
    lines = [imports.pop(first), *imports.values()]
    lines.append(f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})")
    lines.append("print(type(model).__name__, type(AutoConfig.for_model('lightformers-decoder')).__name__)")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["Decoder", "DecoderConfig"], done.stderr


def test_importing_lightformers_is_quick() -> None:
    code = "import time, sys; t = time.perf_counter(); import lightformers; print(time.perf_counter() - t, 'torch' in sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert float(out[0]) < 0.3 and out[1] == "False"
