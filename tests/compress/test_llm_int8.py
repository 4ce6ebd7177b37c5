"""LLM.int8(): formats, the layer, and the step."""

from __future__ import annotations

import math

import pytest
import steps_world as world
import torch
from torch import Tensor

from lightformers import anatomy
from lightformers.compress import LLMInt8
from lightformers.compress.layers import linears
from lightformers.compress.quantize import formats
from lightformers.errors import ModelError, UserError
from lightformers.parts import int8
from lightformers.parts.int8 import Int8Linear, int8_matmul, quantize_rows
from lightformers.steps import Recipe, Run


def literal(x: Tensor, weight: Tensor, threshold: float, half: bool) -> Tensor:
    """The card's six steps, value by value, in Python numbers."""
    rows, columns, out = len(x), x.shape[1], torch.zeros(len(x), len(weight))
    apart = [h for h in range(columns) if threshold and max(abs(float(v)) for v in x[:, h]) >= threshold]
    for t in range(rows):
        inner = [0.0 if threshold and abs(float(v)) >= threshold else float(v) for v in x[t]]
        peak = max(map(abs, inner)) or 1.0
        q = [0 if h in apart else round(127 * v / peak) for h, v in enumerate(inner)]
        for o in range(len(weight)):
            scale = max(abs(float(v)) for v in weight[o]) or 1.0
            w = [round(127 * float(v) / scale) for v in weight[o]]
            value = sum(a * b for a, b in zip(q, w)) * peak * scale / 127**2
            for h in apart:
                value += float(x[t, h]) * (float(weight[o, h].half()) if half else w[h] * scale / 127)
            out[t, o] = value
    return out


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 2.0, 6.0])
@pytest.mark.parametrize("shape", [(1, 5, 3), (7, 13, 4), (4, 1, 2)])
def test_layer_is_the_literal_algorithm(shape: tuple[int, int, int], threshold: float, half: bool) -> None:
    torch.manual_seed(0)
    n, h, o = shape
    x, weight, bias = torch.randn(n, h) * 2.5, torch.randn(o, h), torch.randn(o)
    layer = Int8Linear.from_weight(weight, bias, threshold, half=half)
    torch.testing.assert_close(layer(x), literal(x, weight, threshold, half) + bias, rtol=1e-4, atol=1e-4)


def test_small_values_of_outlier_features_count_for_the_step() -> None:
    # feature 0 is an outlier in row 0; its small value 5 in row 1 sets row 1's step, so 0.01 rounds to nothing
    x, weight = torch.tensor([[9.0, 1.0], [5.0, 0.01]]), torch.tensor([[0.0, 1.0]])
    assert Int8Linear.from_weight(weight, None)(x)[1].item() == 0
    assert Int8Linear.from_weight(weight, None, outliers="token")(x)[1].item() == 0
    assert Int8Linear.from_weight(weight, None)(x[1:, 1:].repeat(1, 2))[0].item() == pytest.approx(0.01)


def test_threshold_is_reached_by_equality_and_by_the_dtype_of_the_input() -> None:
    assert int8.outlier_mask(torch.tensor([[[6.0, 5.999]]]), 6.0, "batch").flatten().tolist() == [True, False]
    # 5.999 is 6 in bfloat16: compared as the input has it
    assert bool(int8.outlier_mask(torch.tensor([[[5.999]]]).bfloat16(), 6.0, "batch").all())
    assert int8.outlier_mask(torch.tensor([[[5.0]]]), 6.0, "batch") is None


