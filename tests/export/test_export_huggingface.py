"""Saved folders open in plain transformers and sentence-transformers with equal outputs."""

from __future__ import annotations

import json

import pytest
import torch
from export_models import MAKERS, TEXTS, examples_of, make, outputs

import lightformers as lf
from lightformers.bundle import Pooling
from lightformers.errors import ModelError
from lightformers.export import huggingface
from lightformers.parts.low_rank import LowRankLinear


def low_rank(bundle, path="encoder.layer.0.intermediate.dense", rank=4):
    owner, _, leaf = path.rpartition(".")
    old = bundle.model.get_submodule(path)
    part = LowRankLinear(old.in_features, old.out_features, rank)
    setattr(bundle.model.get_submodule(owner), leaf, part)
    return part


@pytest.mark.parametrize("kind", MAKERS)
def test_plain_transformers_opens_the_folder_with_equal_outputs(kind, tmp_path):
    import transformers

    bundle = make(kind)
    assert huggingface.save(bundle, tmp_path / "m") == []
    model = getattr(transformers, type(bundle.model).__name__).from_pretrained(tmp_path / "m").eval()
    if kind == "vit":
        processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "m")
        inputs = processor(images=[e["image"] for e in examples_of(kind)], return_tensors="pt")
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
        inputs = tokenizer(
            TEXTS, padding=True, truncation=True, max_length=bundle.max_length, return_tensors="pt"
        )
    with torch.no_grad():
        plain = model(**inputs)
        ours = bundle.model(**bundle.collate(examples_of(kind)).inputs)
    assert torch.equal(plain[0], ours[0])
    assert not (tmp_path / "m" / "lightformers.json").exists()


@pytest.mark.parametrize("kind", MAKERS)
def test_our_own_load_gives_back_the_bundle(kind, tmp_path):
    bundle = make(kind)
    huggingface.save(bundle, tmp_path)
    again = lf.load(tmp_path)
    assert (again.task, again.pooling, again.max_length) == (bundle.task, bundle.pooling, bundle.max_length)
    assert torch.equal(outputs(again, examples_of(kind)), outputs(bundle, examples_of(kind)))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("mode", ["mean", "cls", "max", "last"])
def test_sentence_transformers_gives_equal_vectors(mode, normalize, tmp_path):
    from sentence_transformers import SentenceTransformer

    bundle = make("embedder")
    bundle.pooling = Pooling(mode, normalize)
    long = " ".join(TEXTS)  # longer than max_length: truncated alike
    huggingface.save(bundle, tmp_path)
    theirs = SentenceTransformer(str(tmp_path), device="cpu")
    ours = outputs(bundle, [{"text": t} for t in [*TEXTS, long]])
    vectors = theirs.encode([*TEXTS, long], convert_to_tensor=True)
    assert torch.allclose(vectors, ours, atol=1e-6)
    assert theirs.max_seq_length == bundle.max_length
    assert theirs.prompts["query"] == "the very "
    query = theirs.encode(TEXTS, prompt_name="query", convert_to_tensor=True)
    assert torch.allclose(query, outputs(bundle, [{"text": t, "role": "query"} for t in TEXTS]), atol=1e-6)
    assert not torch.allclose(query, vectors[: len(TEXTS)], atol=1e-3)


def test_a_cut_that_the_config_says_stays_plain(tmp_path):
    bundle = make("embedder")
    bundle.model.encoder.layer = bundle.model.encoder.layer[:1]
    bundle.model.config.num_hidden_layers = 1
    assert huggingface.save(bundle, tmp_path) == []
    assert torch.equal(
        outputs(lf.load(tmp_path), examples_of("embedder")), outputs(bundle, examples_of("embedder"))
    )


def test_what_the_config_cannot_say_is_refused_with_the_reason(tmp_path):
    bundle = make("embedder")
    low_rank(bundle)
    with pytest.raises(ModelError, match=r"encoder\.layer\.0\.intermediate\.dense.*--allow-custom"):
        huggingface.save(bundle, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_custom_folder_loads_with_us_and_is_refused_by_plain_transformers(tmp_path):
    from transformers import AutoModel

    bundle = make("embedder")
    low_rank(bundle)
    assert huggingface.save(bundle, tmp_path, allow_custom=True)
    again = lf.load(tmp_path)
    assert (again.task, again.pooling, again.max_length) == ("embedding", bundle.pooling, 12)
    assert torch.equal(outputs(again, examples_of("embedder")), outputs(bundle, examples_of("embedder")))
    with pytest.raises(ValueError, match="quantization config"):  # never random weights behind a warning
        AutoModel.from_pretrained(tmp_path)


def test_a_second_export_leaves_nothing_of_the_first_and_keeps_other_files(tmp_path):
    (tmp_path / "study.db").write_text("mine")
    (tmp_path / "openvino").mkdir()
    bundle = make("embedder")
    huggingface.save(bundle, tmp_path)
    low_rank(bundle)
    huggingface.save(bundle, tmp_path, allow_custom=True)
    assert (tmp_path / "lightformers.json").exists()
    huggingface.save(make("classifier"), tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    assert {"study.db", "openvino", "config.json", "model.safetensors"} <= names
    assert not names & {"lightformers.json", "modules.json", "1_Pooling"}
    assert not [n for n in names if n.startswith(".")]
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [
        "BertForSequenceClassification"
    ]


def test_a_failed_export_leaves_the_old_folder(tmp_path, monkeypatch):
    bundle = make("classifier")
    huggingface.save(bundle, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    monkeypatch.setattr(
        type(bundle.processor), "save_pretrained", lambda *a: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        huggingface.save(make("classifier", seed=1), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_similarity_and_default_prompt_of_the_original_are_kept(tmp_path):
    bundle = make("embedder")
    huggingface.save(bundle, tmp_path / "a")
    path = tmp_path / "a" / "config_sentence_transformers.json"
    path.write_text(
        json.dumps(
            {**json.loads(path.read_text()), "similarity_fn_name": "dot", "default_prompt_name": "query"}
        )
    )
    huggingface.save(lf.load(tmp_path / "a"), tmp_path / "b")
    held = json.loads((tmp_path / "b" / "config_sentence_transformers.json").read_text())
    assert (held["similarity_fn_name"], held["default_prompt_name"]) == ("dot", "query")
