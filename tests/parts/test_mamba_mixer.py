"""Mamba: the contract of a mixer, transformers' own as an oracle, counts of the paper, and what selection is for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer

from lightformers.errors import UserError
from lightformers.parts.mixers.mamba import Mamba, step_bias
from lightformers.parts.mixers.table import MIXERS, make
from mixer_contract import check_causal, inputs, stepwise


@pytest.mark.parametrize("selective", [True, False])
def test_contract(selective: bool) -> None:
    torch.manual_seed(0)
    check_causal(make(MIXERS, "mamba", 12, layer=1, layers=4, state=4, selective=selective), 12)


def test_other_sizes_keep_the_contract() -> None:
    torch.manual_seed(0)
    check_causal(Mamba(6, state=1, expand=1.5, kernel=1, rank=1), 6)


def oracle(width: int = 16) -> nn.Module:
    torch.manual_seed(0)
    config = MambaConfig(
        hidden_size=width, state_size=4, num_hidden_layers=1, vocab_size=8, use_mambapy=False
    )
    theirs = MambaMixer(config, 0)
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return theirs


@pytest.mark.parametrize("n", [1, 3, 70])
def test_equals_transformers(n: int) -> None:
    """Outputs and all gradients after its weights are loaded by name."""
    theirs, mine = oracle(), Mamba(16, state=4)
    mine.load_state_dict(theirs.state_dict())
    x = torch.randn(2, n, 16)
    weight = torch.randn(2, n, 16)
    found, wanted = {}, {}
    for mixer, out in ((mine, found), (theirs, wanted)):
        leaf = x.clone().requires_grad_()
        y = mixer(leaf)
        (y * weight).sum().backward()
        out.update({name: p.grad for name, p in mixer.named_parameters()}, x=leaf.grad, y=y.detach())
    assert found.keys() == wanted.keys() and len(found) == 11
    for name, w in wanted.items():
        assert (found[name] - w).abs().max() <= 1e-4 * (1 + w.abs().max()), name


def test_parameters_of_the_papers_smallest_model() -> None:
    """129,135,360: 24 layers with a norm each, one more norm, and a tied embedding of 50,280 rows."""
    with torch.device("meta"):
        layer = sum(p.numel() for p in Mamba(768, layers=24).parameters())
    assert 24 * (layer + 768) + 768 + 50280 * 768 == 129_135_360


def test_begins_as_the_paper_says() -> None:
    torch.manual_seed(0)
    mixer = Mamba(64, layers=1)
    steps = nn.functional.softplus(step_bias(10_000))
    assert 9.9e-4 < steps.min() < 2e-3 and 0.08 < steps.max() < 0.1001
    assert (steps < 0.01).float().mean() == pytest.approx(0.5, abs=0.03)  # log-uniform
    assert torch.allclose(mixer.A_log.exp()[3], torch.arange(1.0, 17)) and bool((mixer.D == 1).all())
    assert mixer.dt_proj.weight.abs().max() <= 4**-0.5 and mixer.A_log.no_decay
    torch.manual_seed(0)
    twin = Mamba(64, layers=16)
    assert torch.allclose(twin.out_proj.weight, mixer.out_proj.weight / 4)


def test_decoding_costs_the_same_at_any_length() -> None:
    """A state is of one size after one token and after three hundred, and holds nothing of the graph behind."""
    mixer = Mamba(8, state=4).double()
    with torch.no_grad():
        _, after_one = stepwise(mixer, inputs(8, 1))
        _, after_many = stepwise(mixer, inputs(8, 300))
    sizes = {name: (3, 16) if name == "inputs" else (4, 16) for name in after_one}
    for state in (after_one, after_many):
        assert {name: tuple(x.shape[1:]) for name, x in state.items()} == sizes
        assert all(x.untyped_storage().nbytes() <= 2 * 2 * 16 * 4 * 8 for x in state.values())


def latch(count: int, n: int = 24) -> tuple[Tensor, Tensor]:
    """A value, a mark and a 1 per token -> the value at the last marked token: what to keep depends on the content."""
    drawn = torch.Generator().manual_seed(0)
    value, marked = torch.randn(count, n, generator=drawn), torch.rand(count, n, generator=drawn) < 0.15
    marked[:, 0] = True
    at = torch.where(marked, torch.arange(n), 0).cummax(1).values
    return torch.stack([value, marked.float(), torch.ones(count, n)], -1), value.gather(1, at)


def test_selection_keeps_what_is_marked() -> None:
    """The paper's point: steps that depend on the content do it exactly, with a state of one number; no time-invariant
    linear system does, not the best of them."""
    mixer, ten = Mamba(3, state=1, kernel=1, rank=1), float(nn.functional.silu(torch.tensor(10.0)))
    with torch.no_grad():
        for p in mixer.parameters():
            p.zero_()
        mixer.conv1d.weight.fill_(1)
        for row, (column, value) in enumerate(((0, 1.0), (0, -1.0), (1, 10.0), (2, 10.0))):
            mixer.in_proj.weight[row, column] = value  # channels: the value, less it, the mark, a constant
        mixer.in_proj.weight[6:, 2] = 10  # gates that are open
        for row, channel in enumerate((2, 2, 3)):  # step and B by the mark, C constant
            mixer.x_proj.weight[row, channel] = 1 / ten
        mixer.dt_proj.weight.fill_(100)
        mixer.dt_proj.bias.fill_(-50)  # a step of 50 where it is marked, of 0 elsewhere
        mixer.out_proj.weight[0, :2] = torch.tensor([1.0, -1.0]) / ten / 50  # silu(v) - silu(-v) = v
        x, y = latch(200)
        found = mixer(x)[..., 0]
    assert (found - y).abs().max() < 1e-4
    lags = nn.functional.pad(x[..., :2], (0, 0, 23, 0)).unfold(1, 24, 1).flatten(2).flatten(0, 1)
    best = torch.linalg.lstsq(lags, y.flatten()[:, None]).solution
    assert (lags @ best - y.flatten()[:, None]).square().mean() > 0.3


def test_bad_sizes_and_states_of_others_are_refused() -> None:
    for wrong in ({"state": 0}, {"rank": 0}, {"expand": 0.01}, {"kernel": 0}):
        with pytest.raises(UserError):
            Mamba(8, **wrong)
    mixer, other = Mamba(8, state=4), Mamba(8, state=5)
    state = other.begin(2, "cpu", torch.float32)
    with pytest.raises(UserError, match="not of this mixer"):
        mixer.step(torch.zeros(2, 8), state)
    with pytest.raises(UserError, match="not of this mixer"):
        mixer.extend(torch.zeros(3, 1, 8), mixer.begin(2, "cpu", torch.float32))
    with pytest.raises(UserError, match="no option"):
        make(MIXERS, "mamba", 8, heads=2)