def test_rounding_is_half_to_even_and_zero_rows_stay_zero() -> None:
    q, step = quantize_rows(torch.tensor([[127.0, 0.5, 1.5, -2.5], [0, 0, 0, 0]]))
    assert q.tolist() == [[127, 0, 2, -2], [0, 0, 0, 0]] and step.flatten()[0] == 1
    layer = Int8Linear.from_weight(torch.tensor([[0.0, 0.0], [1.0, 2.0]]), None)
    assert layer(torch.zeros(2, 2)).tolist() == [[0, 0], [0, 0]]
    assert layer(torch.ones(1, 2))[0, 0].item() == 0


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 2), (33, 1040, 17), (20, 2500, 9), (0, 4, 2), (4, 1, 2)])
def test_integer_product_is_exact_on_every_path(shape, kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernel:
        monkeypatch.setattr(int8, "_integer_kernel", lambda device: False)
    n, h, o = shape
    torch.manual_seed(0)
    x = torch.randint(-127, 128, (n, h), dtype=torch.int8)
    x[: n // 2] = 127  # the largest sums there can be
    weight = torch.randint(-127, 128, (o, h), dtype=torch.int8)
    weight[:1] = 127
    found = int8_matmul(x, weight)
    assert found.dtype == torch.int32 and torch.equal(found.long(), x.long() @ weight.long().T)


def test_threshold_zero_and_huge_are_plain_vector_wise() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(6, 40) * 4, torch.randn(9, 40)
    plain = formats.multiply(x, weight, "vector-wise")
    for threshold in (0.0, 1e6):
        torch.testing.assert_close(Int8Linear.from_weight(weight, None, threshold)(x), plain)
    # all features outliers: the pure product
    layer = Int8Linear.from_weight(weight, None, 1e-9)
    torch.testing.assert_close(layer(x), x @ layer.dequantized().T, rtol=1e-5, atol=1e-5)
    assert (
        int((Int8Linear.from_weight(weight, None, 1e-9, half=True)(x) - x @ weight.T).abs().max() > 0.05) == 0
    )


@pytest.mark.parametrize("outliers", ["batch", "sequence", "token"])
def test_what_a_result_depends_on(outliers: str) -> None:
    torch.manual_seed(0)
    quiet, loud = torch.randn(1, 6, 16), torch.randn(1, 6, 16)
    loud[0, 2, 3] = 20.0
    layer = Int8Linear.from_weight(torch.randn(5, 16), None, 6.0, outliers)
    together = layer(torch.cat([quiet, loud]))
    alone = torch.cat([layer(quiet), layer(loud)])
    assert torch.equal(together, alone) == (outliers != "batch")
    # and the quiet tokens of the loud sequence on whether tokens share
    tokens = torch.cat([layer(loud[:, i : i + 1]) for i in range(6)], 1)
    assert torch.equal(tokens, layer(loud)) == (outliers == "token")


def test_gradients_flow_through_frozen_weights() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, requires_grad=True)
    layer = Int8Linear.from_weight(torch.randn(4, 8), torch.zeros(4))
    upstream = torch.randn(2, 3, 4)
    layer(x).backward(upstream)
    torch.testing.assert_close(x.grad, upstream @ layer.dequantized())
    torch.testing.assert_close(layer.bias.grad, upstream.sum((0, 1)))
    assert [n for n, _ in layer.named_parameters()] == ["bias"]


def test_stored_in_eight_bits_and_frozen() -> None:
    torch.manual_seed(0)
    layer = Int8Linear.from_weight(torch.randn(32, 64), torch.randn(32))
    state = {k: v.clone() for k, v in layer.state_dict().items()}
    assert state["quantized"].dtype == torch.int8 and state["step"].dtype == torch.float32
    layer.train()(torch.randn(3, 64) * 10)
    assert all(torch.equal(v, state[k]) for k, v in layer.state_dict().items())
    again = Int8Linear(**layer.args)
    again.load_state_dict(state, assign=True)
    x = torch.randn(5, 64) * 4
    assert torch.equal(again(x), layer(x)) and again.args == layer.args
    # half precision casts the bias, not the steps
    low = layer.bfloat16()
    assert low.step.dtype == torch.float32 and torch.equal(low.step, state["step"])
    out = low(x.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), again(x), rtol=0.05, atol=0.5)


def test_awkward_inputs() -> None:
    layer = Int8Linear.from_weight(torch.randn(3, 4), torch.ones(3))
    assert layer(torch.empty(0, 4)).shape == (0, 3) and layer(torch.empty(2, 0, 4)).shape == (2, 0, 3)
    assert layer(torch.randn(4)).shape == (3,) and layer(torch.randn(2, 1, 5, 4)).shape == (2, 1, 5, 3)
    for wrong in (math.nan, math.inf):
        for threshold in (0.0, 6.0):
            bad = torch.ones(2, 4)
            bad[1, 2] = wrong
            with pytest.raises(ValueError, match="NaN"):
                Int8Linear.from_weight(torch.randn(3, 4), None, threshold)(bad)
    with pytest.raises(ValueError, match="features"):
        layer(torch.randn(2, 5))
    with pytest.raises(ValueError, match="NaN"):
        Int8Linear.from_weight(torch.full((2, 2), math.nan), None)


