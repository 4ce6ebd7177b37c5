"""AxFormer: greedy removal by the loss, and attention to few keys."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import steps_world as world
import torch

from lightformers import anatomy
from lightformers.bundle import Batch, Bundle
from lightformers.compress import AxFormer
from lightformers.compress.prune import axformer, gates, hard_attention
from lightformers.errors import DataError, ModelError, UserError
from lightformers.steps import Recipe, Run

LABELS = Run(dtype="fp32", use_labels=True)


@dataclass
class Judged:
    """A task whose labels are what a clean model says."""

    clean: Bundle
    splits: dict[str, Any] = field(default_factory=dict)
    scored: int = 0

    def __post_init__(self) -> None:
        images = self.clean.task == "image-classification"
        self.splits = {"search": world.task("vit" if images else "bert").splits["verify"][:40]}

    def collate(self, bundle: Bundle, examples: Any, seed: int = 0) -> Batch:
        batch = bundle.collate(examples)
        with torch.no_grad():
            batch.targets["goal"] = self.clean.model(**batch.inputs).logits
        return batch

    def loss(self, outputs: Any, batch: Batch) -> torch.Tensor:
        self.scored += 1
        goal = batch.targets["goal"].softmax(-1)
        mask = batch.inputs.get("attention_mask")
        rows = -(goal * outputs["logits"].log_softmax(-1)).sum(-1)
        return (rows * mask).sum() / mask.sum() if rows.dim() == 2 and mask is not None else rows.mean()


def planted(family: str) -> tuple[Bundle, Bundle]:
    """(clean, spoilt): the spoilt one has a feed-forward in its last block, and two heads before it, that only do harm."""
    clean = world.bundle(family)
    spoilt = clean.copy()
    torch.manual_seed(1)
    for which, size in ((clean, 0.0), (spoilt, 0.6)):
        blocks = anatomy.of(which.model).blocks
        with torch.no_grad():
            weight, bias = anatomy.linear(which.model, blocks[3].feed_forward.down)  # type: ignore[union-attr]
            weight.copy_(size * torch.randn(weight.shape))
            if bias is not None:
                bias.zero_()
            weight, _ = anatomy.linear(which.model, blocks[2].attention.o)  # type: ignore[union-attr]
            weight[:, :16] = 3 * size * torch.randn(weight.shape[0], 16)
    return clean, spoilt


def at_random(bundle: Bundle, count: int, seed: int) -> Bundle:
    """As many elements of the same tree closed, drawn at random."""
    made = bundle.copy()
    where = gates.sites(made.model, False)
    switches = torch.nn.ModuleDict({n: axformer.Switch(len(g.mean)) for n, g in gates.make(where, 1.0, 0).items()})  # type: ignore[arg-type]  # fmt: skip
    every = [e for w in axformer.wholes(where) for e in (w, *axformer.parts(where, w, 4))]
    for element in random.Random(seed).sample(every, count):
        switches[element.gate].kept[list(element.units)] = False  # type: ignore[index, operator]
    axformer.cut(made, None, Run(), where, switches, 1, drop=False)
    return made


@pytest.mark.parametrize("family", ["bert-classifier", "gpt2", "llama", "vit"])
def test_what_does_harm_goes_and_the_loss_falls(family: str) -> None:
    clean, spoilt = planted(family)
    task = Judged(clean)
    events: list[dict[str, Any]] = []
    run = Run(dtype="fp32", use_labels=True, progress=events.append)
    made = Recipe([AxFormer(groups=4, skip=1e9)]).apply(spoilt, task, run)
    reached = [e["loss"] for e in events]
    batches = axformer.decision_batches(spoilt, task, run, 256)
    before, after = (axformer.mean_loss(b, task, batches) for b in (spoilt, made))
    assert reached == sorted(reached, reverse=True) and reached[0] <= before
    assert after < before and after == pytest.approx(reached[-1], abs=1e-4)
    assert made.parameters < spoilt.parameters
    # the same number of parts removed at random do worse on average
    chance = [axformer.mean_loss(at_random(spoilt, len(events), seed), task, batches) for seed in range(3)]
    assert after < sum(chance) / len(chance)
    # where no post-norm rescales what is left, all that was spoilt is gone
    gone = {e["removed"] for e in events}
    assert family != "llama" or gone >= {"ffn/3", "attention/2"}


@pytest.mark.parametrize("family", ["bert-classifier", "gpt2", "llama", "vit"])
def test_switched_off_is_cut_off(family: str) -> None:
    bundle = world.bundle(family)
    where = gates.sites(bundle.model, False)
    switches = torch.nn.ModuleDict({n: axformer.Switch(len(g.mean)) for n, g in gates.make(where, 1.0, 0).items()})  # type: ignore[arg-type]  # fmt: skip
    with torch.no_grad():
        switches["attention/1"].kept[0] = False
        switches["ffn/1"].kept[0] = False
        switches["heads/0"].kept[1] = False
        switches["neurons/3"].kept[:20] = False
    with gates.installed(bundle.model, where, switches):
        off = world.outputs(bundle).detach()
    drop = anatomy.of(bundle.model).final_norm is not None
    axformer.cut(bundle, None, Run(), where, switches, 1, drop=drop)
    torch.testing.assert_close(world.outputs(bundle), off, rtol=1e-4, atol=1e-5)
    assert len(anatomy.of(bundle.model).blocks) == (3 if drop else 4)


def test_order_and_thresholds() -> None:
    where = gates.sites(world.model("bert-classifier"), False)
    order = axformer.wholes(where)
    assert [e.place for e in order] == [3, 3, 2, 2, 1, 1, 0, 0]
    assert all(a.size >= b.size for a, b in zip(order[::2], order[1::2]))
    attention = next(e for e in order if e.gate == "attention/2")
    assert [e.units for e in axformer.parts(where, attention, 8)] == [(0,), (1,), (2,), (3,)]
    forward = next(e for e in order if e.gate == "ffn/2")
    pieces = [u for e in axformer.parts(where, forward, 5) for u in e.units]
    assert pieces == list(range(64))

    def outcome(step: AxFormer, cost: dict[str, float]) -> tuple[int, float]:
        """A made-up loss: 1 plus what each closed unit costs."""
        switches = torch.nn.ModuleDict({n: axformer.Switch(len(g.mean)) for n, g in gates.make(where, 1.0, 0).items()})  # type: ignore[arg-type]  # fmt: skip
        calls = [0]

        def loss() -> float:
            calls[0] += 1
            return 1 + sum(cost.get(n, 1.0) * int((~s.kept).sum()) for n, s in switches.items())  # type: ignore[operator, arg-type]

        level = axformer.greedy(step, where, switches, loss, Run())
        return calls[0], level

    # everything hurts a lot: only the wholes are tried
    assert outcome(AxFormer(skip=0.1), {}) == (1 + 8, 1.0)
    # a whole that hurts a little is opened up
    calls, level = outcome(AxFormer(skip=0.1, groups=4), {"ffn/3": 0.05})
    assert (calls, level) == (1 + 8 + 4, 1.0)
    # a tolerance lets it go
    assert outcome(AxFormer(tolerance=0.05, skip=0.1), {"ffn/3": 0.05}) == (1 + 8, pytest.approx(1.05))


def literal(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, keys: int, uniform: bool, sign: bool
) -> torch.Tensor:
    out = torch.zeros(len(q), v.shape[1])
    for t, query in enumerate(q):
        scores = [float(query @ key) / len(query) ** 0.5 for key in k]
        ranked = [sum((a >= 0) == (b >= 0) for a, b in zip(query, key)) for key in k] if sign else scores
        best = sorted(range(len(k)), key=lambda j: (-ranked[j], j))[:keys]
        weights = torch.tensor([1.0 if uniform else scores[j] for j in best])
        shares = weights / len(best) if uniform else weights.softmax(0)
        out[t] = sum(s * v[j] for s, j in zip(shares, best))
    return out


@pytest.mark.parametrize("keys", [1, 3, 50])
@pytest.mark.parametrize("weights", ["soft", "uniform"])
@pytest.mark.parametrize("match", ["score", "sign"])
def test_hard_attention_is_the_literal_one(keys: int, weights: str, match: str) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(5, 8), torch.randn(7, 8), torch.randn(7, 4)
    found = hard_attention.hard_attention(q[None, None], k[None, None], v[None, None], None, keys, weights, match)  # type: ignore[arg-type]  # fmt: skip
    torch.testing.assert_close(found[0, 0], literal(q, k, v, keys, weights == "uniform", match == "sign"))


def test_padding_is_never_selected_and_gradient_flows_through_kept_scores() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 4, 8, requires_grad=True) for _ in range(3))
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 2:] = torch.finfo(torch.float32).min
    out = hard_attention.hard_attention(q, k, v, mask, 3)
    short = hard_attention.hard_attention(q, k[:, :, :2], v[:, :, :2], None, 3)
    torch.testing.assert_close(out, short)
    out.square().sum().backward()
    assert not k.grad[:, :, 2:].any() and k.grad[:, :, :2].any()  # type: ignore[index]
    assert hard_attention.sign_matches(torch.tensor([[0.0, -1.0]]), torch.tensor([[2.0, -3.0]])).item() == 2.0


@pytest.mark.parametrize("family", ["bert-classifier", "gpt2", "llama", "vit"])
def test_all_keys_change_nothing_and_undoing_undoes(family: str) -> None:
    bundle = world.bundle(family)
    before = world.outputs(bundle).detach()
    undo = hard_attention.install(bundle.model, {1: 10_000})
    torch.testing.assert_close(world.outputs(bundle), before, rtol=1e-4, atol=1e-5)
    undo()
    undo = hard_attention.install(bundle.model, {3: 1})
    assert float((world.outputs(bundle) - before).detach().abs().max()) > 1e-4
    undo()
    assert torch.equal(world.outputs(bundle), before)


def test_layers_are_hardened_where_the_loss_does_not_mind() -> None:
    clean = world.bundle("bert-classifier")
    with torch.no_grad():  # the last block attends evenly, so nothing is lost by few keys; the first sharply
        for path in ("query", "key"):
            clean.model.get_submodule(f"bert.encoder.layer.3.attention.self.{path}").weight.zero_()
        clean.model.get_submodule("bert.encoder.layer.3.attention.output.dense").weight.mul_(1e-4)
    task = Judged(clean)
    events: list[dict[str, Any]] = []
    run = Run(dtype="fp32", use_labels=True, progress=events.append)
    made = Recipe([AxFormer(tolerance=1e-4, skip=1e-4, hard=True)]).apply(clean, task, run)
    keys = {e["block"]: e["keys"] for e in events if "block" in e}
    last = max(keys)
    assert keys[last] == 1 and torch.isfinite(world.outputs(made)).all()
    assert made.model.config._attn_implementation == hard_attention.NAME


def test_bad_input_is_refused_before_anything_changes() -> None:
    bundle = world.bundle("bert-classifier")
    task, before = Judged(bundle.copy()), world.outputs(bundle)
    with pytest.raises(UserError, match="tolerance"):
        AxFormer(tolerance=-0.1)
    with pytest.raises(DataError, match="labels"):
        AxFormer().apply(bundle, task, Run())
    with pytest.raises(UserError, match="task"):
        AxFormer().apply(bundle, None, LABELS)
    task.splits["search"] = []
    with pytest.raises(DataError, match="nothing to decide on"):
        AxFormer().apply(bundle, task, LABELS)
    with pytest.raises(UserError, match="at least one key"):
        hard_attention.install(bundle.model, {0: 0})
    with pytest.raises(ModelError, match="t5"):
        hard_attention.install(world.model("t5"), {0: 2})
    assert torch.equal(world.outputs(bundle), before)
