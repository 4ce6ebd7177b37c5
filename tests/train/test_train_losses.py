"""Every loss against a literal loop, with gradients and padding."""

import math

import pytest
import torch
from torch.nn import functional as F

from lightformers.train import losses

B, A, S, D = 3, 2, 5, 4
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])  # whole, padded right, padded left


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kl(p, q):
    return sum(a * (math.log(a) - torch.log(b)) for a, b in zip(p.tolist(), q))


def literal_relation(student, teacher, mask, causal):
    """1/(A n) sum over heads and valid tokens of KL(softmax(t) || softmax(s)), mean of the batch; by loops."""
    (sa, sb), (ta, tb) = student, teacher
    total = 0.0
    for b in range(len(mask)):
        valid = [i for i in range(mask.shape[1]) if mask[b, i]]
        one = 0.0
        for a in range(sa.shape[1]):
            for i in valid:
                keys = [j for j in valid if not causal or j <= i]
                s = torch.stack([(sa[b, a, i] * sb[b, a, j]).sum() / math.sqrt(sa.shape[-1]) for j in keys])
                t = torch.stack([(ta[b, a, i] * tb[b, a, j]).sum() / math.sqrt(ta.shape[-1]) for j in keys])
                one = one + kl(t.softmax(0), s.softmax(0))
        total = total + one / (sa.shape[1] * len(valid))
    return total / len(mask)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_and_value_relations_equal_the_loop(causal):
    own = [random(B, A, S, D, seed=i).requires_grad_() for i in range(3)]
    twin = [x.detach().clone().requires_grad_() for x in own]
    goal = [random(B, A, S, 6, seed=10 + i) for i in range(3)]  # another head size: each is scaled by its own
    fast = losses.attention_kl((own[0], own[1]), (goal[0], goal[1]), MASK, causal)
    fast = fast + losses.self_relation_kl(own[2], goal[2], MASK, causal)
    slow = literal_relation((twin[0], twin[1]), (goal[0], goal[1]), MASK, causal)
    slow = slow + literal_relation((twin[2], twin[2]), (goal[2], goal[2]), MASK, causal)
    torch.testing.assert_close(fast, slow)
    fast.backward()
    slow.backward()
    for a, b in zip(own, twin):
        torch.testing.assert_close(a.grad, b.grad)
        assert (a.grad[1, :, 3:] == 0).all() and (a.grad[2, :, :2] == 0).all()  # padding has no say


def test_what_stands_at_padding_changes_nothing():
    q, k, goal = random(B, A, S, D), random(B, A, S, D, seed=1), random(B, A, S, D, seed=2)
    first = losses.attention_kl((q, k), (goal, goal), MASK)
    dirty = [x.masked_fill(MASK[:, None, :, None] == 0, 1e4) for x in (q, k, goal)]
    torch.testing.assert_close(first, losses.attention_kl((dirty[0], dirty[1]), (dirty[2], dirty[2]), MASK))


def test_relations_of_equal_models_are_zero_and_directed():
    q, k = random(B, A, S, D), random(B, A, S, D, seed=1)
    assert losses.attention_kl((q, k), (q, k), MASK).item() == pytest.approx(0.0, abs=1e-6)
    there = losses.attention_kl((q, k), (k, k), MASK)
    back = losses.attention_kl((k, k), (q, k), MASK)
    assert there > 0 and not torch.isclose(there, back)


def test_unequal_heads_are_refused():
    with pytest.raises(ValueError, match="cannot be compared"):
        losses.self_relation_kl(random(B, 2, S, D), random(B, 4, S, D), MASK)


def test_relation_heads_cut_the_joined_width_anew():
    x = random(2, 4, S, 6)
    cut = losses.relation_heads(x, 3)
    joined = torch.cat([x[:, a] for a in range(4)], -1)
    for head in range(3):
        torch.testing.assert_close(cut[:, head], joined[..., 8 * head : 8 * head + 8])
    torch.testing.assert_close(losses.relation_heads(x, 4), x)
    with pytest.raises(ValueError, match="relation heads"):
        losses.relation_heads(x, 5)


