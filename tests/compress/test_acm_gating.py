"""The chain of learners, and what its gate is taught: choices, draws and losses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightformers.compress.adaptive import gating
from lightformers.compress.adaptive.sites import by_sample, valid
from lightformers.parts.adaptive import AdaptiveModule


def chain(least: int = 0, activation: str = "gelu") -> AdaptiveModule:
    torch.manual_seed(0)
    part = AdaptiveModule(6, 5, learners=3, width=4, least=least, activation=activation)
    nn.init.normal_(part.bias)
    return part


def literal(part: AdaptiveModule, x: Tensor, count: int) -> Tensor:
    """The sum of the first learners, one by one."""
    out = torch.zeros(*x.shape[:-1], part.out_features)
    for n in range(count):
        units = slice(n * part.width, (n + 1) * part.width)
        inner = x @ part.first[units].T + part.bias[units]
        out = (
            out
            + (nn.functional.gelu(inner) if part.activation == "gelu" else inner) @ part.second[:, units].T
        )
    return out


@pytest.mark.parametrize(("least", "activation"), [(0, "gelu"), (1, "identity")])
def test_every_choice_is_a_sum_of_learners(least: int, activation: str) -> None:
    part, x = chain(least, activation), torch.randn(2, 7, 6)
    sums = part.partial_sums(x)
    assert sums.shape == (part.choices, 2, 7, 5) and part.choices == 4 - least
    for k in range(least, 4):  # the last learner takes part, too
        goal = literal(part, x, k)
        torch.testing.assert_close(part.run(x, torch.full((2, 7), k)), goal)
        torch.testing.assert_close(sums[k - least], goal)
        hard = nn.functional.one_hot(torch.full((2, 7), k - least), part.choices).float()
        torch.testing.assert_close(part.mixed(x, hard), goal)
    weights = torch.rand(2, 7, part.choices, requires_grad=True)
    whole = weights / weights.sum(-1, keepdim=True)
    expected = sum(whole[..., k - least, None] * literal(part, x, k) for k in range(least, 4))
    got = part.mixed(x, whole)
    torch.testing.assert_close(got, expected)
    grads = [torch.autograd.grad(o.square().sum(), [weights, part.first], retain_graph=True) for o in (got, expected)]  # fmt: skip
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_tokens_are_routed_one_by_one() -> None:
    part, x = chain(), torch.randn(3, 9, 6)
    count = torch.randint(0, 4, (3, 9))
    together = part.run(x, count)
    for b in range(3):
        for s in range(9):
            torch.testing.assert_close(together[b, s], literal(part, x[b, s], int(count[b, s])))
    assert torch.equal(part.run(x, torch.zeros(3, 9)), torch.zeros(3, 9, 5))
    nn.init.normal_(part.gate[4].weight, std=3.0)
    alone = torch.cat([part(x[b : b + 1]) for b in range(3)])
    torch.testing.assert_close(part(x), alone)  # a result does not depend on the batch
    assert part.count(x).unique().numel() > 1
    torch.testing.assert_close(part(x), part.run(x, part.gate(x).argmax(-1)))
    few = x[0][part.count(x[0]) < 2][
        None
    ]  # a graph traced where nobody needs the last learners still holds them
    traced = torch.jit.trace(part.eval(), few)
    torch.testing.assert_close(traced(x), part(x))


def test_a_gate_is_taught_the_first_choice_that_is_enough() -> None:
    error = torch.tensor([[9.0, 9.0, 1.0, 0.0, 4.0], [3.0, 8.5, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0, 0.0]])
    # 9/3 and 3/1 are worth it; 9/8.5 is not; equal errors stop at once; nought over nought stops; 4/0 goes on
    assert gating.enough(error).tolist() == [2, 0, 0, 0, 1]
    assert gating.enough(error, threshold=4.0).tolist() == [0, 0, 0, 0, 1]
    x, y = torch.randn(5, 6), torch.randn(5, 5)
    got = gating.errors(chain().partial_sums(x), y)
    torch.testing.assert_close(got[0], y.norm(dim=-1))
    assert got.shape == (4, 5)


def test_choices_are_drawn_by_their_probability_and_pass_gradients() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0]).repeat(20000, 1).requires_grad_()
    drawn = gating.straight_through(logits, 0.8, torch.Generator().manual_seed(0))
    assert set(drawn.detach().unique().round(decimals=5).tolist()) == {0.0, 1.0}
    torch.testing.assert_close(drawn.mean(0), torch.tensor([0.0, 1.0, 2.0]).softmax(0), atol=0.02, rtol=0)
    (drawn * torch.tensor([0.0, 1.0, 2.0])).sum().backward()
    assert logits.grad is not None and float(logits.grad[:, 2].sum()) > 0 > float(logits.grad[:, 0].sum())


def test_losses_count_no_padding_and_have_known_extremes() -> None:
    torch.manual_seed(0)
    weights = gating.one_hot(torch.randn(2, 6, 4))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    short = [weights[:1, :4], weights[1:]]
    share = torch.stack([s[0].mean(0) for s in short])
    entropy = -(share * (share + 1e-20).log()).sum(-1).mean() / torch.tensor(4.0).log()
    torch.testing.assert_close(gating.entropy_loss([weights], [mask]), -entropy)
    counts = gating.learners(weights, 0)
    torch.testing.assert_close(counts, weights.argmax(-1).float())
    mean = [c.argmax(-1).float().mean() / 3 for c in short]
    torch.testing.assert_close(gating.diversity_loss([counts], [mask], [3]), -(mean[0] - mean[1]).abs())
    used = sum(float(s.argmax(-1).sum()) for s in short) / 10 / 3
    assert float(gating.spent([counts], [mask], [7.0], [3])) == pytest.approx(used)
    both = gating.spent([counts, torch.full((2, 6), 3.0)], [mask, mask], [1.0, 3.0], [3, 3])
    assert float(both) == pytest.approx((used + 3) / 4)

    ones = torch.ones(2, 4)
    every = torch.eye(4).expand(2, 4, 4)
    assert float(gating.entropy_loss([every], [ones])) == pytest.approx(-1)
    assert float(gating.entropy_loss([every[:, :1].expand(2, 4, 4)], [ones])) == pytest.approx(0, abs=1e-6)
    halves = torch.tensor([[3.0] * 4, [0.0] * 4])
    assert float(gating.diversity_loss([halves], [ones], [3])) == pytest.approx(-1)
    states = torch.randn(2, 6, 3)
    assert torch.equal(valid(states, mask), valid(states.reshape(12, 3), mask))
    shaped, fitting = by_sample(states.reshape(12, 3), mask)
    assert torch.equal(shaped, states) and torch.equal(fitting, mask.float())
