"""Future token prediction: windows and weights literally, nothing but the state reaches the decoder, generation as
forward, a world whose states must hold what comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightformers.errors import UserError
from lightformers.models.language.ftp import IGNORED, FTPConfig, FutureTokenPrediction, ahead, discounted


def made(**changed: Any) -> FutureTokenPrediction:
    torch.manual_seed(0)
    fields = {
        "vocab_size": 11,
        "encoder": (16, 2, 2),
        "decoder": (16, 2, 2),
        "slots": 3,
        "ahead": 4,
        "hidden": 2,
    }
    model = FutureTokenPrediction(FTPConfig(**(fields | changed))).double().eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


def tokens(n: int = 9, seed: int = 1) -> Tensor:
    return torch.randint(0, 11, (2, n), generator=torch.Generator().manual_seed(seed))


def test_what_is_given_and_wanted() -> None:
    given, wanted = ahead(torch.tensor([[5, 6, 7, 8]]), 2)
    assert given[0].tolist() == [[5, 6], [6, 7], [7, 8], [8, 0]]
    assert wanted[0].tolist() == [[6, 7], [7, 8], [8, IGNORED], [IGNORED, IGNORED]]
    _, wanted = ahead(torch.tensor([[5, 6, 7, 8, 9, 1]]), 2, torch.tensor([[0, 1, 1, 2, 2, 0]]))
    none = [IGNORED, IGNORED]
    assert wanted[0].tolist() == [none, [7, IGNORED], none, [9, IGNORED], none, none]


def test_the_loss_is_the_literal_sum() -> None:
    """Position by position, token by token, each time from the state and the tokens of its window alone."""
    model, ids = made(discount=0.7), tokens()
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    states = model.encode(ids, mask)
    rows = []
    for b, n in ((0, 9), (1, 6)):
        for t in range(n - 1):
            total = weights = 0.0
            for k in range(min(4, n - 1 - t)):
                logits = model.tell(states[b, t][None], ids[b, t : t + k + 1][None])[0, -1]
                total = total - 0.7**k * logits.log_softmax(-1)[ids[b, t + 1 + k]]
                weights += 0.7**k
            rows.append(total / weights)
    assert torch.allclose(model.loss(ids, mask), torch.stack(rows).mean(), atol=1e-10)
    assert torch.allclose(
        model(ids)["logits"][0, 3], model.tell(model.encode(ids)[0, 3][None], ids[0, 3:4][None])[0, 0]
    )


def test_the_decoder_is_its_equations() -> None:
    model, state, given = made(), torch.randn(3, 16, dtype=torch.float64), tokens(4)[:1].expand(3, -1)
    memory = model.spread(state).view(3, 3, 16) + model.places
    x = model.embedding(given)
    for layer in model.tellers:
        x = x + layer.attention(layer.norms[0](x))
        q, c = layer.norms[1](x), layer.read
        heads = [
            f(s).unflatten(-1, (2, 8)).transpose(1, 2)
            for f, s in ((c.query, q), (c.key, memory), (c.value, memory))
        ]
        read = (heads[0] @ heads[1].mT / 8**0.5).softmax(-1) @ heads[2]
        x = x + c.out(read.transpose(1, 2).flatten(2))
        x = x + layer.feed_forward(layer.norms[2](x))
    assert torch.allclose(model.tell(state, given), model.tell_norm(x) @ model.embedding.weight.T, atol=1e-10)


def test_nothing_later_reaches_a_state() -> None:
    model, ids = made(), tokens()
    other = ids.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 11
    a, b = model(ids), model(other)
    assert torch.allclose(a["states"][:, :5], b["states"][:, :5], atol=1e-12)
    assert torch.allclose(a["logits"][:, :5], b["logits"][:, :5], atol=1e-12)
    assert not torch.allclose(a["states"][:, 5], b["states"][:, 5])
    packed = model.encode(ids, torch.tensor([[1] * 4 + [2] * 5] * 2))
    assert torch.allclose(packed[:, 4:], model.encode(ids[:, 4:]), atol=1e-10)


@pytest.mark.parametrize("stride", [1, 3])
def test_generation_is_the_forward_again_and_again(stride: int) -> None:
    model, ids = made(decoder=(8, 1, 2)), tokens(3)
    wanted = ids
    while wanted.shape[1] < 10:
        state, told = model.encode(wanted)[:, -1], wanted[:, -1:]
        for _ in range(min(stride, 10 - wanted.shape[1])):
            told = torch.cat([told, model.tell(state, told)[:, -1:].argmax(-1)], 1)
        wanted = torch.cat([wanted, told[:, 1:]], 1)
    assert torch.equal(model.generate(ids, 7, stride), wanted)
    a, b = (model.generate(ids, 5, stride, 1.0, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(a, b)


def test_a_share_of_the_positions_is_trained_on() -> None:
    model, ids = made(share=0.5), tokens(9)
    torch.manual_seed(3)
    drawn = [float(model.train().loss(ids).detach()) for _ in range(200)]
    whole = float(model.eval().loss(ids).detach())
    assert len(set(drawn)) > 100 and abs(sum(drawn) / 200 - whole) < 0.1 * whole
    assert float(discounted(torch.zeros(2, 3, 5), torch.full((2, 3), IGNORED), 0.5)) == 0


def test_states_hold_what_comes() -> None:
    """Texts are a key, two fillers, and the key again: a next-token model may forget it at the fillers' first, this one
    must not, and tells it three ahead from that state."""
    torch.manual_seed(0)
    model = FutureTokenPrediction(FTPConfig(8, (32, 1, 2), (32, 1, 2), 2, 3, 1.0, 1.0, 2))
    key = torch.arange(6).repeat(4)[:, None]
    ids = torch.cat([key, torch.full_like(key, 6), torch.full_like(key, 7), key], 1)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(70):
        optimizer.zero_grad()
        loss = model.loss(ids)
        loss.backward()
        optimizer.step()
    assert all(
        p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0
        for p in model.parameters()
    )
    told = model.tell(model.encode(ids)[:, 1], ids[:, 1:3])[:, -1].argmax(-1)
    assert torch.equal(told, key[:, 0])
    assert torch.equal(model.generate(ids[:, :1], 3, stride=3), ids)


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    for decoder in ((16, 2, 2), (8, 1, 2)):
        model = made(decoder=decoder).float()
        model.save_pretrained(tmp_path / str(decoder[0]))
        again = FutureTokenPrediction.from_pretrained(tmp_path / str(decoder[0]))
        assert again.config == model.config
        assert torch.allclose(again(tokens())["logits"], model(tokens())["logits"], atol=1e-6)


def test_sizes_are_counted() -> None:
    with torch.device("meta"):
        model = FutureTokenPrediction(FTPConfig())
    d = 768
    block = 12 * d * d + 13 * d
    wanted = (
        50257 * d + 12 * block + 2 * d + 12 * d * (d + 1) + 12 * d + 3 * (block + 4 * d * d + 6 * d) + 2 * d
    )
    assert sum(p.numel() for p in model.parameters()) == wanted


def test_what_does_not_fit_is_refused() -> None:
    for changed, said in (
        ({"discount": 0.0}, r"lie in \(0, 1\]"), ({"ahead": 0}, "at least 1"), ({"slots": 0}, "at least 1"),
        ({"decoder": (16, 1, 3)}, "do not divide"), ({"encoder": (16, 1)}, "encoder is"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            made(**changed)
    with pytest.raises(UserError, match="stride of 1 to 4"):
        made().generate(tokens(), 3, stride=5)
