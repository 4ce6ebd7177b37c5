"""RETRO: chunked cross-attention position by position, no token knows of later ones, generation as forward, a world in
which only the database knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightformers.errors import UserError
from lightformers.models.language.retro import Retro, RetroConfig, plus
from lightformers.models.language.retro_index import PAD
from lightformers.parts.attention.reading import CrossAttention


def made(**changed: Any) -> Retro:
    torch.manual_seed(0)
    fields = {
        "vocab_size": 13,
        "width": 16,
        "layers": 3,
        "heads": 2,
        "chunk": 4,
        "cross": (2, 3),
        "encoder_layers": 2,
    }
    model = Retro(RetroConfig(**(fields | changed))).double().eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return model


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 13, shape, generator=torch.Generator().manual_seed(seed))


def literal(model: Retro, ids: Tensor, neighbours: Tensor, first: int) -> Tensor:
    """Every chunk encoded by itself, every position attending by itself."""
    size = model.config.chunk
    starts = [0] + [first + i * size for i in range(neighbours.shape[1] - 1)]
    ends = [first + i * size for i in range(neighbours.shape[1])]
    x, memory = model.embedding(ids), None
    for layer in model.layers:
        x = x + layer.attention(layer.attention_norm(x))
        if layer.cross is not None:
            h = layer.cross_norm(x)
            if memory is None:
                memory = []
                for i, (a, b) in enumerate(zip(starts, ends)):
                    parts = []
                    for j in range(neighbours.shape[2]):
                        y = model.embedding(neighbours[:, i, j])
                        for part in model.encoder:
                            y = y + part.attention(part.attention_norm(y))
                            if part.cross is not None:
                                y = y + part.cross(part.cross_norm(y), h[:, a:b])
                            y = part.feed(y)
                        parts.append(model.encoder_norm(y))
                    memory.append(torch.cat(parts, 1))
            read = torch.zeros_like(x)
            for t in range(x.shape[1]):
                whole = [i for i, b in enumerate(ends) if b - 1 <= t]
                if whole:
                    read[:, t : t + 1] = layer.cross(h[:, t : t + 1], memory[whole[-1]])
            x = x + read
        x = layer.feed(x)
    return model.norm(x) @ model.embedding.weight.T


@pytest.mark.parametrize("n, first", [(12, None), (11, None), (14, 2), (9, 1), (4, None), (13, 3)])
def test_chunked_cross_attention_is_literal(n: int, first: int | None) -> None:
    model, ids = made(), drawn(2, n)
    near = drawn(2, model.chunks(n, first), 2, 8, seed=1)
    wanted = literal(model, ids, near, first or 4)
    assert torch.allclose(model(ids, near, first)["logits"], wanted, atol=1e-9)
    assert model.chunks(n, model.aligned(n)) == -(-n // 4), (
        "as Megatron counts them: the text ends with a chunk"
    )


def test_no_token_knows_later_ones_or_what_they_retrieved() -> None:
    model, ids = made(), drawn(1, 14)
    near = drawn(1, 3, 2, 8, seed=1)
    before = model(ids, near)["logits"]
    for j in (2, 3, 5, 11, 13):
        other = ids.clone()
        other[0, j] = (other[0, j] + 1) % 13
        after = model(other, near)["logits"]
        assert torch.allclose(after[:, :j], before[:, :j], atol=1e-12) and not torch.allclose(
            after[:, j], before[:, j]
        )
    for chunk in range(3):
        other = near.clone()
        other[0, chunk] = (other[0, chunk] + 1) % 13
        after, start = model(ids, other)["logits"], 4 * chunk + 3
        assert torch.allclose(after[:, :start], before[:, :start], atol=1e-12)
        assert not torch.allclose(after[:, start], before[:, start])


def test_missing_and_short_neighbours() -> None:
    model, ids = made(), drawn(2, 9)
    near = drawn(2, 2, 2, 6, seed=1)
    longer = torch.nn.functional.pad(near, (0, 3), value=PAD)
    assert torch.allclose(model(ids, longer)["logits"], model(ids, near)["logits"], atol=1e-10)
    more = torch.cat([near, torch.full((2, 2, 1, 6), PAD)], 2)
    assert torch.allclose(model(ids, more)["logits"], model(ids, near)["logits"], atol=1e-10)
    none = model(ids, torch.full((2, 2, 2, 6), PAD))["logits"]
    assert torch.isfinite(none).all()
    none.sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    short = drawn(2, 3)
    assert torch.equal(model(short, drawn(2, 0, 2, 6))["logits"], model(short)["logits"])
    with pytest.raises(UserError, match="nothing to read"):
        CrossAttention(8, 2, empty=False)(
            torch.zeros(1, 1, 8), torch.zeros(1, 2, 8), torch.zeros(1, 2, dtype=torch.bool)
        )


@pytest.mark.parametrize("first", [None, 2])
def test_generation_is_the_forward_again_and_again(first: int | None) -> None:
    model, ids = made(), drawn(2, 6)
    asked = []

    def retrieve(chunks: Tensor) -> Tensor:
        asked.append(chunks.shape[1])
        return ((chunks.sum(1)[:, None, None] + torch.arange(10).view(1, 2, 5)) * 7) % 13

    wanted = ids
    for _ in range(7):
        count, size = model.chunks(wanted.shape[1], first), first or 4
        cuts = [
            wanted[:, max(size + (i - 1) * 4, 0) : size + i * 4] if i else wanted[:, :size]
            for i in range(count)
        ]
        near = torch.stack([retrieve(c) for c in cuts], 1)
        wanted = torch.cat([wanted, model(wanted, near, first)["logits"][:, -1:].argmax(-1)], 1)
    asked.clear()
    assert torch.equal(model.generate(ids, retrieve, 7, first=first), wanted)
    assert asked == ([4] * 3 if first is None else [2, 4, 4])
    alone = model.generate(ids, None, 3)
    assert torch.equal(alone[:, 6:7], model(ids)["logits"][:, -1:].argmax(-1))
    a, b = (
        model.generate(ids, retrieve, 5, 1.0, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(a, b)


def test_every_parameter_learns() -> None:
    model = made()
    near = drawn(2, 2, 2, 6, seed=1)
    near[0, 0] = PAD
    model(drawn(2, 9), near)["logits"].square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0, name


def test_only_the_database_knows() -> None:
    """The first token of the next chunk is written in the neighbour: with it the loss falls, with another's it does not."""
    torch.manual_seed(0)
    model = Retro(RetroConfig(12, 32, 2, 2, 64, 4, 1, (2,)))
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    g = torch.Generator().manual_seed(0)

    def draw() -> tuple[Tensor, Tensor, Tensor]:
        value = torch.randint(0, 10, (32, 1), generator=g)
        return (
            torch.randint(0, 10, (32, 4), generator=g),
            value,
            torch.cat([value, value + 0], 1)[:, None, None],
        )

    for _ in range(50):
        ids, value, near = draw()
        loss = torch.nn.functional.cross_entropy(model(ids, near)["logits"][:, -1], value[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ids, value, near = draw()
    right = (model(ids, near)["logits"][:, -1].argmax(-1) == value[:, 0]).float().mean()
    wrong = (model(ids, near.roll(1, 0))["logits"][:, -1].argmax(-1) == value[:, 0]).float().mean()
    assert right > 0.9 and wrong < 0.4


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    model, ids, near = made().float(), drawn(1, 9), drawn(1, 2, 2, 6)
    model.save_pretrained(tmp_path)
    again = Retro.from_pretrained(tmp_path)
    assert again.config == model.config and torch.allclose(
        again(ids, near)["logits"], model(ids, near)["logits"], atol=1e-5
    )


def test_the_medium_size() -> None:
    """A GPT of 354 million with 6 cross-attentions and an encoder of two layers, the first with one more."""
    config = RetroConfig()
    assert config.cross == (9, 12, 15, 18, 21, 24) and RetroConfig(layers=12).cross == (6, 9, 12)
    assert RetroConfig(layers=4).cross == (4,)
    with torch.device("meta"):
        model = Retro(config)
    d = 1024
    block, cross = 12 * d * d + 13 * d, 4 * d * d + 4 * d + 2 * d
    wanted = 50257 * d + 24 * block + 6 * (cross + 2 * d) + 2 * block + cross + 2 * 2 * d
    assert sum(p.numel() for p in model.parameters()) == wanted


def test_retro_plus_puts_the_best_passage_first() -> None:
    model = made()
    passages = torch.tensor([[1, 2, 3, PAD], [4, 5, 6, 7], [8, 9, PAD, PAD]])
    ids, near = plus(torch.tensor([10, 11]), passages, lambda n: model.chunks(n, model.aligned(n)))
    assert ids.tolist() == [[1, 2, 3, 10, 11]] and near.shape == (1, 2, 2, 4)
    assert torch.equal(near[0, 0], passages[1:]) and torch.equal(near[0, 1], passages[1:])
    assert model(ids, near, model.aligned(5))["logits"].shape == (1, 5, 13)
    with pytest.raises(UserError, match="two passages"):
        plus(torch.tensor([1]), passages[:1], model.chunks)


def test_what_does_not_fit_is_refused() -> None:
    for changed, said in (
        ({"chunk": 1}, "at least 2 tokens"),
        ({"cross": (0,)}, "some of 1 to 3"),
        ({"layers": 0}, "at least 1"),
    ):
        with pytest.raises(UserError, match=said):
            made(**changed)
    model = made()
    with pytest.raises(UserError, match=r"here \(2, 2"):
        model(drawn(2, 9), drawn(2, 3, 2, 6))
    with pytest.raises(UserError, match="outside of 0 to 12"):
        model(drawn(1, 4), torch.full((1, 1, 1, 4), 13))
    with pytest.raises(UserError, match="first chunk has 1 to 4"):
        model(drawn(1, 9), None, 5)
