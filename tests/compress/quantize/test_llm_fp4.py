"""LLM-FP4: the paper's quantizer, its searches, and the step."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import steps_world as world
import torch
from torch import Tensor

from lightformers import anatomy, manifest
from lightformers.compress import FloatQuantize
from lightformers.compress.quantize import llm_fp4, lookup
from lightformers.compress.quantize.formats import relative_error
from lightformers.compress.quantize.observers import Range, Rows, observe
from lightformers.errors import ModelError, UserError
from lightformers.parts.number_formats import number_format
from lightformers.parts.packed_layers import PackedEmbedding, PackedLinear
from lightformers.steps import Recipe, Run

QUIET = Run(dtype="fp32")
QUICK = {"candidates": 6, "rounds": 1, "rows": 64}


def literal(x: float, exponent: int, mantissa: int, bias: float) -> float:
    """The paper's equations for one number."""
    top = (2 - 2.0**-mantissa) * 2 ** (2**exponent - 1 - bias)
    x = max(-top, min(top, x))
    floor = math.floor(math.log2(abs(x)) + bias) if x else -1000
    scale = 2 ** (max(floor, 1) - mantissa - bias)
    return scale * round(x / scale)


@pytest.mark.parametrize("name", ["e2m1", "e1m2", "e3m0", "e3m4", "e4m3"])
@pytest.mark.parametrize("bias", [-3.7, 0.0, 1.0, 6.9])
def test_quantizer_is_the_papers(name: str, bias: float) -> None:
    torch.manual_seed(0)
    form = number_format(name)
    x = torch.randn(200) * 2 ** (2 - bias)
    expected = torch.tensor([literal(float(v), form.exponent, form.mantissa, bias) for v in x])
    found = llm_fp4.quantize(x, torch.tensor(bias), form)
    # one part in a thousand may fall on another side of a tie by the rounding of 2^bias
    assert ((found - expected).abs() > 1e-4 * expected.abs().max()).float().mean() <= 0.005


def test_bias_and_maximum_are_one_thing() -> None:
    for name in ("e2m1", "e3m0", "e1m2", "e4m3", "int4"):
        form, peak = number_format(name), torch.tensor([0.03, 1.0, 500.0])
        step = llm_fp4.step_of(llm_fp4.bias_of(peak, form), form)
        torch.testing.assert_close(step * form.max, peak)
    assert float(llm_fp4.bias_of(torch.tensor(6.0), number_format("e2m1"))) == pytest.approx(1.0)  # OCP fp4


def test_shifted_channels_differ_by_whole_powers_and_fold_into_the_weights() -> None:
    torch.manual_seed(0)
    form = number_format("e2m1")
    x = torch.randn(50, 8) * torch.tensor([0.0, 1, 3, 9, 30, 0.1, 2, 5])
    bias = llm_fp4.bias_of(x.abs().amax(0), form)
    start = llm_fp4.bias_of(x.abs().max(), form)
    rho = start + 0.1 if round(float(start + 0.1)) == round(float(start)) else start - 0.1
    shifted = llm_fp4.preshifted(bias, rho, start, form)
    shift = shifted - rho
    torch.testing.assert_close(shift, shift.round(), atol=1e-5, rtol=0)
    assert float(shift.min()) >= -1e-5 and float(shift.max()) <= 3 + 1e-5 and torch.isfinite(shifted).all()
    # the identity that an exact kernel lives on: shift the input up, the weight's columns down
    weight, power = torch.randn(4, 8), torch.exp2(shift.round())
    simulated = llm_fp4.quantize(x, rho + shift.round(), form) @ weight.t()
    folded = llm_fp4.quantize(x * power, rho, form) @ (weight / power).t()
    torch.testing.assert_close(simulated, folded, rtol=1e-4, atol=1e-4)


def test_search_never_does_worse_than_the_maximum_and_small_range_is_found() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(64, 16), torch.randn(6, 16)
    weight[:, 3] *= 40  # one large column sets the maximum
    x[:, 3] = 0  # yet nothing ever enters it
    form, target = number_format("e2m1"), x @ weight.t()
    plain = llm_fp4.choose_weight(weight, x, target, [form], [1.0])
    found = llm_fp4.choose_weight(weight, x, target, [form], llm_fp4.factors(100))
    assert found.error < 0.05 * plain.error
    best = llm_fp4.choose_weight(
        weight, x, target, [number_format(n) for n in ("e3m0", "e2m1", "e1m2")], [1.0]
    )
    assert best.error <= plain.error


