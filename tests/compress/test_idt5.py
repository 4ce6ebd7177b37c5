"""Trimming vocabularies: tokenizer surgery, rows, and the card's invariants."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import steps_world as world
import torch

from lightformers import anatomy
from lightformers.compress import TrimVocabulary, tokenizer_json
from lightformers.compress.vocabulary import count, texts_of, trimmed
from lightformers.errors import DataError, ModelError, UserError
from lightformers.steps import Recipe, Run

KINDS = ("wordpiece", "bpe", "unigram")


def _ids(tokenizer, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts)["input_ids"]


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_counted_texts_are_split_alike_and_give_the_same_numbers(kind: str, family: str) -> None:
    original, task = world.bundle(family, kind), world.task()
    edited = Recipe([TrimVocabulary()]).apply(original, task, Run())
    kept = edited.origin.vocabulary
    assert kept == tuple(sorted(kept)) and len(kept) < len(original.processor)
    assert len(edited.processor) == len(kept) == edited.model.get_input_embeddings().weight.shape[0]
    assert edited.model.config.vocab_size == len(kept)

    texts = [e["text"] for e in task.splits["train"]]
    old, new = _ids(original.processor, texts), _ids(edited.processor, texts)
    assert [[kept[i] for i in ids] for ids in new] == old
    rows = task.splits["train"][:6]
    before, after = world.outputs(original, rows), world.outputs(edited, rows)
    torch.testing.assert_close(
        after, before if family == "bert" else before[..., list(kept)], rtol=0, atol=1e-6
    )
    # the caller's tokenizer is as it was
    assert len(original.processor) > len(kept) and _ids(original.processor, texts) == old


@pytest.mark.parametrize("kind", KINDS)
def test_other_texts_are_split_finer_but_never_into_unknowns(kind: str) -> None:
    original, task = world.bundle("bert", kind), world.task()
    edited = Recipe([TrimVocabulary(size=_least(original, task))]).apply(original, task, Run())
    words, small = original.processor, edited.processor
    for example in task.splits["train"] + task.splits["verify"]:
        was, now = words(example["text"])["input_ids"], small(example["text"])["input_ids"]
        assert len(now) >= len(was)
        assert now.count(small.unk_token_id) == was.count(words.unk_token_id)
        assert small.decode(now, skip_special_tokens=True) == words.decode(was, skip_special_tokens=True)


def _least(bundle, task) -> int:
    """The smallest size there is, as the refusal tells it."""
    with pytest.raises(UserError, match="must stay") as refusal:
        TrimVocabulary(size=5).apply(bundle.copy(), task, Run())
    return int(str(refusal.value).split()[0])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kept_piece_comes_back_and_survives_saving(kind: str, tmp_path) -> None:
    from transformers import AutoTokenizer

    original, task = world.bundle("bert", kind), world.task()
    edited = Recipe([TrimVocabulary()]).apply(original, task, Run())
    names = original.processor.convert_ids_to_tokens(list(edited.origin.vocabulary))
    assert edited.processor.convert_ids_to_tokens(list(range(len(names)))) == names
    edited.processor.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    texts = [e["text"] for e in task.splits["verify"]]
    assert _ids(again, texts) == _ids(edited.processor, texts)
    assert again.pad_token_id == edited.processor.pad_token_id == names.index("[PAD]")
    assert {again.cls_token_id, again.sep_token_id} == {names.index("[CLS]"), names.index("[SEP]")}


def test_size_takes_the_most_frequent_and_multiple_rounds_up() -> None:
    original, task = world.bundle("bert"), world.task()
    counts = count(original.processor, texts_of(original, task, ("train",)), len(original.processor))
    least = _least(original, task)
    edited = Recipe([TrimVocabulary(size=least + 15)]).apply(original, task, Run())
    assert len(edited.origin.vocabulary) == least + 15
    base = Recipe([TrimVocabulary(size=least)]).apply(original, task, Run())
    chosen = set(edited.origin.vocabulary) - set(base.origin.vocabulary)
    rest = set(range(len(counts))) - set(edited.origin.vocabulary)
    assert min(counts[i] for i in chosen) >= max(counts[i] for i in rest)
    padded = Recipe([TrimVocabulary(size=least + 15, multiple=16)]).apply(original, task, Run())
    assert len(padded.origin.vocabulary) % 16 == 0 and set(padded.origin.vocabulary) > set(
        edited.origin.vocabulary
    )
    rare = Recipe([TrimVocabulary(min_count=4)]).apply(original, task, Run())
    assert len(rare.origin.vocabulary) < len(
        Recipe([TrimVocabulary()]).apply(original, task, Run()).origin.vocabulary
    )
    first = Recipe([TrimVocabulary(min_count=4, keep_first=120)]).apply(original, task, Run())
    assert set(range(120)) <= set(first.origin.vocabulary)


def test_only_the_characters_of_the_corpus() -> None:
    original = world.bundle("bert", "bpe")
    task = world.World(splits={"train": [{"text": "a cab a bad cab"}]}, fingerprint="abc")
    everything = Recipe([TrimVocabulary()]).apply(original, task, Run())
    few = Recipe([TrimVocabulary(characters="corpus")]).apply(original, task, Run())
    assert len(everything.origin.vocabulary) > 256 > len(few.origin.vocabulary)
    ids = few.processor("a bad cab")["input_ids"]
    assert [few.origin.vocabulary[i] for i in ids] == original.processor("a bad cab")["input_ids"]


def test_keeping_all_changes_nothing() -> None:
    original, task = world.bundle("bert"), world.task()
    same = Recipe([TrimVocabulary(min_count=0)]).apply(original, task, Run())
    assert same.processor is original.processor and same.origin.vocabulary is None
    assert torch.equal(world.outputs(same), world.outputs(original))


def test_rows_beyond_the_tokenizer_are_dropped() -> None:
    original, task = world.bundle("bert"), world.task()
    wide = replace(original, model=world.model("bert", len(original.processor) + 12))
    edited = Recipe([TrimVocabulary(min_count=0)]).apply(wide, task, Run())
    assert edited.model.get_input_embeddings().weight.shape[0] == len(original.processor)
    assert torch.equal(world.outputs(edited), world.outputs(wide))


def test_twice_follows_the_origin_and_special_ids_follow() -> None:
    original, task = world.bundle("llama", "bpe"), world.task()
    once = Recipe([TrimVocabulary()]).apply(original, task, Run())
    few = world.World(splits={"train": task.splits["train"][:5]}, fingerprint="few")
    twice = Recipe([TrimVocabulary()]).apply(once, few, Run())
    rows = original.model.get_input_embeddings().weight[list(twice.origin.vocabulary)]
    assert torch.equal(twice.model.get_input_embeddings().weight, rows)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        old, new = getattr(original.model.config, name), getattr(twice.model.config, name)
        assert twice.origin.vocabulary[new] == old


def test_positions_that_count_from_the_padding_id() -> None:
    original = world.bundle("bert")
    roberta = replace(original, model=world.model("roberta", len(original.processor)))
    roberta.processor.pad_token = "[UNK]"  # id 1, as in roberta
    edited = Recipe([TrimVocabulary()]).apply(roberta, world.task(), Run())
    assert edited.model.config.pad_token_id == edited.processor.pad_token_id == 1
    rows = world.task().splits["train"][:4]
    torch.testing.assert_close(world.outputs(edited, rows), world.outputs(roberta, rows), rtol=0, atol=1e-6)


def test_merges_stay_consistent() -> None:
    data = {
        "model": {
            "type": "BPE",
            "vocab": {t: i for i, t in enumerate(["a", "b", "c", "ab", "abc", "bc", "aa"])},
            "merges": [["a", "b"], "b c", ["ab", "c"], ["a", "a"]],
        },
        "added_tokens": [],
    }
    assert tokenizer_json.closure(data, [4]) == {4: {0, 1, 2, 3, 4}}  # by way of "ab", not of "bc"
    small = tokenizer_json.keep(data, [0, 1, 2, 3, 4])
    assert small["model"]["merges"] == [["a", "b"], ["ab", "c"]] and small["model"]["vocab"]["abc"] == 4
    assert len(data["model"]["merges"]) == 4
    ranks = {pair: i for i, pair in enumerate(tokenizer_json.merges(data))}
    assert tokenizer_json.derivation("aaa", ranks) == {"aaa"}  # merges do not lead there
    clip = {("a", "b</w>"): 0}
    assert tokenizer_json.derivation("ab</w>", clip, "</w>") == {"a", "b</w>", "ab</w>"}


def test_older_post_processors_are_renumbered() -> None:
    data = json.loads(world.tokenizer().backend_tokenizer.to_str())
    data["post_processor"] = {
        "type": "Sequence",
        "processors": [{"type": "RobertaProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}],
    }
    data["padding"] = {"pad_id": 3}
    small = tokenizer_json.keep(data, [0, 1, 2, 3, 9, 20])
    assert small["post_processor"]["processors"][0]["sep"] == ["[SEP]", 3]
    data["added_tokens"] = [t for t in data["added_tokens"] if t["id"] != 0]
    assert tokenizer_json.keep(data, [1, 2, 3, 9])["post_processor"]["processors"][0]["cls"] == ["[CLS]", 1]
    with pytest.raises(ModelError, match="special tokens must stay"):
        tokenizer_json.keep(data, [1, 2, 9])
    data["model"]["type"] = "WordLevel"
    with pytest.raises(ModelError, match="WordLevel"):
        tokenizer_json.check(data)


def test_words_pairs_and_prompts_are_counted() -> None:
    bundle = replace(world.bundle(), prompts={"query": "zebra: "})
    rows = [
        {"words": ["up", "down"]},
        {"text": "left", "text_pair": "right"},
        {"query": "in", "document": "out"},
    ]
    found = list(texts_of(bundle, world.World(splits={"train": rows}), ("train",)))
    assert found == ["up down", "left", "right", "in", "out", "zebra: "]
    counts = count(bundle.processor, found, len(bundle.processor))
    assert counts.sum() == sum(len(bundle.processor(t, add_special_tokens=False)["input_ids"]) for t in found)
    assert counts[[0, 2, 3]].sum() == 0 and counts.dtype == np.int64


def test_bad_input_is_refused() -> None:
    original, task = world.bundle(), world.task()
    for make, words in (
        (lambda: TrimVocabulary(size=0), "at least 1"),
        (lambda: TrimVocabulary(multiple=0), "at least"),
        (lambda: TrimVocabulary(characters="some"), "characters"),
    ):
        with pytest.raises(UserError, match=words):
            make()
    for step, data, kind, words in (
        (TrimVocabulary(size=10_000), task, UserError, "more than the"),
        (TrimVocabulary(splits=("nowhere",)), task, DataError, "no split"),
        (TrimVocabulary(), world.World(splits={"train": [{"text": ""}]}), DataError, "no token occurs"),
        (TrimVocabulary(), None, UserError, "task"),
    ):
        with pytest.raises(kind, match=words):
            step.apply(original.copy(), data, Run())

    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="fast tokenizer"):
        TrimVocabulary().apply(replace(original, processor=Slow()), task, Run())
    with pytest.raises(ModelError, match="special"):
        trimmed(original.processor, [4, 5, 6])
    # nothing was changed by any of them
    assert anatomy.get(original.model, "embeddings.word_embeddings").weight.shape[0] == len(
        original.processor
    )
