"""The energy-based transformer: two streams as one long sequence, descent and its second derivatives, no leaks, a world
in which descent must find the token."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightformers.errors import UserError
from lightformers.models.language.ebwm import Diverging, EBWMConfig, EnergyBasedTransformer
from lightformers.parts.positions import turn, turns


def made(**changed: Any) -> EnergyBasedTransformer:
    torch.manual_seed(0)
    fields = {"vocab_size": 11, "width": 16, "layers": 2, "heads": 2, "step_size": 3.0, "start": "zeros"}
    model = EnergyBasedTransformer(EBWMConfig(**(fields | changed))).double()
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.4)
    return model


def tokens(n: int = 7, batch: int = 2) -> Tensor:
    return torch.randint(0, 11, (batch, n), generator=torch.Generator().manual_seed(1))


def literal_energy(model: EnergyBasedTransformer, ids: Tensor, shares: Tensor) -> Tensor:
    """One sequence of twice the length, one explicit mask, attention by the book."""
    n = ids.shape[1]
    x = torch.cat([model.embedding(ids), model.candidate(shares)], 1)
    place = torch.cat([torch.arange(n), torch.arange(n) + 1])[None]
    seen = torch.zeros(2 * n, 2 * n, dtype=torch.bool)
    for i in range(n):
        seen[i, : i + 1] = True
        seen[n + i, : i + 1] = True
        seen[n + i, n + i] = True
    for block in model.blocks:
        a = block.attention
        h = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * block.attention_norm.weight
        cos, sin = turns(place, a.size, 10000.0, x.dtype)
        q, k, v = (f(h).unflatten(-1, (a.heads, -1)).transpose(1, 2) for f in (a.query, a.key, a.value))
        scores = turn(q, cos, sin) @ turn(k, cos, sin).mT / math.sqrt(a.size)
        shared = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v
        x = x + a.out(shared.transpose(1, 2).flatten(2))
        h = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * block.forward_norm.weight
        x = x + block.feed_forward(h)
    x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * model.norm.weight
    return model.energy(x[:, n:])[..., 0]


@pytest.mark.parametrize("changed", [{}, {"through": True, "steps": 3}, {"counted": "last"}])
def test_two_streams_descent_and_second_derivatives_are_literal(changed: dict[str, Any]) -> None:
    model, ids = made(**changed), tokens()
    shares = torch.rand(2, 7, 11, dtype=torch.float64).softmax(-1)
    at = torch.arange(7)
    assert torch.allclose(
        model.judge(model.observe(ids), at, shares), literal_energy(model, ids, shares), atol=1e-10
    )
    model.loss(ids).backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    y, losses = torch.zeros(2, 7, 11, dtype=torch.float64), []
    for _ in range(model.config.steps):
        y = y if model.config.through and y.requires_grad else y.detach().requires_grad_()
        energy = literal_energy(model, ids, y.softmax(-1))
        y = y - model.step_size * torch.autograd.grad(energy.sum(), y, create_graph=True)[0]
        losses.append(torch.nn.functional.cross_entropy(y[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))
    (losses[-1] if model.config.counted == "last" else sum(losses) / len(losses)).backward()
    assert set(found) == {n for n, _ in model.named_parameters()}
    for name, p in model.named_parameters():
        assert torch.allclose(found[name], p.grad, atol=1e-9), name
        assert found[name].abs().sum() > 0, name


def test_candidates_see_no_later_token_and_no_other_candidate() -> None:
    model, ids = made(), tokens()
    other = ids.clone()
    other[:, 4:] = (other[:, 4:] + 3) % 11
    a, b = model(ids), model(other)
    assert torch.allclose(a["logits"][:, :4], b["logits"][:, :4], atol=1e-12)
    assert not torch.allclose(a["logits"][:, 4], b["logits"][:, 4])
    shares = torch.rand(2, 7, 11, dtype=torch.float64).softmax(-1)
    changed = shares.clone()
    changed[:, 3] = shares[:, 3].flip(-1)
    observed, at = model.observe(ids), torch.arange(7)
    x, y = model.judge(observed, at, shares), model.judge(observed, at, changed)
    assert torch.equal(x[:, [0, 1, 2, 4, 5, 6]], y[:, [0, 1, 2, 4, 5, 6]]) and not torch.allclose(
        x[:, 3], y[:, 3]
    )


def test_padding_and_documents_change_nothing() -> None:
    model, ids = made(), tokens(9)
    alone = model(ids[:, :4])["logits"], model(ids[:, 4:])["logits"]
    packed = model(ids, torch.tensor([[1] * 4 + [2] * 5] * 2))["logits"]
    assert torch.allclose(packed, torch.cat(alone, 1), atol=1e-10)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 0, 0]])
    padded = model(ids, mask)["logits"]
    assert torch.allclose(padded[0, 2:], model(ids[:1, 2:])["logits"][0], atol=1e-10)
    assert torch.allclose(padded[1, :7], model(ids[1:, :7])["logits"][0], atol=1e-10)
    two = model.loss(ids[:1, 2:]) * 6 + model.loss(ids[1:, :7]) * 6
    assert torch.allclose(model.loss(ids, mask), two / 12, atol=1e-10)


def test_generation_keeps_what_it_observed() -> None:
    model, ids = made(), tokens(3)
    wanted = ids
    for _ in range(5):
        wanted = torch.cat([wanted, model(wanted)["logits"][:, -1:].argmax(-1)], 1)
    assert torch.equal(model.generate(ids, 5), wanted)
    noisy = made(start="noise")
    drawn = [
        noisy.generate(ids, 4, tries=3, temperature=1.0, generator=torch.Generator().manual_seed(s))
        for s in (0, 0, 1)
    ]
    assert torch.equal(drawn[0], drawn[1]) and drawn[0].shape == (2, 7)
    assert not any(p.grad is not None for p in noisy.parameters())


def test_of_several_tries_the_lowest_energy_counts_and_descent_stops_by_itself() -> None:
    model, ids = made(start="noise", step_size=0.05), tokens(3)
    observed, at = model.observe(ids), torch.tensor([2])
    with torch.no_grad():
        short = model.descend(observed, at, 50, tolerance=1e9, generator=torch.Generator().manual_seed(0))
        full = model.descend(observed, at, 50, last=True, generator=torch.Generator().manual_seed(0))
    assert len(short.logits) == 1 and len(full.logits) == 50 and len(full.energies) == 51
    assert not full.logits[-1].requires_grad
    assert bool((full.energies[-1] < full.energies[0]).all()), "small steps go down"


def test_descent_learns_to_find_the_next_token() -> None:
    """The next token is always the last plus one: each trained step must bring it nearer, and true tokens lie lower."""
    torch.manual_seed(0)
    model = EnergyBasedTransformer(EBWMConfig(6, 16, 1, 2, steps=2, step_size=5.0))
    start = torch.randint(0, 6, (16, 1))
    ids = (start + torch.arange(6)) % 6
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        loss = model.loss(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        found = model.descend(model.observe(ids), torch.arange(6), 2)
        each = [
            float(torch.nn.functional.cross_entropy(y[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))
            for y in found.logits
        ]
        assert each[1] < each[0] and each[1] < 0.3
        seen = model.observe(ids)
        hot = torch.nn.functional.one_hot((ids + torch.arange(6)[:, None, None]) % 6, 6).float()
        energies = torch.stack([model.judge(seen, torch.arange(6), h) for h in hot])  # (6 tokens, batch, n)
    assert float((energies.argmin(0) == 1).float().mean()) > 0.9
    assert model.generate(torch.tensor([[2, 3]]), 4)[0].tolist() == [2, 3, 4, 5, 0, 1]


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    model = made(told=True).float()
    model.save_pretrained(tmp_path)
    again = EnergyBasedTransformer.from_pretrained(tmp_path)
    assert again.config == model.config
    assert torch.allclose(again(tokens())["logits"], model(tokens())["logits"], atol=1e-6)


def test_the_size_called_xxs() -> None:
    with torch.device("meta"):
        model = EnergyBasedTransformer(EBWMConfig())
    width, hidden, words = 384, 1024, 50277
    wanted = 2 * words * width + 6 * (4 * width**2 + 3 * width * hidden + 2 * width) + width + width + 1
    assert sum(p.numel() for p in model.parameters()) == wanted


def test_what_does_not_fit_is_refused() -> None:
    for changed, said in (
        ({"steps": 0}, "at least 1"), ({"step_size": 0.0}, "above 0"), ({"heads": 3}, "even sizes"), ({"start": "ones"}, "'noise' or 'zeros'"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            made(**changed)
    model = made()
    with pytest.raises(UserError, match="not one of the 11"):
        model(torch.tensor([[11]]))
    with pytest.raises(UserError, match="at least one step"):
        model(tokens(), steps=0)
    with torch.no_grad():
        model.energy.weight.fill_(float("inf"))
    with pytest.raises(Diverging, match="smaller step_size"):
        model(tokens())
