"""Mamba-2: the contract of a mixer, transformers' own as an oracle, counts of the paper, and what its state can hold."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from lightformers.errors import UserError
from lightformers.kernels.ssd import ssd
from lightformers.parts.gated_norm import GatedRMSNorm
from lightformers.parts.mixers.mamba2 import Mamba2
from lightformers.parts.mixers.table import MIXERS, make
from mixer_contract import check_causal, inputs, stepwise


@pytest.mark.parametrize("groups, chunk", [(1, 64), (2, 8)])
def test_contract(groups: int, chunk: int) -> None:
    torch.manual_seed(0)
    options = {"state": 5, "head": 4, "groups": groups, "chunk": chunk}
    check_causal(make(MIXERS, "mamba2", 8, layer=0, layers=2, **options), 8)


def oracle(groups: int) -> nn.Module:
    torch.manual_seed(0)
    config = Mamba2Config(
        hidden_size=16, state_size=8, num_heads=4, head_dim=8, n_groups=groups, chunk_size=32, num_hidden_layers=1,
        vocab_size=8,
    )  # fmt: skip
    if groups > 1 and not hasattr(Mamba2Mixer(config, 0).norm, "group_size"):
        config.n_groups = 1  # an older transformers norms over all groups at once, unlike the paper's code
    theirs = Mamba2Mixer(config, 0)
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return theirs


@pytest.mark.parametrize("n, groups", [(1, 1), (3, 2), (70, 2)])
def test_equals_transformers(n: int, groups: int) -> None:
    """Outputs and all gradients after its weights are loaded by name."""
    theirs = oracle(groups)
    mine = Mamba2(16, state=8, head=8, groups=theirs.n_groups, chunk=16)
    mine.load_state_dict(theirs.state_dict())
    x, weight = torch.randn(2, n, 16), torch.randn(2, n, 16)
    found, wanted = {}, {}
    for mixer, out in ((mine, found), (theirs, wanted)):
        leaf = x.clone().requires_grad_()
        y = mixer(leaf)
        (y * weight).sum().backward()
        out.update({name: p.grad for name, p in mixer.named_parameters()}, x=leaf.grad, y=y.detach())
    assert found.keys() == wanted.keys() and len(found) == 10
    for name, w in wanted.items():
        assert (found[name] - w).abs().max() <= 1e-4 * (1 + w.abs().max()), name


def test_norm_gates_first_and_norms_each_group() -> None:
    torch.manual_seed(0)
    norm, x, gate = GatedRMSNorm(12, 3, eps=0.0), torch.randn(5, 12), torch.randn(5, 12)
    y = norm(x, gate)
    assert torch.allclose(y.view(5, 3, 4).square().mean(-1), torch.ones(5, 3), atol=1e-5)
    assert torch.allclose(norm(x * torch.tensor([3.0, 5.0, 7.0]).repeat_interleave(4), gate), y, atol=1e-5)
    with pytest.raises(UserError, match="divide"):
        GatedRMSNorm(12, 5)


def test_parameters_of_a_layer_of_the_8b_hybrid() -> None:
    with torch.device("meta"):
        layer = Mamba2(4096, state=128, head=64, groups=8)
    assert sum(p.numel() for p in layer.parameters()) == 109_635_968


def test_decoding_costs_the_same_at_any_length() -> None:
    mixer = Mamba2(8, state=5, head=4).double()
    with torch.no_grad():
        for n in (1, 300):
            _, state = stepwise(mixer, inputs(8, n))
            assert {k: tuple(x.shape[1:]) for k, x in state.items()} == {
                "inputs": (3, 26),
                "states": (4, 5, 4),
            }
            assert all(x.untyped_storage().nbytes() <= 2 * 8 * 4 * 26 for x in state.values())


def test_a_state_holds_as_many_pairs_as_it_has_rows() -> None:
    """Why the hybrid has attention: pairs of key and value come back exactly up to N of them, and not beyond."""
    torch.manual_seed(0)
    rows = 16

    def missed(pairs: int) -> float:
        keys = (
            torch.nn.init.orthogonal_(torch.empty(pairs, rows)) if pairs <= rows else torch.randn(pairs, rows)
        )
        keys = nn.functional.normalize(keys, dim=1)
        values, still = torch.randn(pairs, 8), torch.zeros(1, 2 * pairs, 1)
        b = torch.cat([keys, torch.zeros(pairs, rows)])[None, :, None]
        c = torch.cat([torch.zeros(pairs, rows), keys])[None, :, None]
        x = torch.cat([values, torch.zeros(pairs, 8)])[None, :, None]
        y, _ = ssd(x, still, b, c)
        return float((y[0, pairs:, 0] - values).square().mean())

    assert missed(rows) < 1e-10
    assert missed(4 * rows) > 1


def test_bad_sizes_and_states_of_others_are_refused() -> None:
    for wrong in ({"head": 5}, {"groups": 3}, {"state": 0}, {"chunk": 0}, {"kernel": 0}):
        with pytest.raises(UserError):
            Mamba2(8, **{"head": 4, "state": 4, **wrong})
    mixer, other = Mamba2(8, head=4, state=4), Mamba2(8, head=8, state=4)
    with pytest.raises(UserError, match="not of this mixer"):
        mixer.step(torch.zeros(2, 8), other.begin(2, "cpu", torch.float32))
