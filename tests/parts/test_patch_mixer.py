"""Mixers of patches, features and channels against loops; patches cut finer; the reconciliation heads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.patch_mixer import (
    ChannelMixer,
    Mixer,
    MixerBlock,
    Mixing,
    coarser,
    finer,
    per_channel,
)
from lightformers.parts.reconciliation import ChannelReconciliation, HierarchyReconciliation, patch_sums


def shaken(module: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return module.double().eval()


def line(mlp: nn.Module, gate: nn.Module | None, v: Tensor, gate_first: bool) -> Tensor:
    """One vector through MLP and gate, by the card's equations."""

    def linear(layer: nn.Module, x: Tensor) -> Tensor:
        return layer.weight @ x + layer.bias

    def gated(x: Tensor) -> Tensor:
        if gate is None:
            return x
        scores = linear(gate.linear, x)
        return x * scores.exp() / scores.exp().sum()

    def mixed(x: Tensor) -> Tensor:
        return linear(mlp.fc2, nn.functional.gelu(linear(mlp.fc1, x)))

    return mixed(gated(v)) if gate_first else gated(mixed(v))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("left", [True, False])
def test_mixer_is_its_equation(left: bool, gated: bool) -> None:
    mixer = shaken(Mixer(5 if left else 6, 6, Mixing(3, 0.0, gated), left))
    x = torch.randn(5, 2, 3, 6, dtype=torch.float64)
    y = nn.functional.layer_norm(x, (6,), mixer.norm.weight, mixer.norm.bias, 1e-5)
    wanted = x.clone()
    for batch in range(2):
        for channel in range(3):
            for place in range(6 if left else 5):
                at = (slice(None), batch, channel, place) if left else (place, batch, channel)
                wanted[at] += line(mixer.mlp, mixer.gate, y[at], False)
    assert torch.allclose(mixer(x), wanted, atol=1e-12)


@pytest.mark.parametrize("gated", [True, False])
def test_channel_mixer_gates_first(gated: bool) -> None:
    mixer = shaken(ChannelMixer(3, 6, Mixing(2, 0.0, gated)))
    x = torch.randn(4, 2, 3, 6, dtype=torch.float64)
    y = nn.functional.layer_norm(x, (6,), mixer.norm.weight, mixer.norm.bias, 1e-5)
    wanted = x.clone()
    for patch in range(4):
        for batch in range(2):
            for place in range(6):
                at = (patch, batch, slice(None), place)
                wanted[at] += line(mixer.mlp, mixer.gate, y[at], True)
    assert torch.allclose(mixer(x), wanted, atol=1e-12)


def test_layers_that_are_looked_at_or_replaced_are_called() -> None:
    mixer = shaken(Mixer(5, 6, Mixing(2, 0.0), True))
    x = torch.randn(5, 2, 3, 6, dtype=torch.float64)
    with torch.no_grad():
        wanted, seen = mixer(x), []
        handle = mixer.mlp.fc1.register_forward_hook(lambda layer, given, out: seen.append(out.shape))
        assert torch.allclose(mixer(x), wanted) and seen == [(10, 36)]
        handle.remove()
        mixer.mlp.fc2 = nn.Sequential(mixer.mlp.fc2)
        assert torch.allclose(mixer(x), wanted)


def test_batch_norm_counts_every_state() -> None:
    mixer = Mixer(5, 6, Mixing(2, 0.0, norm="batch"), True).double().train()
    x = 3 + 2 * torch.randn(5, 8, 3, 6, dtype=torch.float64)
    mixer(x)
    assert torch.allclose(mixer.norm.running_mean, 0.1 * x.mean((0, 1, 2)), atol=1e-12)


def test_a_single_patch_is_not_mixed() -> None:
    assert MixerBlock(1, 6, Mixing()).patches is None and MixerBlock(2, 6, Mixing()).patches is not None


def test_finer_keeps_the_order_of_a_view() -> None:
    """(batch, channels, n, d) viewed as (batch, channels, n f, d / f), as the official code does."""
    x = torch.randn(3, 2, 4, 8)
    views = x.permute(1, 2, 0, 3).reshape(2, 4, 12, 2)
    assert torch.equal(finer(x, 4), views.permute(2, 0, 1, 3)) and torch.equal(coarser(finer(x, 4), 4), x)
    assert torch.equal(per_channel(x), x.permute(1, 2, 0, 3).reshape(2, 4, 24))


def test_training_drops_and_evaluation_does_not() -> None:
    torch.manual_seed(0)
    block = MixerBlock(5, 6, Mixing(2, 0.5), channels=3)
    x = torch.randn(5, 2, 3, 6)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_every_parameter_of_a_block_gets_a_gradient() -> None:
    block = MixerBlock(5, 6, Mixing(2, 0.5), channels=3)
    block(torch.randn(5, 2, 3, 6)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())


def test_channel_reconciliation_is_its_equation() -> None:
    head = shaken(ChannelReconciliation(2, known=1, context=2))
    y, past, known = (torch.randn(3, n, c, dtype=torch.float64) for n, c in ((4, 2), (6, 3), (4, 1)))
    wanted = y.clone()
    for sample in range(3):
        every = torch.cat([past[sample, -2:], torch.cat([y, known], -1)[sample], torch.zeros(2, 3)], 0)
        for step in range(4):
            around = every[step : step + 5].T.flatten()
            scores = head.gate.linear.weight @ around + head.gate.linear.bias
            gated = around * scores.exp() / scores.exp().sum()
            wanted[sample, step] += head.linear.weight @ gated + head.linear.bias
    assert torch.allclose(head(y, past, known), wanted, atol=1e-12)


def test_a_context_of_none_reads_the_step_alone() -> None:
    head = shaken(ChannelReconciliation(2, context=0, gated=False))
    y = torch.randn(1, 4, 2, dtype=torch.float64)
    assert torch.allclose(head(y, y), y + y @ head.linear.weight.T + head.linear.bias)


def test_the_hierarchy_fuses_steps_and_sums_of_patches() -> None:
    head = HierarchyReconciliation(7, 6, 3)
    with torch.no_grad():
        head.fuse.weight.zero_()
        head.fuse.bias.zero_()
    y, features = torch.randn(2, 5, 6), torch.randn(2, 5, 7)
    steps, sums = head(y, features)
    assert torch.equal(steps, y) and sums.shape == (2, 5, 2)
    with torch.no_grad():
        head.fuse.weight[:, 3] = 1.0
    moved, _ = head(y, features)
    assert torch.allclose(moved[..., :3], y[..., :3] + sums[..., :1], atol=1e-6)
    values = torch.arange(12.0).reshape(1, 6, 2)
    assert patch_sums(values, 3).tolist() == [[[6.0, 9.0], [24.0, 27.0]]]


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UserError, match="multiple"):
        HierarchyReconciliation(7, 7, 3)
    with pytest.raises(UserError, match="nothing to reconcile"):
        ChannelReconciliation(0)
    with pytest.raises(UserError, match="norm is one of"):
        Mixing(norm="group")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="dropout"):
        Mixing(dropout=1.0)
