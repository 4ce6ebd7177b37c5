"""Sparse pre-training, dense fine-tuning: masks, what they hold, what is freed, what it would save."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import steps_world as world
import torch

sys.path.insert(0, str(Path(__file__).parent / "distill"))
import distill_models as small

from lightformers import anatomy
from lightformers.bundle import Batch
from lightformers.compress import SparsePretraining
from lightformers.compress.layers import linears
from lightformers.compress.prune import masks, spdf
from lightformers.errors import DataError, UserError
from lightformers.manifest import build_from_manifest, write_manifest
from lightformers.steps import Recipe, Run


class Language(small.World):
    """Sentences with their own loss, as a language model's task has it."""

    def loss(self, outputs: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
        if outputs["logits"].dim() == 2:
            return super().loss(outputs, batch)
        scored = mask[:, 1:] & mask[:, :-1]
        return torch.nn.functional.cross_entropy(
            outputs["logits"][:, :-1][scored].float(), ids[:, 1:][scored]
        )


@pytest.mark.parametrize("shape", [(7, 5), (1, 9), (16, 16)])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.75])
def test_counts_are_exact(shape: tuple[int, int], sparsity: float) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = spdf.random_mask(shape, sparsity, generator)
    assert int((~mask).sum()) == round(sparsity * shape[0] * shape[1])
    some = spdf.random_mask(shape, sparsity, generator, min_per_row=1)
    assert bool(some.any(1).all()) and int((~some).sum()) == round(sparsity * shape[0] * shape[1])


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5", "vit"])
def test_the_same_share_in_every_projection_and_part(family: str) -> None:
    model = world.model(family)
    chosen = spdf.random_masks(model, 0.75, seed=3)
    assert set(chosen) == set(linears(anatomy.of(model)))
    assert all(masks.sparsity({p: m}) == pytest.approx(0.75, abs=1e-3) for p, m in chosen.items())
    for block in anatomy.of(model).blocks:
        assert block.attention
        for piece in "qkv":
            path, rows = anatomy.rows(block.attention, piece)
            assert masks.sparsity({"": chosen[path][rows]}) == pytest.approx(0.75, abs=1e-3)
    again, other = (spdf.random_masks(model, 0.75, seed=s) for s in (3, 4))
    assert all(torch.equal(again[p], chosen[p]) for p in chosen)
    assert masks.overlap(chosen, other) == pytest.approx(0.25, abs=0.05)


def test_flops_and_sizes_of_the_paper() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        model = GPT2LMHeadModel(
            GPT2Config(n_layer=24, n_embd=2048, n_head=16, n_positions=2048, vocab_size=50257)
        )
    model.tie_weights()
    assert sum(p.numel() for p in model.parameters()) == 1_315_723_264
    assert sum(anatomy.linear(model, p)[0].numel() for p in linears(anatomy.of(model))) == 1_207_959_552
    dense, sparse = (spdf.flops_per_token(model, 2048, s) for s in (0.0, 0.75))
    assert (round(dense / 1e6, 1), round(sparse / 1e6, 1)) == (3024.4, 1212.5)
    assert dense / sparse == pytest.approx(2.49, abs=0.01)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_fresh_weights_have_the_papers_deviations(family: str) -> None:
    model = world.model(family)
    spdf.initialise(model)
    found = anatomy.of(model)
    outputs = {p for b in found.blocks for p in (b.attention.o, b.feed_forward.down)}  # type: ignore[union-attr]
    for path in linears(found):
        weight = anatomy.linear(model, path)[0].detach()
        deviation = 0.02 / 8**0.5 if path in outputs else 0.02
        # cutting a normal distribution at two deviations takes its deviation down to 0.88
        assert float(weight.std()) == pytest.approx(0.88 * deviation, rel=0.08)
        assert float(weight.abs().max()) <= 2 * deviation + 1e-6