def test_hidden_mse_equals_the_loop():
    s, t = random(B, S, D).requires_grad_(), random(B, S, D, seed=1)
    twin = s.detach().clone().requires_grad_()
    pairs = [(b, i) for b in range(B) for i in range(S) if MASK[b, i]]
    slow = sum(((twin[b, i] - t[b, i]) ** 2).mean() for b, i in pairs) / len(pairs)
    fast = losses.hidden_mse(s, t, MASK)
    torch.testing.assert_close(fast, slow)
    fast.backward()
    slow.backward()
    torch.testing.assert_close(s.grad, twin.grad)
    torch.testing.assert_close(losses.hidden_mse(s, t), (s - t).pow(2).mean())
    torch.testing.assert_close(
        losses.normalized_hidden_mse(3 * s, 3 * t, MASK), losses.normalized_hidden_mse(s, t, MASK)
    )
    with pytest.raises(ValueError, match="need a map"):
        losses.hidden_mse(s, random(B, S, D + 1))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_logits_losses_equal_the_loop(temperature):
    s, t = random(B, S, 4).requires_grad_(), random(B, S, 4, seed=1)
    twin = s.detach().clone().requires_grad_()
    rows = [(b, i) for b in range(B) for i in range(S) if MASK[b, i]]
    slow_kl = sum(
        kl((t[r] / temperature).softmax(0), (twin[r] / temperature).softmax(0)) for r in rows
    ) / len(rows)
    fast_kl = losses.logits_kl(s, t, temperature, MASK)
    torch.testing.assert_close(fast_kl, temperature**2 * slow_kl)
    soft = [(t[r] / temperature).softmax(0) for r in rows]
    slow_ce = sum(-(p * (twin[r] / temperature).log_softmax(0)).sum() for p, r in zip(soft, rows)) / len(rows)
    fast_ce = losses.soft_cross_entropy(s, t, temperature, MASK)
    torch.testing.assert_close(fast_ce, slow_ce)
    (fast_kl + fast_ce).backward()
    (temperature**2 * slow_kl + slow_ce).backward()
    torch.testing.assert_close(s.grad, twin.grad)
    assert (s.grad[1, 3:] == 0).all()


def test_logits_kl_without_weights_is_the_mean_of_rows():
    s, t = random(6, 4), random(6, 4, seed=1)
    torch.testing.assert_close(
        losses.logits_kl(s, t), sum(kl(t[i].softmax(0), s[i].softmax(0)) for i in range(6)) / 6
    )


def test_embedding_losses_equal_the_loop():
    s, t = random(B, D), random(B, D, seed=1)
    cosine = sum(1 - (s[i] @ t[i]) / (s[i].norm() * t[i].norm()) for i in range(B)) / B
    torch.testing.assert_close(losses.embedding_cosine(s, t), cosine)
    torch.testing.assert_close(
        losses.embedding_mse(s, t), sum(((s[i] - t[i]) ** 2).sum() for i in range(B)) / B
    )
    u, v = F.normalize(s, dim=-1), F.normalize(t, dim=-1)
    torch.testing.assert_close(losses.embedding_mse(u, v), 2 * losses.embedding_cosine(u, v))


def test_similarity_kl_equals_the_loop():
    s, t = F.normalize(random(5, D), dim=-1).requires_grad_(), F.normalize(random(5, 7, seed=1), dim=-1)
    twin, tau = s.detach().clone().requires_grad_(), 0.3
    slow = 0.0
    for i in range(5):
        others = [j for j in range(5) if j != i]
        a = torch.stack([twin[i] @ twin[j] / tau for j in others])
        b = torch.stack([t[i] @ t[j] / tau for j in others])
        slow = slow + kl(b.softmax(0), a.softmax(0)) / 5
    fast = losses.similarity_kl(s, t, temperature=tau)
    torch.testing.assert_close(fast, slow)
    fast.backward()
    slow.backward()
    torch.testing.assert_close(s.grad, twin.grad)
    few = losses.similarity_kl(s[:2], t[:2])
    assert few.item() == 0.0 and few.requires_grad


def test_similarity_kl_to_a_bank_equals_the_loop():
    s, t, bank = (F.normalize(random(n, D, seed=n), dim=-1) for n in (4, 4, 9))
    t = t.flip(0)
    rows = [kl((t[i] @ bank.T / 0.2).softmax(0), (s[i] @ bank.T / 0.2).softmax(0)) for i in range(4)]
    torch.testing.assert_close(losses.similarity_kl(s, t, bank, 0.2), sum(rows) / 4)
    assert losses.similarity_kl(t, t, bank).item() == pytest.approx(0.0, abs=1e-6)


def test_losses_are_finite_in_bf16_and_for_extreme_scores():
    q = (100 * random(B, A, S, D)).bfloat16().requires_grad_()
    loss = losses.attention_kl((q, q), (random(B, A, S, D, seed=4).bfloat16(),) * 2, MASK, causal=True)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(q.grad).all() and loss.dtype == torch.float32
