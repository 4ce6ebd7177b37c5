"""Bundles: encoding and padding are exact, copies are independent, and loading refuses what it must."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import lightformers as lf
from export.export_models import EXAMPLES, IMAGES, TEXTS, make, outputs
from lightformers.bundle import Bundle, Pooling, pool
from lightformers.errors import DataError, ModelError
from lightformers.export import huggingface

WORDS = [{"words": ["the", "red-cat", "runs"], "labels": [0, 1, 2]}, {"words": ["slow"], "labels": [1]}]


def test_padding_changes_no_output():
    for kind in ("classifier", "embedder", "gpt2"):
        bundle = make(kind)
        together = outputs(bundle, EXAMPLES)
        alone = torch.cat([outputs(bundle, [e]) for e in EXAMPLES])
        assert torch.allclose(together, alone, atol=1e-5), kind
        batch = bundle.pad(bundle.encode(EXAMPLES), multiple=7)
        assert (
            batch.inputs["input_ids"].shape[1] % 7 == 0
            or batch.inputs["input_ids"].shape[1] == bundle.max_length
        )


def test_encode_and_pad_agree_with_the_tokenizers_own_padding():
    bundle = make("classifier")
    pairs = [{"text": a, "text_pair": b} for a, b in zip(TEXTS, reversed(TEXTS))]
    theirs = bundle.processor(TEXTS, TEXTS[::-1], padding=True, return_tensors="pt")
    ours = bundle.collate(pairs).inputs
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert ours["token_type_ids"].max() == 1


def test_left_padding_goes_left():
    bundle = make("gpt2")
    bundle.processor.padding_side = "left"
    batch = bundle.collate(EXAMPLES)
    for row, mask, length in zip(
        batch.inputs["input_ids"], batch.inputs["attention_mask"], batch.targets["lengths"]
    ):
        assert mask.tolist() == [0] * (len(mask) - length) + [1] * int(length)
        assert (row[: len(row) - length] == bundle.processor.pad_token_id).all()
    assert torch.equal(
        batch.inputs["input_ids"], bundle.processor(TEXTS, padding=True, return_tensors="pt")["input_ids"]
    )
    last = pool(
        torch.arange(12.0).reshape(2, 3, 2), torch.tensor([[0, 1, 1], [1, 1, 1]]), Pooling("last", False)
    )
    assert last.tolist() == [[4, 5], [10, 11]]


def test_padding_to_a_multiple_stops_at_the_longest_the_model_takes():
    bundle = make("embedder")  # max_length 12
    encoded = bundle.encode([{"text": " ".join(["cat"] * n)} for n in (1, 30)])
    assert [bundle.length(e) for e in encoded] == [3, 12]
    bundle.model.config.max_position_embeddings = 12
    assert bundle.pad(encoded, multiple=8).inputs["input_ids"].shape == (2, 12)
    bundle.model.config.max_position_embeddings = 18  # longer than texts are cut to: padding may use it
    assert bundle.pad(encoded, multiple=8).inputs["input_ids"].shape == (2, 16)
    assert bundle.pad(encoded[:1], multiple=8).inputs["input_ids"].shape == (1, 8)


@pytest.mark.parametrize("side", ["left", "right"])
def test_word_starts_point_at_first_pieces(side):
    bundle = make("classifier")
    bundle.processor.padding_side = side
    batch = bundle.collate(WORDS)
    # "red-cat" is three pieces; [CLS] and [SEP] are no words
    first, second = [-1, 0, 1, -1, -1, 2, -1], [-1, 0, -1]
    padding = [-1] * 4
    assert batch.targets["word_starts"].tolist() == [
        first,
        padding + second if side == "left" else second + padding,
    ]
    assert batch.targets["examples"][0]["labels"] == [0, 1, 2]
    assert set(batch.inputs) == {"input_ids", "attention_mask", "token_type_ids"}


def test_word_starts_after_truncation_leave_the_cut_words_out():
    bundle = make("classifier")
    bundle.max_length = 4
    assert bundle.collate(WORDS[:1]).targets["word_starts"].tolist() == [[-1, 0, 1, -1]]


def test_targets_travel_and_never_enter_the_model():
    batch = make("classifier").collate([{**e, "label": i % 3, "group": "g"} for i, e in enumerate(EXAMPLES)])
    assert batch.targets["label"].tolist() == [0, 1, 2, 0, 1, 2]
    assert batch.targets["examples"][0]["group"] == "g"
    assert not {"label", "group"} & batch.inputs.keys()
    assert batch.to("cpu").targets["label"].dtype == torch.int64


def test_images_become_pixels():
    bundle = make("vit")
    batch = bundle.collate([{**e, "label": 1} for e in IMAGES])
    assert batch.inputs["pixel_values"].shape == (4, 3, 16, 16)
    assert bundle.length(bundle.encode(IMAGES[:1])[0]) == 1


def test_prompts_go_before_texts_of_their_role():
    bundle = make("embedder")
    asked, plain = bundle.encode([{"text": "cat", "role": "query"}, {"text": "cat", "role": "document"}])
    (written,) = bundle.encode([{"text": "the very cat"}])
    assert asked["input_ids"] == written["input_ids"] != plain["input_ids"]


def test_a_copy_is_independent():
    bundle = make("embedder")
    other = bundle.copy()
    with torch.no_grad():
        other.model.embeddings.word_embeddings.weight.zero_()
    other.history.append({"step": "x"})
    other.model.config.num_hidden_layers = 1
    assert bundle.model.embeddings.word_embeddings.weight.abs().sum() > 0
    assert bundle.history == [] and bundle.model.config.num_hidden_layers == 2


def test_module_shares_weights_and_tied_weights_count_once():
    bundle = make("embedder")
    assert {id(p) for p in bundle.module().parameters()} == {id(p) for p in bundle.model.parameters()}
    language = make("gpt2")
    named = sum(p.numel() for _, p in language.model.named_parameters(remove_duplicate=False))
    assert language.parameters == named - language.model.lm_head.weight.numel()


@pytest.mark.parametrize("mode", ["mean", "cls", "max", "last"])
def test_pooling_against_a_loop(mode):
    torch.manual_seed(0)
    states, mask = torch.randn(3, 5, 4), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    got = pool(states, mask, Pooling(mode, normalize=False))
    for row, each, kept in zip(got, states, mask.bool()):
        tokens = each[kept]
        want = {"mean": tokens.mean(0), "cls": tokens[0], "max": tokens.max(0).values, "last": tokens[-1]}[
            mode
        ]
        assert torch.allclose(row, want, atol=1e-6)
    assert torch.allclose(pool(states, mask, Pooling(mode)).norm(dim=1), torch.ones(3))


def test_missing_fields_and_processors_are_said():
    with pytest.raises(DataError, match=r"no field 'text'; it has \['sentence'\]"):
        make("classifier").encode([{"sentence": "x"}])
    with pytest.raises(ModelError, match="no processor"):
        Bundle(torch.nn.Linear(1, 1)).encode(EXAMPLES)
    assert Bundle(torch.nn.Linear(1, 1)).encode([]) == []


# Loading.


@pytest.fixture
def folder(tmp_path):
    huggingface.save(make("classifier"), tmp_path)
    return tmp_path


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_pickle_checkpoint_is_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickle checkpoint \(pytorch_model\.bin\).*safe_serialization"):
        lf.load(folder)


def test_remote_code_is_refused(folder):
    edit(folder / "config.json", auto_map={"AutoModel": "code.Model"})
    with pytest.raises(ModelError, match="--trust-remote-code"):
        lf.load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(folder, value):
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"][0, 0] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"NaN or infinity \(first in classifier\.weight\)"):
        lf.load(folder)


def test_the_wrong_head_is_refused_with_both_ways_out(folder):
    with pytest.raises(
        ModelError, match=r"no trained head for causal-lm.*--task text-classification.*fine-tune"
    ):
        lf.load(folder, task="causal-lm")
    assert lf.load(folder, task="text-classification").task == "text-classification"


def test_a_missing_tensor_is_refused_not_filled_with_random_numbers(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"missing.*layer\.1\.output\.dense\.weight"):
        lf.load(folder)


def test_other_refusals_name_the_cause(folder, tmp_path):
    with pytest.raises(ModelError, match=r"unknown task 'poetry'; tasks: embedding"):
        lf.load(folder, task="poetry")
    with pytest.raises(ModelError, match="is no folder"):
        lf.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        lf.load(tmp_path / "empty")
    edit(folder / "config.json", model_type="frobnicator")
    with pytest.raises(ModelError, match=r"unknown architecture \(model_type: frobnicator\)"):
        lf.load(folder)


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        lf.load(folder)


def test_a_head_can_be_left_off_for_embedding(folder):
    bundle = lf.load(folder, task="embedding")
    assert type(bundle.model).__name__ == "BertModel" and bundle.pooling == Pooling("mean")
    assert torch.allclose(outputs(bundle, EXAMPLES).norm(dim=1), torch.ones(len(EXAMPLES)))


def test_limits_come_from_tokenizer_and_positions(folder):
    assert lf.load(folder).max_length == 64
    edit(folder / "tokenizer_config.json", model_max_length=20)
    assert lf.load(folder).max_length == 20


@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_a_folder_that_sentence_transformers_wrote_gives_equal_vectors(mode, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Transformer
    from sentence_transformers.models import Pooling as TheirPooling

    plain = make("embedder")
    plain.model.save_pretrained(tmp_path / "hf")
    plain.processor.save_pretrained(tmp_path / "hf")
    word = Transformer(str(tmp_path / "hf"), max_seq_length=9)
    theirs = SentenceTransformer(
        modules=[word, TheirPooling(32, pooling_mode=mode), Normalize()], device="cpu",
        prompts={"query": "very slow "},
    )  # fmt: skip
    theirs.save(str(tmp_path / "st"))
    bundle = lf.load(tmp_path / "st")
    assert (bundle.task, bundle.pooling, bundle.max_length) == ("embedding", Pooling(mode, True), 9)
    assert np.allclose(outputs(bundle, EXAMPLES).numpy(), theirs.encode(TEXTS), atol=1e-6)
    asked = [{"text": t, "role": "query"} for t in TEXTS]
    assert np.allclose(outputs(bundle, asked).numpy(), theirs.encode(TEXTS, prompt_name="query"), atol=1e-6)


def test_unknown_sentence_transformers_modules_are_refused(tmp_path):
    huggingface.save(make("embedder"), tmp_path)
    modules = json.loads((tmp_path / "modules.json").read_text())
    dense = {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"}
    (tmp_path / "modules.json").write_text(json.dumps([*modules, dense]))
    with pytest.raises(ModelError, match=r"Transformer \+ Pooling \+ Normalize \+ Dense"):
        lf.load(tmp_path)
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    edit(tmp_path / "1_Pooling" / "config.json", pooling_mode_max_tokens=True)
    with pytest.raises(ModelError, match="pooling"):
        lf.load(tmp_path)
