"""Stochastic experts: each is a plain feed-forward, draws at every level, two passes that agree."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lightformers.bundle import Batch
from lightformers.errors import UserError
from lightformers.models.language.decoder import Decoder, DecoderConfig
from lightformers.parts.routing.thor import StochasticExperts, routed, stochastic
from lightformers.train import Settings, fit
from lightformers.train.consistency import TwoPasses, every_row, next_tokens, symmetric_kl


def plain(layer: StochasticExperts, expert: int, x: Tensor) -> Tensor:
    one = layer.experts[expert]
    return nn.functional.linear(
        nn.functional.linear(x, one.up.weight, one.up.bias).relu(), one.down.weight, one.down.bias
    )


def test_a_forced_expert_is_the_dense_layer_with_its_weights() -> None:
    torch.manual_seed(0)
    layer, x = StochasticExperts(8, hidden=12, experts=3).eval(), torch.randn(2, 5, 8)
    torch.testing.assert_close(layer(x), plain(layer, 0, x))
    for expert in range(3):
        with routed(layer, "batch", expert=expert):
            torch.testing.assert_close(layer(x), plain(layer, expert, x))
        torch.testing.assert_close(layer.dense(expert)(x), plain(layer, expert, x))
    with routed(layer, "mean"):
        torch.testing.assert_close(layer(x), sum(plain(layer, e, x) for e in range(3)) / 3)
    assert layer.choice is None
    torch.testing.assert_close(layer.dense().up.weight, sum(e.up.weight for e in layer.experts) / 3)


def test_sentences_keep_their_expert_for_a_whole_decoding_and_all_beams() -> None:
    torch.manual_seed(0)
    layer, x = StochasticExperts(8, experts=4).eval(), torch.randn(6, 5, 8)
    with routed(layer, "sentence", seed=1, sentences=6):
        drawn = layer.choice
        assert isinstance(drawn, Tensor) and len(drawn.unique()) > 1
        whole = layer(x)
        steps = torch.stack([layer(x[:, t]) for t in range(5)], 1)
        beams = layer(x.repeat_interleave(3, 0))
    torch.testing.assert_close(whole, torch.stack([plain(layer, int(e), r) for e, r in zip(drawn, x)]))
    torch.testing.assert_close(steps, whole)
    torch.testing.assert_close(beams[::3], whole)
    with routed(layer, "sentence", seed=1, sentences=6):
        assert torch.equal(layer(x), whole)
    with routed(layer, "sentence", sentences=4), pytest.raises(UserError, match="4 sentences"):
        layer(x)


def test_tokens_draw_anew() -> None:
    torch.manual_seed(0)
    layer, x = StochasticExperts(8, experts=2).eval(), torch.randn(4, 16, 8)
    both = torch.stack([plain(layer, e, x) for e in range(2)])
    with routed(layer, "token", seed=3):
        first, second = layer(x), layer(x)
    fits = torch.stack([(first - b).abs().amax(-1) < 1e-6 for b in both])
    assert fits.any(0).all() and 10 < int(fits[0].sum()) < 54  # every token has one of the two
    assert not torch.equal(first, second)
    with routed(layer, "token", seed=3):
        assert torch.equal(layer(x), first)


def test_draws_do_not_lose_gradients() -> None:
    layer, x = (
        StochasticExperts(8, experts=2).double(),
        torch.randn(4, 3, 8, dtype=torch.float64, requires_grad=True),
    )
    with routed(layer, "token", seed=0):
        out = layer(x)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
    layer.train()
    torch.manual_seed(0)
    seen = {
        min(range(2), key=lambda e: float((layer(x) - plain(layer, e, x)).detach().abs().max()))
        for _ in range(20)
    }
    assert seen == {0, 1}


def literal_kl(a: Tensor, b: Tensor) -> Tensor:
    p, q = a.softmax(-1), b.softmax(-1)
    return 0.5 * ((p * (p / q).log()).sum(-1) + (q * (q / p).log()).sum(-1))


def test_consistency_is_the_symmetric_kl() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 7, requires_grad=True), torch.randn(2, 3, 7, requires_grad=True)
    weight = torch.tensor([[1, 1, 0], [1, 0, 0]])
    wanted = (literal_kl(a, b) * weight).sum() / 3
    torch.testing.assert_close(symmetric_kl(a, b, weight), wanted)
    torch.testing.assert_close(symmetric_kl(a, b), literal_kl(a, b).mean())
    mine, theirs = (
        torch.autograd.grad(f, (a, b), retain_graph=True) for f in (symmetric_kl(a, b, weight), wanted)
    )
    for x, y in zip(mine, theirs):
        torch.testing.assert_close(x, y)
    far = torch.tensor([[1000.0, 0.0]])
    assert torch.isfinite(symmetric_kl(far, -far)) and symmetric_kl(a, a) == 0
    assert symmetric_kl(a, b, torch.zeros(2, 3)) == 0 and symmetric_kl(a[:0], b[:0]) == 0
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    counted = next_tokens(Batch({"attention_mask": mask}, {}))
    assert counted is not None and counted.tolist() == [[1, 1, 0, 0], [0, 1, 1, 0]]


class Classifier(nn.Module):
    def __init__(self, experts: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.layer = StochasticExperts(6, hidden=16, experts=experts, dropout=dropout)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(x + self.layer(x))}


def cross_entropy(outputs: dict, batch: Batch) -> Tensor:  # type: ignore[type-arg]
    return nn.functional.cross_entropy(outputs["logits"], batch.targets["y"])


def test_one_expert_without_dropout_is_twice_the_plain_loss() -> None:
    torch.manual_seed(0)
    model = Classifier(1).eval()
    batch = Batch({"x": torch.randn(5, 6)}, {"y": torch.tensor([0, 1, 2, 1, 0])})
    objective = TwoPasses(cross_entropy, 5.0, every_row)
    torch.testing.assert_close(objective(model, batch), 2 * cross_entropy(model(**batch.inputs), batch))


def test_passes_draw_from_the_position_and_leave_no_choice_behind() -> None:
    torch.manual_seed(0)
    model = Classifier(4)
    batches = [
        Batch({"x": torch.randn(5, 6)}, {"y": torch.tensor([0, 1, 2, 1, 0]), "position": i})
        for i in range(12)
    ]
    objective = TwoPasses(cross_entropy, 1.0, every_row)
    losses = [float(objective(model, b).detach()) for b in batches]
    assert (
        losses == [float(objective(model, b).detach()) for b in batches]
        and stochastic(model)[0].choice is None
    )
    at = [Batch(batches[0].inputs, batches[0].targets | {"position": i}) for i in range(12)]
    assert len({round(float(objective(model, b).detach()), 5) for b in at}) > 3


def test_experts_that_are_pulled_together_agree_more() -> None:
    """Planted: noisy labels, which experts apart would learn by heart, each its own way."""
    wins = 0
    for seed in range(3):
        torch.manual_seed(seed)
        x, y = torch.randn(48, 6), torch.randint(3, (48,))
        apart = Classifier(2)
        pulled = copy.deepcopy(apart)
        batch = [Batch({"x": x}, {"y": y})]
        probe, gaps = torch.randn(200, 6), []
        for model, alpha in ((apart, 0.0), (pulled, 5.0)):
            fit(
                model,
                batch,
                TwoPasses(cross_entropy, alpha, every_row),
                Settings(steps=60, lr=0.02, precision="fp32"),
            )
            with torch.no_grad():
                views = []
                for expert in range(2):
                    with routed(model, "batch", expert=expert):
                        views.append(model(probe)["logits"])
            gaps.append(float(symmetric_kl(*views)))
        wins += gaps[1] < 0.5 * gaps[0]
    assert wins == 3


def test_the_papers_counts() -> None:
    with torch.device("meta"):
        one, two = (StochasticExperts(512, hidden=1024, experts=n) for n in (1, 2))
    extra = sum(p.numel() for p in two.parameters()) - sum(p.numel() for p in one.parameters())
    assert extra == 1_050_112 and 6 * extra == 6_300_672


def test_bad_input_is_refused() -> None:
    with pytest.raises(UserError, match="at least one"):
        StochasticExperts(4, experts=0)
    with pytest.raises(UserError, match="alpha"):
        TwoPasses(cross_entropy, -1.0)
    layer = StochasticExperts(4)
    with pytest.raises(UserError, match="how many sentences"), routed(layer, "sentence"):
        pass
    with pytest.raises(UserError, match="no expert 2"), routed(layer, "batch", expert=2):
        pass
    model = Decoder(DecoderConfig(20, 8, [{"ffn": {"kind": "thor", "hidden": 8}}]))
    model.layers[0].gradient_checkpointing = True  # as transformers switches it on
    with pytest.raises(UserError, match="checkpointing"):
        TwoPasses(cross_entropy)(model, Batch({}, {}))