@pytest.mark.parametrize("task", ["causal-lm", "masked-lm"])
def test_masked_weights_stay_zero_in_training_and_learn_afterwards(task: str) -> None:
    if task == "masked-lm":
        pytest.importorskip("transformers")
    bundle, data = small.bundle(task), Language(task)
    run = Run(tokens=1_500, dtype="fp32", seed=5)
    before = {
        p: w.detach().clone()
        for p, w in masks.weights(bundle.model, linears(anatomy.of(bundle.model))).items()
    }
    SparsePretraining(0.75, lr=3e-3, max_tokens=256).apply(bundle, data, run)
    chosen = spdf.random_masks(bundle.model, 0.75, seed=5)
    after = masks.weights(bundle.model, before)
    assert all(not after[p][~chosen[p]].any() for p in chosen)
    assert sum(float((after[p] - before[p])[chosen[p]].abs().max()) > 1e-4 for p in chosen) > len(chosen) / 2
    # the mask is dropped: dense training moves what was masked
    SparsePretraining(0.0, lr=1e-3, max_tokens=256).apply(bundle, data, run)
    assert all((masks.weights(bundle.model, [p])[p][~chosen[p]] != 0).float().mean() > 0.9 for p in chosen)


def test_the_mask_can_be_kept_and_the_loss_falls(tmp_path: Path) -> None:
    bundle, data = small.bundle("causal-lm"), Language("causal-lm")
    spdf.initialise(bundle.model)
    events: list[dict[str, float]] = []
    run = Run(tokens=6_000, dtype="fp32", progress=events.append)
    SparsePretraining(0.5, keep_mask=True, rescale=True, lr=5e-3, max_tokens=256).apply(bundle, data, run)
    assert events[-1]["loss"] < 4.0  # 65 symbols: it starts at 4.17
    SparsePretraining(0.0, lr=5e-3, max_tokens=256).apply(bundle, data, Run(tokens=500, dtype="fp32"))
    shown = masks.zeros(bundle.model, linears(anatomy.of(bundle.model)))
    assert masks.sparsity(shown) == pytest.approx(0.5, abs=1e-3)  # the kept mask holds through other training
    write_manifest(bundle, tmp_path)
    again = build_from_manifest(tmp_path, bundle.model.config)
    batch = bundle.collate([{"text": "w1 w2 w3"}])
    assert torch.equal(again(**batch.inputs).logits, bundle.model(**batch.inputs).logits)


def test_a_planted_dense_task_needs_the_freed_weights() -> None:
    """Fine-tuning all weights reaches a target that the mask forbids, from the same sparse start."""
    torch.manual_seed(0)
    goal, x = torch.randn(8, 16), torch.randn(256, 16)
    found = {}
    for freed in (True, False):
        layer = torch.nn.Linear(16, 8, bias=False)
        mask = spdf.random_mask((8, 16), 0.75, torch.Generator().manual_seed(0))
        with torch.no_grad():
            layer.weight.mul_(mask)
        if not freed:
            layer.weight.register_hook(lambda g, mask=mask: g * mask)
        updater = torch.optim.Adam(layer.parameters(), lr=0.05)
        for _ in range(150):
            updater.zero_grad()
            (layer(x) - x @ goal.T).square().mean().backward()
            updater.step()
        found[freed] = float((layer(x) - x @ goal.T).square().mean())
    assert found[True] < 1e-2 < found[False]


def test_bad_input_is_refused_before_anything_changes() -> None:
    for fields, word in (({"sparsity": 1.0}, "sparsity"), ({"sparsity": -0.1}, "sparsity"), ({"min_per_row": -1}, "min_per_row")):  # fmt: skip
        with pytest.raises(UserError, match=word):
            SparsePretraining(**fields)
    bundle = small.bundle("text-classification")
    before = {k: v.clone() for k, v in bundle.model.state_dict().items()}
    with pytest.raises(UserError, match="needs a task"):
        SparsePretraining().apply(bundle, None, Run())
    with pytest.raises(DataError, match="needs labels"):
        SparsePretraining().apply(bundle, Language("text-classification"), Run())
    with pytest.raises(UserError, match="more than a sparsity"):
        SparsePretraining(0.9, min_per_row=8).apply(
            bundle, Language("text-classification"), Run(use_labels=True)
        )
    assert all(torch.equal(v, before[k]) for k, v in bundle.model.state_dict().items())
    with pytest.warns(UserWarning, match="keep no weight"):
        SparsePretraining(0.99).apply(
            bundle, Language("text-classification"), Run(use_labels=True, tokens=50, dtype="fp32")
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        step = SparsePretraining(0.9, min_per_row=1)
        Recipe([step]).apply(small.bundle("text-classification"), Language("text-classification"), Run(use_labels=True, tokens=50, dtype="fp32"))  # fmt: skip
