"""Another tokenizer: spelling, heuristics, the hypernetwork, the step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import steps_world as world
import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.compress import Recover, TrimVocabulary, ZeroShotTokenizer, new_rows
from lightformers.compress.spelling import Speller
from lightformers.compress.token_training import Training, lexical_loss, sample_vocabulary, train
from lightformers.errors import DataError, ModelError, UserError
from lightformers.parts.token_network import TokenNetwork
from lightformers.steps import Recipe, Run

KINDS = ("wordpiece", "bpe", "unigram")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = {}
    for kind in KINDS:
        for size in (200, 300):
            place = tmp_path_factory.mktemp(f"{kind}{size}")
            world.tokenizer(kind, size).save_pretrained(place)
            out[f"{kind}{size}"] = str(place)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_spelling_gives_the_text_back(kind: str) -> None:
    tokenizer = world.tokenizer(kind)
    speller = Speller(tokenizer)
    assert all(speller.spell(i) is None for i in tokenizer.all_special_ids)
    for text in world.TEXTS[:30]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        pieces = [speller.spell(i) for i in ids]
        if None in pieces:
            continue  # an unknown character
        said = b"".join(p for p in pieces if p is not None).decode()
        if kind == "wordpiece":
            assert said.replace(" ", "") == text.lower().replace(" ", "")
        else:
            assert said == text if kind == "bpe" else said.split() == text.split()


@pytest.mark.parametrize("kind", KINDS)
def test_splitting_its_own_tokens(kind: str) -> None:
    speller = Speller(world.tokenizer(kind))
    spelled = {i: speller.spell(i) for i in speller.names}
    own = [speller.split(s) == [i] for i, s in spelled.items() if s is not None]
    # a unigram piece may have a likelier path; two WordPiece tokens may be spelled alike ("," and "##,")
    assert np.mean(own) > (0.99 if kind == "bpe" else 0.8)
    for word in (b" parameters", b"xyz", "\u00e9".encode(), b"\xc3"):
        ids = speller.split(word)
        assert ids
        back = b"".join(speller.spell(i) or b"?" for i in ids)
        assert back == word or speller.tokenizer.unk_token_id in ids


def test_words_of_different_tokenizers_meet() -> None:
    a, b = (Speller(world.tokenizer(kind)) for kind in ("wordpiece", "bpe"))
    shared = new_rows.overlap(a, b)
    word = next(t for t in shared if a.names[t] == "the")
    assert b.names[shared[word]] == "\u0120the"
    middle = next(t for t in shared if a.names[t] == "##s")
    assert b.names[shared[middle]] == "s"
    table, cut = new_rows.surfaces(a, b, 2)
    assert table[word].tolist() == [shared[word], -1] and cut > 0 and table[0].tolist() == [-1, -1]


def test_means_and_sparsemax_are_literal() -> None:
    torch.manual_seed(0)
    source = torch.randn(9, 4)
    surface = torch.tensor([[3, -1, -1], [1, 2, 8]])
    want = torch.stack([source[3], (source[1] + source[2] + source[8]) / 3])
    torch.testing.assert_close(new_rows.mean_of_pieces(source, surface), want)
    torch.testing.assert_close(
        new_rows.sparsemax(torch.tensor([[1.0, 0.5, -1.0]])), torch.tensor([[0.75, 0.25, 0.0]])
    )
    scores = torch.randn(50, 7)
    found = new_rows.sparsemax(scores)
    torch.testing.assert_close(found.sum(-1), torch.ones(50))
    other = torch.softmax(torch.randn(50, 7), -1)  # no other point of the simplex is nearer
    assert (
        bool(((found - scores).norm(dim=-1) <= (other - scores).norm(dim=-1)).all())
        and float(found.min()) == 0
    )
    drawn = new_rows.at_random(source * 5 + 2, 20_000)
    torch.testing.assert_close(drawn.mean(0), (source * 5 + 2).mean(0), rtol=0.1, atol=0.1)


def test_neighbours_give_their_rows() -> None:
    random = np.random.default_rng(0)
    texts = []
    for _ in range(400):  # 0 and 1 keep the company of 4 and 5, 2 and 3 that of 6 and 7
        group = int(random.integers(2))
        texts.append(
            [
                int(random.integers(2)) + 2 * group,
                4 + 2 * group,
                int(random.integers(2)) + 2 * group,
                5 + 2 * group,
            ]
        )
    vectors = new_rows.cooccurrence(texts, 8, width=4, window=2)
    source = torch.eye(3)
    rows = new_rows.by_neighbours(source, {0: 0, 2: 1}, vectors, [1, 3])
    assert rows[0].argmax() == 0 and rows[1].argmax() == 1 and float(rows.max(-1).values.min()) > 0.8
    with pytest.raises(UserError, match="share no token"):
        new_rows.by_neighbours(source, {}, vectors, [1])
    with pytest.raises(UserError, match="no text"):
        new_rows.cooccurrence([[1]], 8)


def test_sampled_vocabularies() -> None:
    one, again, other = (
        dict(sample_vocabulary(world.TEXTS, 400, np.random.default_rng(s))) for s in (0, 0, 5)
    )
    assert one == again and len(one) == 400 and one.keys() != other.keys()
    assert sum(len(p) == 1 for p in one) >= 256 and max(map(len, one)) <= 16
    assert all(math.isfinite(v) and v <= 0.7 for v in one.values())


def test_the_network() -> None:
    torch.manual_seed(0)
    source = torch.randn(60, 8) * torch.linspace(0.5, 3, 8) + 1
    network = TokenNetwork(source, pieces=3, hidden=32, layers=2, heads=2).eval()
    surface = torch.tensor([[5, -1, -1], [5, 7, -1], [7, 5, -1], [9, 9, 9]])
    made = network(surface)
    torch.testing.assert_close(network(surface[1:2]), made[1:2], rtol=1e-4, atol=1e-5)  # tokens do not meet
    assert not torch.allclose(made[1], made[2], atol=1e-3)  # order counts
    own = network(torch.nn.functional.pad(torch.arange(60)[:, None], (0, 2), value=-1))
    torch.testing.assert_close(own.mean(0), source.mean(0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(own.std(0), source.std(0), rtol=1e-3, atol=1e-3)
    loss = lexical_loss(network, made, surface)
    torch.testing.assert_close(loss, (made[0] - source[5]).square().sum() / source.norm(dim=1).mean())
    made.sum().backward()
    assert all(p.grad is not None for p in network.parameters()) and "source" not in network.state_dict()


def test_warm_up_learns_the_models_own_rows() -> None:
    bundle, rows = world.bundle("gpt2", "bpe"), []
    before = {k: v.clone() for k, v in bundle.model.state_dict().items()}
    for steps in (1, 150):
        training = Training(
            pieces=3, hidden=64, layers=1, warm_steps=steps, steps=1, vocabulary=300, lr=3e-3, batch=2, pool=8
        )
        network = train(bundle, world.TEXTS, training, Run(dtype="fp32"))
        surface = torch.nn.functional.pad(torch.arange(4, 300)[:, None], (0, 2), value=-1)
        with torch.no_grad():
            rows.append(
                float((network(surface) - network.source[4:300]).square().mean() / network.source.var())
            )
    assert rows[1] < 0.6 * rows[0]
    after = bundle.model.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    assert all(p.requires_grad and p.grad is None for p in bundle.model.parameters())


@pytest.mark.parametrize("rows", ["mean", "lexical", "focus"])
@pytest.mark.parametrize("family", ["bert", "bert-classifier", "gpt2", "llama", "t5"])
def test_its_own_tokenizer_changes_nothing(family: str, rows: str, tmp_path: Path) -> None:
    original = world.bundle(family)
    original.processor.save_pretrained(tmp_path)  # training one anew would number its pieces otherwise
    edited = Recipe([ZeroShotTokenizer(str(tmp_path), rows)]).apply(original, world.task(), Run())  # type: ignore[arg-type]
    torch.testing.assert_close(world.outputs(edited), world.outputs(original))
    assert not anatomy.native_reasons(edited.model) and edited.processor is not original.processor


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5"])
def test_another_kind_and_size(family: str, folders: dict[str, str]) -> None:
    original = world.bundle(family)
    edited = Recipe([ZeroShotTokenizer(folders["bpe200"], "mean")]).apply(original)
    words = anatomy.get(edited.model, anatomy.of(edited.model).embeddings or "").weight
    assert len(words) == len(edited.processor) == edited.model.config.vocab_size != len(original.processor)
    source = anatomy.get(original.model, anatomy.of(original.model).embeddings or "").weight
    new, old = edited.processor, original.processor
    assert torch.equal(words[new.pad_token_id], source[old.pad_token_id])
    assert torch.equal(
        words[new.convert_tokens_to_ids("\u0120the")], source[old.convert_tokens_to_ids("the")]
    )
    assert anatomy.of(edited.model).tied == anatomy.of(original.model).tied
    if family == "llama":
        heads = [m.lm_head.weight for m in (edited.model, original.model)]
        assert torch.equal(
            heads[0][new.convert_tokens_to_ids("\u0120the")], heads[1][old.convert_tokens_to_ids("the")]
        )
    out = world.outputs(edited)
    assert torch.isfinite(out).all()
    out.square().sum().backward()
    trimmed = Recipe([TrimVocabulary(min_count=0, size=len(new) - 5)]).apply(edited, _task(), Run())
    with pytest.raises(ModelError, match="another tokenizer"):
        Recover().apply(trimmed, _task(), Run(teacher=original, tokens=10))


class Task(world.World):
    def training_examples(self, use_labels: bool) -> list[dict[str, Any]]:
        return self.splits["train"]


def _task() -> Task:
    return Task()


def per_byte(bundle: Bundle, texts: list[str]) -> float:
    nats, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([bundle.processor(text, add_special_tokens=False)["input_ids"]])
        if ids.shape[1] > 1:
            with torch.no_grad():
                logits = bundle.model(input_ids=ids).logits[0, :-1]
            nats += float(nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
            count += len(text)
    return nats / count


@pytest.mark.slow
def test_pieces_and_the_network_beat_random_rows(folders: dict[str, str]) -> None:
    """A decoder that has learnt some texts by heart, given a tokenizer it has never seen."""
    bundle, texts = world.bundle("gpt2", "bpe"), world.TEXTS[:30]
    optimizer = torch.optim.Adam(bundle.model.parameters(), lr=5e-3)
    batch = bundle.processor(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    for _ in range(80):
        logits: Tensor = bundle.model(input_ids=ids, attention_mask=mask.long()).logits[:, :-1]
        loss = nn.functional.cross_entropy(logits[mask[:, 1:]], ids[:, 1:][mask[:, 1:]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    small: dict[str, Any] = {
        "pieces": 4,
        "hidden": 64,
        "layers": 1,
        "warm_steps": 60,
        "steps": 25,
        "vocabulary": 350,
    }
    task = Task(splits={"train": [{"text": t} for t in texts], "verify": []})
    lost = {}
    for rows in ("lexical", "mean", "network"):
        step = ZeroShotTokenizer(folders["unigram200"], rows, lr=3e-3, **small)  # type: ignore[arg-type]
        lost[rows] = per_byte(Recipe([step]).apply(bundle, task, Run(dtype="fp32")), texts)
    assert lost["mean"] < 0.97 * lost["lexical"] and lost["network"] < 0.97 * lost["lexical"], lost


def test_bad_input_is_refused_untouched(folders: dict[str, str], tmp_path: Path) -> None:
    place = folders["bpe300"]
    for fields, word in (
        ({"tokenizer": ""}, "folder"), ({"rows": "best"}, "rows"), ({"vocabulary": 100}, "bytes"), ({"steps": 0}, "steps"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=word):
            ZeroShotTokenizer(**{"tokenizer": place, **fields})  # type: ignore[arg-type]
    bundle = world.bundle("gpt2")
    before = {k: v.clone() for k, v in bundle.model.state_dict().items()}
    run = Run(dtype="fp32")
    for where in (str(tmp_path / "none"), str(tmp_path)):
        with pytest.raises(UserError, match="tokenizer"):
            ZeroShotTokenizer(where, "mean").apply(bundle, None, run)
    with pytest.raises(UserError, match="task"):
        ZeroShotTokenizer(place).apply(bundle, None, run)
    with pytest.raises(ModelError, match="causal language model"):
        ZeroShotTokenizer(place).apply(world.bundle("bert"), _task(), run)
    empty = Task(splits={"train": [{"text": ""}], "verify": []})
    with pytest.raises(DataError, match="no texts"):
        ZeroShotTokenizer(place).apply(bundle, empty, run)
    bundle.model.config.eos_token_id = 77
    with pytest.raises(ModelError, match="eos_token_id"):
        ZeroShotTokenizer(place, "mean").apply(bundle, None, run)
    with pytest.raises(ModelError, match="fast tokenizer"):
        ZeroShotTokenizer(place, "mean").apply(world.bundle("vit"), None, run)
    assert all(torch.equal(v, before[k]) for k, v in bundle.model.state_dict().items())