def test_large_magnitudes_are_searched_too() -> None:
    """A bias below zero: the paper's factors widen the range, factors of the maximum clip it."""
    torch.manual_seed(0)
    x = torch.randn(200, 16) * 1000
    x[0, 0] = 40_000
    weight, form, grid = torch.randn(8, 16), number_format("e2m1"), llm_fp4.factors(60)
    arguments = (x, x.abs().amax(0), weight, x @ weight.t(), [form], grid)
    right = llm_fp4.choose_input(*arguments, search="maximum", shift=False)
    papers = llm_fp4.choose_input(*arguments, search="bias", shift=False)
    plain = llm_fp4.choose_input(*arguments[:-1], [1.0], shift=False)
    assert right.error < 0.9 * plain.error and right.error <= papers.error * 1.001


def _planted(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs whose channels differ 64-fold in size, all of them mattering equally to the product."""
    generator = torch.Generator().manual_seed(seed)
    scale = 2.0 ** torch.linspace(-3, 3, 24)
    x = torch.randn(128, 24, generator=generator) * scale
    weight = torch.randn(16, 24, generator=generator) / scale
    return x, weight, x @ weight.t()


def test_planted_channels_need_their_own_exponents() -> None:
    x, weight, target = _planted()
    rows = Rows()
    rows.see(x)

    def error(**fields: object) -> float:
        # finer weights, so that the error is that of the inputs
        step = FloatQuantize(("e4m3",), ("e2m1",), candidates=20, **fields)  # type: ignore[arg-type]
        w, a = step.choose(weight, rows)
        assert a is not None
        product = llm_fp4.quantize(x, a.bias, a.form) @ llm_fp4.quantize(weight, w.bias, w.form).t()
        return relative_error(product, target)

    assert error(shift=True) < 0.75 * error(shift=False)


def test_formats_follow_the_data() -> None:
    torch.manual_seed(0)
    x = torch.eye(64)
    forms = [number_format(n) for n in ("e3m0", "e1m2")]
    flat = torch.rand(4, 64) * 2 - 1
    steep = torch.randn(4, 64).sign() * 2.0 ** -torch.randint(0, 7, (4, 64))
    assert llm_fp4.choose_weight(flat, x, flat.t(), forms, [1.0]).form.name == "e1m2"
    assert llm_fp4.choose_weight(steep, x, steep.t(), forms, [1.0]).form.name == "e3m0"


@pytest.mark.parametrize("family", world.FAMILIES)
def test_step_packs_everything_and_reloads_equal(family: str, tmp_path: Path) -> None:
    original = world.bundle(family)
    task = world.task(family)
    edited = Recipe([FloatQuantize.of_bits(8, 8, candidates=6, rounds=1, rows=64)]).apply(
        original, task, QUIET
    )
    found = anatomy.of(original.model)
    packed = {n: m for n, m in edited.model.named_modules() if isinstance(m, PackedLinear)}
    top = lookup.head(original.model)
    assert set(packed) >= {b.feed_forward.down for b in found.blocks} and (top is None or top in packed)
    assert all(m.input is not None for m in packed.values())
    tables = [n for n, m in edited.model.named_modules() if isinstance(m, PackedEmbedding)]
    assert tables == ([] if family in ("vit", "t5") else [found.embeddings])
    out, before = world.outputs(edited).detach(), world.outputs(original).detach()
    assert relative_error(out, before) < 0.35
    manifest.write_manifest(edited, tmp_path)
    again = edited.copy()
    again.model = manifest.build_from_manifest(tmp_path, edited.model.config)
    assert torch.equal(world.outputs(again), out)


def test_four_bits_take_an_eighth_on_disk(tmp_path: Path) -> None:
    original = world.bundle("llama")
    small = Recipe([FloatQuantize(("e2m1",), (), candidates=0)]).apply(original)
    manifest.write_manifest(small, tmp_path)
    weights = sum(p.numel() for n, p in original.model.named_parameters() if "norm" not in n)
    rest = sum(4 * p.numel() for p in small.model.parameters())
    steps = sum(m.matrix.step.numel() * 4 for m in small.model.modules() if hasattr(m, "matrix"))
    held = sum(t.numel() * t.element_size() for t in small.model.state_dict().values())
    assert held == weights // 2 + steps + rest
    assert (tmp_path / "model.safetensors").stat().st_size < held + 20_000  # the rest is the file's header


def test_int4_is_the_baseline_that_needs_no_data() -> None:
    original = world.bundle("gpt2")
    plain = FloatQuantize(("int4",), (), candidates=0, head=False, embeddings=False)
    edited = Recipe([plain]).apply(original)
    path = anatomy.of(original.model).blocks[0].feed_forward.down
    weight, _ = anatomy.linear(original.model, path)
    expected = PackedLinear.from_weight(weight, None, "int4").matrix.values()
    torch.testing.assert_close(anatomy.get(edited.model, path).matrix.values(), expected)
    # uniform floats are integers
    same = FloatQuantize(("e1m2",), (), candidates=0, head=False, embeddings=False)
    assert torch.equal(world.outputs(Recipe([same]).apply(original)), world.outputs(edited))


def test_search_beats_plain_rounding_in_a_model() -> None:
    bundle, task = world.bundle("llama"), world.task()
    before = world.outputs(bundle).detach()

    def error(step: FloatQuantize) -> float:
        return relative_error(world.outputs(Recipe([step]).apply(bundle, task, QUIET)).detach(), before)

    assert error(FloatQuantize(**QUICK)) < error(FloatQuantize(("int4",), ("int4",), candidates=0))


def test_tied_head_is_untied_and_dead_channels_do_no_harm() -> None:
    bundle, task = world.bundle("gpt2"), world.task()
    with torch.no_grad():
        block = bundle.model.transformer.h[1]
        block.ln_2.weight[4] = block.ln_2.bias[4] = 0  # nothing ever enters channel 4
    assert bundle.model.config.tie_word_embeddings
    edited = Recipe([FloatQuantize(**QUICK)]).apply(bundle, task, QUIET)
    assert not edited.model.config.tie_word_embeddings and bundle.model.config.tie_word_embeddings
    assert isinstance(edited.model.lm_head, PackedLinear) and torch.isfinite(world.outputs(edited)).all()
    zeros = llm_fp4.choose_input(
        torch.zeros(3, 2), torch.zeros(2), torch.ones(1, 2), torch.zeros(3, 1), [number_format("e2m1")], [1.0]
    )
    assert torch.isfinite(llm_fp4.step_of(zeros.bias, zeros.form)).all()


def test_observers() -> None:
    torch.manual_seed(0)
    rows, whole = Rows(most=20, seed=1), torch.randn(100, 3)
    for part in whole.split(30):
        rows.see(part)
    assert rows.tokens == 100 and rows.rows is not None and rows.rows.shape == (20, 3)
    assert torch.equal(rows.peak, whole.abs().amax(0))
    assert all((whole == r).all(1).any() for r in rows.rows)
    extremes, running = Range(), Range(momentum=0.9)
    for part in (torch.tensor([[0.0, 1.0]]), torch.tensor([[-2.0, 3.0]])):
        extremes.see(part)
        running.see(part)
    assert (extremes.low, extremes.high) == (-2, 3)
    assert (running.low, running.high) == pytest.approx((-0.2, 1.2))
    bert, task = world.bundle(), world.task()
    attention = anatomy.of(bert.model).blocks[0].attention
    seen = observe(bert, task, [attention.k, attention.v, attention.o], lambda: Rows(8), 8, QUIET)
    assert seen[attention.k] is seen[attention.v] and seen[attention.o] is not seen[attention.k]


def test_step_refuses() -> None:
    for fields in ({"weights": ()}, {"weights": ("ternary",)}, {"weights": ("e9m9",)}, {"candidates": -1},
                   {"search": "best"}, {"rows": 0}):  # fmt: skip
        with pytest.raises(UserError):
            FloatQuantize(**fields)
    with pytest.raises(UserError, match="3 to 8"):
        FloatQuantize.of_bits(2, None)
    bundle = world.bundle()
    with pytest.raises(UserError, match="task"):
        FloatQuantize().apply(bundle, None, QUIET)
    with torch.no_grad():
        bundle.model.encoder.layer[3].output.dense.weight[0, 0] = math.nan
    with pytest.raises(ModelError, match="NaN"):
        FloatQuantize(("int4",), (), candidates=0).apply(bundle, None, QUIET)
    assert not [m for m in bundle.model.modules() if isinstance(m, PackedLinear)]
    twice = Recipe([FloatQuantize(("int4",), (), candidates=0)]).apply(world.bundle())
    with pytest.raises(ModelError, match="plain linear"):
        FloatQuantize(("int4",), (), candidates=0).apply(twice, None, QUIET)
