"""Bytes to words to bytes: each stage alone, no leak, generation as one long forward, saving, sizes, refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lightformers.errors import UserError
from lightformers.models.language.hierarchical_autoregressive import (
    HierarchicalAutoregressive,
    HierarchicalConfig,
    targets,
)
from lightformers.models.language.words import END, PAD, SYMBOLS, WORD, stack, unfinished, words_of

TEXTS = ("Hello, world! Überallhin", "a b", "It is, " + "x" * 30)


def made(**changed: Any) -> HierarchicalAutoregressive:
    torch.manual_seed(0)
    fields = {"encoder": (8, 1, 2), "backbone": (16, 2, 2), "decoder": (8, 1, 2), "longest": 12}
    model = HierarchicalAutoregressive(HierarchicalConfig(**(fields | changed))).double().eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return model


def batch(*texts: str, longest: int = 12) -> torch.Tensor:
    return stack([words_of(t, longest) for t in texts or TEXTS])


def entered(model: HierarchicalAutoregressive, states: torch.Tensor) -> torch.Tensor:
    """(1, places, small) -> (1, wide), head by head where a query reads."""
    if model.config.connector == "vector":
        return states[:, 0] @ model.enter.map.weight.T
    r, parts = model.enter.read, []
    for head in range(2):
        at = slice(8 * head, 8 * head + 8)
        share = (states @ r.key.weight[at].T @ (r.query.weight[at] @ model.enter.query) / 8**0.5).softmax(-1)
        parts.append(torch.einsum("bm,bmw->bw", share, states @ r.value.weight[at].T))
    return torch.cat(parts, -1) @ r.out.weight.T


def spelled(model: HierarchicalAutoregressive, before: torch.Tensor, letters: torch.Tensor) -> torch.Tensor:
    """(1, wide), (1, bytes, spell) -> (1, bytes + 1, symbols)."""
    leave = model.leave
    if model.config.connector == "vector":
        x = torch.cat([(before @ leave.map.weight.T)[:, None], letters], 1)
        return model.say(model.decoder(x))
    x = torch.cat([leave.first.expand(1, 1, -1), letters], 1)
    for i, layer in enumerate(model.decoder.layers):
        x = layer(x + leave.maps[i](leave.values[i](leave.norms[i](before)))[:, None])
    return model.say(model.decoder.norm(x))


@pytest.mark.parametrize("connector", ["vector", "cross"])
def test_it_is_the_three_stages_word_by_word(connector: str) -> None:
    """The literal model: every word encoded alone, backbone over one text, every word spelled alone."""
    model, words = made(connector=connector), batch()
    logits = model(words)["logits"]
    for row, text in enumerate(TEXTS):
        pieces = words_of(text, 12)
        vectors = []
        for piece in pieces:
            x = model.read(torch.tensor([[WORD, *piece]]))
            states = model.encoder(x)
            vectors.append(entered(model, states))
        out = model.backbone(torch.stack(vectors, 1))
        for i, piece in enumerate(pieces):
            before = model.start[None] if i == 0 else out[:, i - 1]
            wanted = spelled(model, before, model.letters(torch.tensor([list(piece)])))[0]
            assert torch.allclose(logits[row, i, : len(piece) + 1], wanted, atol=1e-9)
        assert (logits[row, len(pieces) :] == 0).all()


def test_loss_counts_bytes_and_ends_of_words() -> None:
    model, words = made(), batch()
    said = model(words)["logits"].log_softmax(-1).detach()
    total = count = 0.0
    for row, text in enumerate(TEXTS):
        alone = 0.0
        for i, piece in enumerate(words_of(text, 12)):
            for j, symbol in enumerate([*piece, WORD]):
                alone -= float(said[row, i, j, symbol])
                count += 1
        assert math.isclose(alone, float(model.nats(words)[row]), rel_tol=1e-9)
        total += alone
    assert math.isclose(total / count, float(model.loss(words).detach()), rel_tol=1e-9)
    assert targets(torch.tensor([[END, PAD]])).tolist() == [[END, PAD, PAD]]


def test_nothing_is_known_before_it_is_said() -> None:
    model, words = made(connector="cross"), batch(TEXTS[0])
    before = model(words)["logits"]
    for i, j in ((1, 3), (0, 0), (2, 6)):
        other = words.clone()
        other[0, i, j] = 65 + (other[0, i, j] == 65)
        after = model(other)["logits"]
        assert torch.equal(after[0, :i], before[0, :i])
        assert torch.allclose(after[0, i, : j + 1], before[0, i, : j + 1], atol=1e-12)
        assert not torch.allclose(after[0, i, j + 1], before[0, i, j + 1])
        if i < 2:
            assert not torch.allclose(after[0, i + 1, 0], before[0, i + 1, 0])


def test_generation_is_the_forward_again_and_again() -> None:
    """Greedy with states against the whole text anew for every byte."""
    for text, connector in (
        ("", "vector"),
        ("Hello, wor", "vector"),
        ("a ", "vector"),
        ("Hello, wor", "cross"),
    ):
        model = made(connector=connector)
        with torch.no_grad():
            model.say.weight[WORD] += 0.3  # so that words end
        words, wanted = words_of(text, 12) or [b""], b""
        while len(wanted) < 12:
            if words[-1]:
                scores = model(stack([words]))["logits"][0, -1, len(words[-1])].clone()
            else:
                scores = model(stack([[*words[:-1], b"?"]]))["logits"][0, -1, 0].clone()
            if not words[-1] or unfinished(words[-1]):
                scores[WORD] = -torch.inf
            if words[-1]:
                scores[END] = -torch.inf
            symbol = WORD if len(words[-1]) == 12 else int(scores.argmax())
            if symbol == END:
                break
            if symbol == WORD:
                words.append(b"")
            else:
                words[-1] += bytes([symbol])
                wanted += bytes([symbol])
        assert model.generate(text, 12) == wanted


def test_sampling_follows_its_generator_and_closes_characters() -> None:
    model = made()
    drawn = [model.generate("x", 40, 1.0, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    with torch.no_grad():  # a model that says only the first byte of a long character, or ends
        model.say.weight.zero_()
        model.say.weight[:, 0] = 0
    forced = model._choose(
        torch.zeros(SYMBOLS).index_fill(0, torch.tensor([WORD]), 9.0), "€".encode()[:2], 0.0, None
    )
    assert forced != WORD


def test_it_learns_to_spell(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = HierarchicalAutoregressive(HierarchicalConfig((16, 1, 2), (16, 1, 2), (16, 1, 2), 12))
    words = stack([words_of("one two, three FourFive six.", 12)], end=True)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        loss = model.loss(words)
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert float(loss.detach()) < 0.2
    assert model.generate("one two, th", 30) == b"ree FourFive six."
    model.save_pretrained(tmp_path)
    again = HierarchicalAutoregressive.from_pretrained(tmp_path)
    assert again.config == model.config and torch.equal(again(words)["logits"], model(words)["logits"])


def test_half_precision_and_empty_texts() -> None:
    model = made().float()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(model.loss(batch()))
    assert model(stack([[], []]))["logits"].shape == (2, 0, 2, SYMBOLS)
    mixed = model(stack([[], words_of("a b", 12)]))["logits"]
    assert torch.allclose(mixed[1:], model(batch("a b"))["logits"], atol=1e-6)


def test_sizes_are_counted() -> None:
    with torch.device("meta"):
        model = HierarchicalAutoregressive(HierarchicalConfig())

    def part(width: int, layers: int, hidden: int) -> int:
        return layers * (4 * width**2 + 3 * width * hidden + 2 * width) + width

    wanted = 2 * part(64, 2, 168) + part(128, 4, 344) + 3 * SYMBOLS * 64 + 2 * 64 * 128 + 128
    assert sum(p.numel() for p in model.parameters()) == wanted


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"backbone is \(width, layers, heads\)"):
        made(backbone=(16, 2))
    with pytest.raises(UserError, match="at least one byte"):
        made(longest=0)
    with pytest.raises(UserError, match="connectors are vector, cross"):
        made(connector="string")
    model = made()
    with pytest.raises(UserError, match="at most 12 bytes"):
        model(batch("x" * 20, longest=20))
    with pytest.raises(UserError, match="fill their rows from the left"):
        model(torch.tensor([[[PAD, 65]]]))
    with pytest.raises(UserError, match="fill their rows from the left"):
        model(torch.tensor([[[PAD, PAD], [65, PAD]]]))
    with pytest.raises(UserError, match="at least one new byte"):
        model.generate("a", 0)
