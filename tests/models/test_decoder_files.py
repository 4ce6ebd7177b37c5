"""The decoder skeleton on disk: saving, loading, absent weights, Auto classes, the cost of importing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from decoder_world import made, tokenizer, tokens
from torch import nn

import lightformers as lf
from lightformers.models.language import layers as layers_module
from lightformers.models.language.decoder import Decoder, DecoderConfig


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


OURS, AUTO = "import lightformers", "from transformers import AutoModelForCausalLM, AutoConfig"
LLAMA = "import transformers.models.llama.modeling_llama"


@pytest.mark.parametrize(
    "imports",
    [
        # a module whose import begins with transformers' layers, which import the Auto classes while they are half made
        (OURS, LLAMA, AUTO),
        pytest.param((OURS, AUTO), marks=pytest.mark.slow),
        pytest.param((AUTO, OURS), marks=pytest.mark.slow),
    ],
)
def test_transformers_auto_classes_open_it(imports: tuple[str, ...], tmp_path: Path) -> None:
    made().save_pretrained(tmp_path)
    lines = ["import warnings; warnings.simplefilter('error', UserWarning)", *imports]
    lines.append(f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})")
    lines.append("print(type(model).__name__, type(AutoConfig.for_model('lightformers-decoder')).__name__)")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["Decoder", "DecoderConfig"], done.stderr


def test_importing_lightformers_imports_nothing_heavy() -> None:
    code = (
        "import sys, lightformers; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