@pytest.mark.parametrize("name", formats.FORMATS)
def test_every_format_is_close_on_tame_inputs(name: str) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(20, 64), torch.randn(12, 64)
    assert formats.relative_error(formats.multiply(x, weight, name), x @ weight.T) < 0.03
    assert formats.multiply(x[:0], weight, name).shape == (0, 12)


def test_zero_point_uses_the_whole_range() -> None:
    x = torch.rand(10, 8) * 3 + 1  # all positive: symmetric int8 would waste half of its steps
    q, step, offset = formats.zero_point(x)
    assert int(q.min()) < -50 and int(q.max()) == 127
    assert ((q.float() - offset) * step - x).abs().max() <= step / 2 + 1e-6
    zero = (torch.zeros(1) / step + offset).round()
    assert float((zero - offset) * step) == 0
    weight = torch.randn(5, 8)
    exact = ((q.float() - offset) * step) @ (lambda w, s, o: (w.float() - o) * s)(
        *formats.zero_point(weight)
    ).T
    torch.testing.assert_close(formats.multiply(x, weight, "zero-point"), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [8.0, 20.0, 100.0])
def test_split_holds_where_planted_outliers_break_the_rest(size: float) -> None:
    """Outliers planted without changing the function: features times c, matching weight columns divided by c."""
    torch.manual_seed(0)
    x, weight = torch.randn(64, 128).clamp(-3, 3), torch.randn(32, 128)
    exact = x @ weight.T
    planted, matching = x.clone(), weight.clone()
    planted[:, [3, 40, 77]] *= size
    matching[:, [3, 40, 77]] /= size
    torch.testing.assert_close(planted @ matching.T, exact, rtol=1e-4, atol=1e-3)

    def error(name: str) -> float:
        return formats.relative_error(formats.multiply(planted, matching, name), exact)

    assert error("vector-wise+split") < 0.02
    assert error("vector-wise+split") < error("vector-wise") / (1 + size / 12)
    assert error("vector-wise") < error("row-wise") * 1.05 < error("absmax") * 1.1
    layer = Int8Linear.from_weight(matching, None, half=True)
    assert formats.relative_error(layer(planted), exact) == pytest.approx(error("vector-wise+split"), rel=0.1)


@pytest.mark.parametrize("family", world.FAMILIES)
def test_step_replaces_projections_only(family: str) -> None:
    original = world.bundle(family)
    edited = Recipe([LLMInt8()]).apply(original)
    found = {n for n, m in edited.model.named_modules() if isinstance(m, Int8Linear)}
    assert found == set(linears(anatomy.of(original.model)))
    a, b = world.outputs(edited).detach().flatten(), world.outputs(original).detach().flatten()
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.99
    kept = {
        k for k, v in edited.model.state_dict().items() if v.dtype != torch.int8 and not k.endswith("step")
    }
    assert all(torch.equal(edited.model.state_dict()[k], original.model.state_dict()[k]) for k in kept)


def test_planted_outliers_in_a_model() -> None:
    """Norm gains times c, the next projections divided by c: LLM.int8() stays, plain vector-wise int8 drifts."""
    bundle = world.bundle("llama")
    before = world.outputs(bundle).detach()
    with torch.no_grad():
        for layer in bundle.model.model.layers:
            for norm, readers in (
                (
                    layer.input_layernorm,
                    (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
                ),
                (layer.post_attention_layernorm, (layer.mlp.gate_proj, layer.mlp.up_proj)),
            ):
                norm.weight[[2, 9]] *= 60.0
                for reader in readers:
                    reader.weight[:, [2, 9]] /= 60.0
    torch.testing.assert_close(world.outputs(bundle), before, rtol=1e-3, atol=1e-3)

    def error(step: LLMInt8) -> float:
        return formats.relative_error(world.outputs(Recipe([step]).apply(bundle)).detach(), before)

    assert error(LLMInt8(half=True)) < 0.5 * error(LLMInt8(threshold=0.0))


def test_step_refuses() -> None:
    with pytest.raises(UserError, match="threshold"):
        LLMInt8(threshold=-1)
    twice = Recipe([LLMInt8()]).apply(world.bundle())
    with pytest.raises(ModelError, match="plain linear"):
        LLMInt8().apply(twice, None, Run())
    with pytest.raises(UserError, match="unknown format"):
        formats.multiply(torch.ones(1, 1), torch.ones(1, 1), "int3")
