"""ToLong: a BERT or RoBERTa as a Longformer or BigBird of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import steps_world as world
import torch
import transformers as T
from torch import Tensor

import lightformers as lf
from lightformers.bundle import Bundle
from lightformers.compress.long import LocalToGlobal, ToLong, copy_to_global, long_config, long_table
from lightformers.errors import ModelError, UserError
from lightformers.steps import Recipe, Run
from sequence_cost import memory

WORDS, TOKENS = 60, 24
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": WORDS}  # fmt: skip
#: Longformer's softmax is float32 in any model.
EXACT = 3e-6
HEADS = (
    "Model",
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
)


def short(family: str = "Bert", head: str = "Model", **changes: Any) -> Any:
    """A random encoder for 24 tokens, in float64."""
    torch.manual_seed(0)
    roberta = {"pad_token_id": 1, "max_position_embeddings": TOKENS + 2, "type_vocab_size": 1}
    given = {"max_position_embeddings": TOKENS, **(roberta if family == "Roberta" else {})}
    config = getattr(T, f"{family}Config")(
        **SIZES | given | {"pad_token_id": given.get("pad_token_id", 0)} | changes
    )
    made = getattr(T, family + head)(config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return made.double().eval()


def lengthened(model: Any, **fields: Any) -> Any:
    return ToLong(**{"positions": 70, "window": 8} | fields).apply(Bundle(model), None, Run()).model


def texts(model: Any, length: int = 21, padding: int = 6) -> tuple[Tensor, Tensor]:
    """Two rows of ids; the second ends in padding."""
    ids = torch.randint(5, WORDS, (2, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padding:
        ids[1, -padding:], mask[1, -padding:] = model.config.pad_token_id, 0
    return ids, mask


def values(output: Any, mask: Tensor) -> Tensor:
    found = next(output[k] for k in ("last_hidden_state", "logits", "start_logits") if k in output)
    return found * mask[..., None] if found.dim() == 3 else found * (mask if found.shape == mask.shape else 1)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", ["Bert", "Roberta"])
@torch.no_grad()
def test_a_window_twice_the_length_gives_the_original(family: str, head: str) -> None:
    model = short(family, head)
    ids, mask = texts(model)
    if head == "ForQuestionAnswering":  # the question lies before the first of three separators
        if family == "Bert":
            with pytest.raises(ModelError, match="three separators"):
                lengthened(model)
            return
        ids = ids.masked_fill(ids == 2, 7).scatter(1, torch.tensor([[4, 5, 12]] * 2), 2)
    wanted = values(model(input_ids=ids, attention_mask=mask), mask)
    made = lengthened(model, window=64)
    assert made.config.sep_token_id == (2 if family == "Roberta" else None)
    assert type(made).__name__ == "Longformer" + head and made.dtype == torch.float64 and not made.training
    found = values(made(input_ids=ids, attention_mask=mask), mask)
    torch.testing.assert_close(found, wanted, rtol=0, atol=EXACT)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("length", [1, 16, 21])
@torch.no_grad()
def test_windows_and_a_global_token_as_masks_of_the_original(length: int, whole: bool) -> None:
    """Full attention under the literal mask |i - j| <= window / 2, row and column of global tokens open."""
    model = short("Roberta")
    ids, mask = texts(model, length, 6 if length > 10 else 0)
    place = torch.arange(length)
    seen = ((place[:, None] - place).abs() <= 4) & (mask != 0)[:, None, :]
    if whole:
        seen[:, 0], seen[:, :, 0] = mask != 0, True
    wanted = model(input_ids=ids, attention_mask=seen[:, None]).last_hidden_state
    chosen = (place == 0).long().expand_as(ids) * int(whole)
    found = lengthened(model)(input_ids=ids, attention_mask=mask, global_attention_mask=chosen)
    torch.testing.assert_close(values(found, mask), wanted * mask[..., None], rtol=0, atol=EXACT)


@torch.no_grad()
def test_positions_are_copied_again_and_again() -> None:
    table = torch.arange(7.0)[:, None]
    assert long_table(table, 11, 2, 2)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 2, 3, 4, 5, 6, 2]
    assert long_table(table, 8, 0, 1)[:, 0].tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 0]
    assert long_table(table, 8, 2, 0)[:, 0].tolist() == [2, 3, 4, 5, 6, 2, 3, 4]
    bert = short()
    made = lengthened(bert)
    own = made.embeddings.position_embeddings.weight
    assert own.shape == (71, 16)  # a row for padding, then as many as asked for
    assert torch.equal(own[1:25], own[25:49]) and torch.equal(
        own[1:25], bert.embeddings.position_embeddings.weight
    )
    ids = torch.randint(5, WORDS, (1, TOKENS + 5)).repeat(1, 2)[:, : 2 * TOKENS]
    alike = torch.randint(5, WORDS, (1, TOKENS), generator=torch.Generator().manual_seed(3)).repeat(1, 2)
    states = made(input_ids=alike).last_hidden_state[0]
    assert ids.shape == alike.shape and torch.allclose(
        states[10], states[10 + TOKENS]
    )  # the same place in a copy
    with pytest.raises(IndexError):  # transformers' own words for too long a text
        made(input_ids=torch.full((1, 71), 7))


@torch.no_grad()
def test_evidence_beyond_the_windows_needs_the_global_token() -> None:
    """Two blocks of windows of 4 on each side reach 8 tokens; the first token is global in a classifier alone."""
    ids, mask = texts(short(), 60, 0)
    far, near = ids.clone(), ids.clone()
    far[:, 50], near[:, 7] = 5 + (ids[:, 50] - 4) % 50, 5 + (ids[:, 7] - 4) % 50
    bare = lengthened(short())
    first = [bare(input_ids=i).last_hidden_state[:, 0] for i in (ids, near, far)]
    assert torch.equal(first[0], first[2]) and not torch.allclose(first[0], first[1])
    classifier = lengthened(short(head="ForSequenceClassification"))
    logits = [classifier(input_ids=i, attention_mask=mask).logits for i in (ids, far)]
    assert (logits[0] - logits[1]).abs().max() > 1e-4


def test_a_bundle_is_saved_and_opened_by_transformers(tmp_path: Path) -> None:
    bundle = world.bundle("bert-classifier")
    rows = [{"text": " ".join(world.TEXTS[:30])}, {"text": world.TEXTS[3]}]
    limit = bundle.processor.model_max_length
    made = Recipe([ToLong(positions=200, window=16)]).apply(bundle, None, Run(dtype="fp32"))
    assert made.max_length == 200 == made.processor.model_max_length
    assert bundle.max_length == 48 and bundle.processor.model_max_length == limit  # the caller's stays
    batch = made.collate(rows)
    assert batch.inputs["input_ids"].shape[1] > 64  # more than the model could read
    with torch.no_grad():
        wanted = made.model(**batch.inputs).logits
        made.model.save_pretrained(tmp_path)
        made.processor.save_pretrained(tmp_path)
        plain = T.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
        assert torch.equal(plain(**batch.inputs).logits, wanted)
    again = lf.load(str(tmp_path))
    assert again.max_length == 200 and again.task == "text-classification"
    assert again.encode(rows)[0]["input_ids"] == made.encode(rows)[0]["input_ids"]


def test_global_projections_follow_after_training() -> None:
    made = lengthened(short(head="ForMaskedLM"))
    layer = made.longformer.encoder.layer[1].attention.self
    made(input_ids=texts(made, 30, 0)[0]).logits.square().sum().backward()
    assert (
        layer.query.weight.grad.abs().sum() > 0 and layer.query_global.weight.grad is None
    )  # MLM leaves it behind
    with torch.no_grad():
        layer.value.weight.add_(1)
    assert not torch.equal(layer.value.weight, layer.value_global.weight)
    LocalToGlobal().apply(Bundle(made), None, Run())
    assert torch.equal(layer.value.weight, layer.value_global.weight) and copy_to_global(made) == 2
    assert layer.value.weight.data_ptr() != layer.value_global.weight.data_ptr()
    with pytest.raises(ModelError, match="no global projections"):
        LocalToGlobal().apply(Bundle(short()), None, Run())


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
@pytest.mark.parametrize("head", ["Model", "ForMaskedLM", "ForTokenClassification"])
@torch.no_grad()
def test_bigbird_has_the_weights_and_reads_on(family: str, head: str, tmp_path: Path) -> None:
    model = short(family, head)
    made = lengthened(model, positions=96, pattern="bigbird", block=4, random=1)
    ids, mask = texts(model)
    long = made(input_ids=torch.randint(5, WORDS, (1, 96)))  # more than 28 tokens: in blocks
    core = getattr(made, "bert", made)
    assert core.attention_type == "block_sparse" and torch.isfinite(next(iter(long.values()))).all()
    found = values(made(input_ids=ids, attention_mask=mask), mask)  # transformers attends in full below
    torch.testing.assert_close(
        found, values(model(input_ids=ids, attention_mask=mask), mask), rtol=0, atol=1e-9
    )
    made.save_pretrained(tmp_path)
    plain = type(made).from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert torch.equal(values(plain(input_ids=ids, attention_mask=mask), mask), found)


def test_parameters_of_longformer_base() -> None:
    base = T.RobertaConfig(
        vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5
    )
    config = long_config(base, "roberta", ToLong())
    assert (
        config.max_position_embeddings == 4098 and config.attention_window == 512 and config.pad_token_id == 1
    )
    with torch.device("meta"):
        made = T.LongformerModel(config)
    assert sum(p.numel() for p in made.parameters()) == 148_659_456


def test_what_training_keeps_is_linear_in_length() -> None:
    """The largest tensor is not: transformers makes one mask of length * length, once per call."""
    model = lengthened(short(), positions=8192, window=64).float()

    def kept(length: int) -> int:
        return memory(lambda: model(input_ids=torch.full((1, length), 7)).last_hidden_state)[1]

    assert kept(8192) < 4.4 * kept(2048)


def test_impossible_settings_are_refused() -> None:
    for wrong in ({"window": 7}, {"window": 0}, {"window": (8, 3)}, {"pattern": "sparse"}, {"random": 0}):
        with pytest.raises(UserError):
            ToLong(**wrong)
    with pytest.raises(UserError, match="multiple of the block"):
        ToLong(100, pattern="bigbird")
    with pytest.raises(UserError, match="24 tokens already"):
        lengthened(short("Roberta"), positions=24)
    with pytest.raises(UserError, match="3 windows were given for 2"):
        lengthened(short(), window=(8, 8, 8))
    assert Recipe.from_yaml(Recipe([ToLong(window=(8, 4))]).to_yaml()).steps == (ToLong(window=(8, 4)),)


def test_other_models_are_refused_untouched() -> None:
    bundle = Bundle(short(head="ForSequenceClassification"))
    kept = bundle.model
    with pytest.raises(ModelError, match="another activation"):
        ToLong(96, pattern="bigbird", block=4).apply(bundle, None, Run())
    with pytest.raises(ModelError, match="has gelu"):
        lengthened(short(head="ForMaskedLM", hidden_act="relu"))
    with pytest.raises(ModelError, match="no long form"):
        lengthened(short(head="ForMultipleChoice"))
    with pytest.raises(ModelError, match="family llama"):
        lengthened(world.model("llama"))
    cut = short()
    lf.anatomy.surgery.keep_heads(cut, {0: [0]})
    with pytest.raises(ModelError, match="built from a plain one"):
        lengthened(cut)
    assert bundle.model is kept
