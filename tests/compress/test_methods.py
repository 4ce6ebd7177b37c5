"""The table of methods: every row comes to its size on every kind of model, or says why it cannot."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import methods_world
import pytest
import steps_world as world
import torch

from lightformers import anatomy, compress, manifest
from lightformers.bundle import Bundle
from lightformers.compress import methods, weights
from lightformers.compress.methods import METHODS, Method
from lightformers.errors import UserError
from lightformers.steps import Recipe, Run

NAMES = {m.name: m for m in METHODS}
#: (method, family) -> a word of the reason why it cannot do anything, or cannot come to half the size.
REFUSED = {
    ("pre-crmsnorm", "bert"): "post-norm",
    ("pre-crmsnorm", "bert-classifier"): "post-norm",
    ("pre-crmsnorm", "llama"): "no LayerNorm",
    ("pre-crmsnorm", "t5"): "no LayerNorm",
    ("teacher-intervention", "gpt2"): "in one",
    ("trim-vocabulary", "vit"): "tokenizer",
    ("prune-width", "t5"): "hidden size",
}
#: Half of the size cannot be had by cutting one of two equal halves.
UNREACHED = {("prune-heads", family): "attention" for family in methods_world.FAMILIES} | {
    (name, family): "feed-forwards"
    for name in ("prune-channels", "dsee")
    for family in ("bert", "bert-classifier", "gpt2", "vit")
}
LABELLED = ("bert-classifier", "gpt2", "llama", "vit")


@pytest.fixture(scope="module")
def bundles() -> dict[str, tuple[Bundle, Any]]:
    made = {family: world.bundle(family) for family in methods_world.FAMILIES}
    return {family: (bundle, methods_world.task(family, bundle)) for family, bundle in made.items()}


def applied(method: Method, bundle: Bundle, task: Any, ratio: float = 0.5) -> Bundle:
    run = Run(dtype="fp32", tokens=600, use_labels=method.needs_labels)
    return Recipe(method.make(ratio, bundle)).apply(bundle, task, run)


@pytest.mark.parametrize("family", methods_world.FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_method_on_family(
    name: str, family: str, bundles: dict[str, tuple[Bundle, Any]], tmp_path: Path
) -> None:
    method, (bundle, task) = NAMES[name], bundles[family]
    reason = method.refuses(bundle)
    if (name, family) in REFUSED:
        assert reason is not None and REFUSED[name, family] in reason
        return
    assert reason is None
    if (name, family) in UNREACHED:
        with pytest.raises(UserError, match=UNREACHED[name, family]):
            method.make(0.5, bundle)
        return
    if method.needs_labels and family not in LABELLED:
        assert "labels" in methods.applicable(bundle, task)[1][name]
        return
    before = {k: v.clone() for k, v in bundle.model.state_dict().items()}
    whole = weights.block_bytes(bundle.model)
    made = applied(method, bundle, task)
    assert all(torch.equal(v, before[k]) for k, v in bundle.model.state_dict().items())
    assert torch.isfinite(world.outputs(made)).all()
    left = weights.block_bytes(made.model) / whole
    if method.sized:
        assert left <= 0.5 * (1 + weights.TOLERANCE), left
    # what is claimed of the file is so
    assert (not anatomy.native_reasons(made.model)) or not method.native
    manifest.write_manifest(made, tmp_path)
    again = made.copy()
    again.model = manifest.build_from_manifest(tmp_path, made.model.config)
    torch.testing.assert_close(world.outputs(again), world.outputs(made))


@pytest.mark.parametrize("name", ["prune-heads", "prune-channels", "low-rank", "essential-sparsity", "obert"])
@pytest.mark.parametrize("family", ["bert", "vit"])
def test_sizes_are_met_from_both_sides(
    name: str, family: str, bundles: dict[str, tuple[Bundle, Any]]
) -> None:
    """At three quarters the blocks are not only small enough, but not needlessly small either."""
    bundle, task = bundles[family]
    made = applied(NAMES[name], bundle, task, 0.75)
    left = weights.block_bytes(made.model) / weights.block_bytes(bundle.model)
    assert 0.6 < left <= 0.75 * (1 + weights.TOLERANCE)


def test_recovery_follows_what_took_something_away_and_learnt_nothing() -> None:
    assert {m.name for m in METHODS if m.recovers} == {
        "drop-blocks", "prune-channels", "prune-heads", "prune-width", "minitron", "axformer", "essential-sparsity",
        "n-of-m", "obert", "low-rank", "greenformers",
    }  # fmt: skip


def test_names_are_known_once_and_asked_for_in_order() -> None:
    assert len(NAMES) == len(METHODS)
    assert [m.name for m in methods.named(["obert", "llm-int8", "obert"])] == ["obert", "llm-int8"]
    with pytest.raises(
        UserError, match=r"unknown method prune_heads; known methods: .*prune-heads.*llm-int8"
    ):
        methods.named(["prune_heads"])


def test_what_is_applicable_is_split_from_what_is_not(bundles: dict[str, tuple[Bundle, Any]]) -> None:
    for family, (bundle, task) in bundles.items():
        fit, reasons = methods.applicable(bundle, task)
        assert {m.name for m in fit} | set(reasons) == set(NAMES) and not {m.name for m in fit} & set(reasons)
        assert {name for name, f in REFUSED if f == family} <= set(reasons)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 1.5, math.nan])
def test_a_ratio_is_a_share(ratio: float, bundles: dict[str, tuple[Bundle, Any]]) -> None:
    with pytest.raises(UserError, match="ratio is the share"):
        NAMES["low-rank"].make(ratio, bundles["bert"][0])


@pytest.mark.parametrize(
    ("name", "ratio", "said"),
    [
        ("drop-blocks", 0.1, "whole blocks"),
        ("prune-channels", 0.3, "feed-forwards are"),
        ("llm-int8", 0.15, "8 bits"),
        ("llm-fp4", 0.05, "4 bits"),
        ("essential-sparsity", 0.02, "blocks"),
    ],
)
def test_sizes_out_of_reach_are_said_before_anything_is_cut(
    name: str, ratio: float, said: str, bundles: dict[str, tuple[Bundle, Any]]
) -> None:
    with pytest.raises(UserError, match=said):
        NAMES[name].make(ratio, bundles["bert"][0])


def test_an_edited_model_is_refused_where_plain_layers_are_needed(
    bundles: dict[str, tuple[Bundle, Any]],
) -> None:
    made = Recipe([compress.LLMInt8()]).apply(bundles["bert"][0], None, Run())
    reasons = methods.applicable(made)[1]
    assert "plain linear" in reasons["low-rank"] and "drop-blocks" not in reasons


def test_bytes_are_counted_as_stored(bundles: dict[str, tuple[Bundle, Any]]) -> None:
    bundle = bundles["bert"][0]
    held = weights.weights_of(bundle.model)
    assert (held.blocks, held.attention, held.ffn) == (
        4 * 4 * (4 * (32 * 32 + 32) + 2 * 32 * 64 + 96 + 4 * 32),
        4 * 4 * 4 * (32 * 32 + 32),
        4 * 4 * (2 * 32 * 64 + 96),
    )
    assert held.matrices == 4 * 4 * (4 * 32 * 32 + 2 * 32 * 64)
    assert held.share(0.75, held.ffn, "") == pytest.approx(1 - 0.25 * held.blocks / held.ffn)


def test_low_rank_shares_are_the_largest_that_fit() -> None:
    shapes = [(64, 64), (256, 64)]
    share = weights.low_rank_share(shapes, 0.5)

    def held(s: float) -> int:
        return sum(min(max(1, round(s * min(a, b))) * (a + b), a * b) for a, b in shapes)

    whole = sum(a * b for a, b in shapes)
    assert held(share) <= 0.5 * whole < held(share + 0.02)
    assert weights.largest(range(10), lambda n: n < 7) == 6
    assert weights.largest(range(10), lambda n: False) is None
    assert weights.blocks_that_fit(6, 0.5) == 3 and weights.blocks_that_fit(12, 0.7) == 9
