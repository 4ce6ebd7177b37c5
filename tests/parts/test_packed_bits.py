"""Number formats, block steps, gradients that pass straight through, and matrices stored in few bits."""

from __future__ import annotations

import pytest
import torch

from lightformers.errors import UserError
from lightformers.parts import blocks
from lightformers.parts.activation_quantizer import ActivationQuantizer
from lightformers.parts.number_formats import float_formats, number_format
from lightformers.parts.packed_bits import PackedMatrix, pack, unpack
from lightformers.parts.packed_layers import PackedEmbedding, PackedLinear

ALL = ("int2", "int4", "int5", "int8", "e2m1", "e3m0", "e1m2", "e4m3", "e5m2", "ternary", "binary")


def test_levels_of_known_formats() -> None:
    half = [0.5 * v for v in number_format("e2m1").levels if v >= 0]
    assert half == [0, 0.5, 1, 1.5, 2, 3, 4, 6]  # the OCP standard's fp4
    assert number_format("e3m0").levels[7:] == (0, 1, 2, 4, 8, 16, 32, 64)
    assert number_format("e1m2").levels == number_format("int4").levels == tuple(range(-7, 8))
    assert float_formats(4) == ("e3m0", "e2m1", "e1m2") and len(float_formats(8)) == 5


@pytest.mark.parametrize("name", ALL)
def test_rounding_goes_to_the_nearest_level(name: str) -> None:
    form = number_format(name)
    book = torch.tensor(form.levels)
    torch.manual_seed(0)
    x = torch.cat([torch.randn(3000) * form.max * scale for scale in (0.02, 0.4, 1.5)])
    found = form.round(x)
    distance = (x.clamp(-form.max, form.max)[:, None] - book).abs()
    torch.testing.assert_close((found - x.clamp(-form.max, form.max)).abs(), distance.amin(1))
    assert torch.equal(form.round(book), book)  # levels stay
    assert torch.equal(book[form.encode(found).long()], found)


def test_eight_bit_floats_round_as_torch_does() -> None:
    form, unit = number_format("e4m3"), 2.0**-9  # torch's smallest subnormal
    torch.manual_seed(0)
    x = torch.cat([torch.randn(20_000) * s for s in (0.01, 1.0, 100.0)]).clamp(-440, 440)
    x = torch.cat([x, torch.tensor([0.0, 2.0, 4.0, 1.0625, 1.1875, 2**-9 / 2, 2**-7])])  # ties too
    assert torch.equal(form.round(x / unit) * unit, x.to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize(("base", "per_byte"), [(256, 1), (15, 2), (16, 2), (3, 5), (2, 8), (31, 1)])
@pytest.mark.parametrize("columns", [1, 7, 40])
def test_packing_is_lossless(base: int, per_byte: int, columns: int) -> None:
    torch.manual_seed(0)
    codes = torch.randint(base, (6, columns), dtype=torch.uint8)
    packed = pack(codes, base, per_byte)
    assert packed.shape == (6, -(-columns // per_byte)) and packed.dtype == torch.uint8
    assert torch.equal(unpack(packed, base, per_byte, columns), codes)


def test_sizes_are_real() -> None:
    for name, bits in (("int8", 8), ("int4", 4), ("e2m1", 4), ("ternary", 1.6), ("binary", 1)):
        assert number_format(name).bits == bits
        matrix = PackedMatrix(64, 80, name, (0, 0))
        assert matrix.bytes == 64 * 80 * bits / 8 + 4
    assert PackedMatrix(128, 128, "int4", (64, 64), power_of_two=True).bytes == 128 * 64 + 4


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("block", [(0, 0), (1, 0), (0, 1), (1, 5), (4, 6), (64, 64)])
def test_blocks_are_the_literal_ones(block: tuple[int, int], power_of_two: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(9, 13) * torch.logspace(-2, 2, 13)
    weight[3:5] = 0
    form = number_format("int4")
    high, wide = block[0] or 9, block[1] or 13
    expected = torch.zeros_like(weight)
    for i in range(0, 9, high):
        for j in range(0, 13, wide):
            piece = weight[i : i + high, j : j + wide]
            step = float(piece.abs().max()) / 7 or 1.0
            if power_of_two:
                k = -40
                while 2.0**k < step:
                    k += 1
                step = 2.0**k
            expected[i : i + high, j : j + wide] = (piece / step).round().clamp(-7, 7) * step
    layer = PackedLinear.from_weight(weight, None, "int4", block, power_of_two)
    torch.testing.assert_close(layer.matrix.values(), expected)
    assert layer.matrix.step.dtype == (torch.int8 if power_of_two else torch.float32)
    levels, step = blocks.quantize_matrix(weight, form, block, power_of_two)
    assert (
        float((levels * blocks.spread(step, block, (9, 13)) - weight).abs().max())
        <= float(step.max()) / 2 + 1e-6
    )


def test_power_of_two_steps_clip_nothing_and_are_exact_at_powers() -> None:
    form = number_format("int8")
    peak = torch.tensor([127.0, 254.0, 127.5, 1e-3, 0.0])
    step = blocks.steps_of(peak, form, power_of_two=True)
    assert step[0] == 1 and step[1] == 2 and step[2] == 2 and step[4] == 1
    assert bool((peak <= 127 * step).all()) and bool((peak[:4] > 127 * step[:4] / 2).all())


@pytest.mark.parametrize("name", ["int4", "ternary", "e2m1", "int8"])
@pytest.mark.parametrize("shape", [(300, 17), (5, 1), (1, 8)])
def test_layer_is_the_product_with_its_numbers(name: str, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight, bias, x = (
        torch.randn(shape),
        torch.randn(shape[0]),
        torch.randn(2, 3, shape[1], requires_grad=True),
    )
    layer = PackedLinear.from_weight(weight, bias, name, (1, 4))
    dense = layer.matrix.values()
    out = layer(x)
    torch.testing.assert_close(out, torch.nn.functional.linear(x, dense, bias), rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(out)
    out.backward(upstream)
    torch.testing.assert_close(x.grad, upstream @ dense, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.bias.grad, upstream.sum((0, 1)), rtol=1e-4, atol=1e-4)
    assert [n for n, _ in layer.named_parameters()] == ["bias"]
    assert layer(torch.empty(0, shape[1])).shape == (0, shape[0])
    again = PackedLinear(**layer.args)
    again.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(again(x), out) and again.args == layer.args
    low = layer.bfloat16()
    assert low.matrix.step.dtype == torch.float32 and low(x.detach().bfloat16()).dtype == torch.bfloat16


def test_embedding_looks_rows_up() -> None:
    torch.manual_seed(0)
    table = torch.randn(11, 6)
    levels, step = blocks.quantize_matrix(table, number_format("int4"), (2, 4))
    made = PackedEmbedding.from_levels(levels, step, "int4", (2, 4))
    ids = torch.tensor([[0, 10, 3], [3, 5, 1]])
    assert torch.equal(made(ids), made.matrix.values()[ids])
    assert made.half()(ids).dtype == torch.float16
    assert PackedEmbedding(**made.args).args == made.args


def test_gradients_pass_straight_inside_the_range_only() -> None:
    x = torch.tensor([0.2, -0.9, 3.0, -7.0], requires_grad=True)
    out = blocks.fake_quantize(x, torch.tensor(0.5), number_format("int3"))
    assert out.tolist() == [0.0, -1.0, 1.5, -1.5]
    out.backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert x.grad is not None and x.grad.tolist() == [1, 2, 0, 0]


@pytest.mark.parametrize("group", ["tensor", "token", "block"])
def test_what_an_activation_shares_its_step_with(group: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 10)
    loud = x.clone()
    loud[1, 2, 9] = 100
    quantizer = ActivationQuantizer("int8", group, 4)
    a, b = quantizer(x), quantizer(loud)
    changed = (a != b).nonzero().tolist()
    assert a.shape == x.shape and float((a - x).abs().max()) < 0.02
    if group == "tensor":
        assert [0, 0, 0] in changed
    else:
        first = 0 if group == "token" else 8
        assert changed and all(i[:2] == [1, 2] and i[2] >= first for i in changed)
    assert torch.isfinite(quantizer(torch.zeros(2, 4))).all()
    fixed = ActivationQuantizer.fixed("e2m1", torch.full((10,), 0.1))
    assert fixed.args["steps"] == 10 and float(fixed(loud).max()) == pytest.approx(1.2)


def test_bad_input_is_refused() -> None:
    for name in ("int9", "e9m1", "fp4", "e1m0"):
        with pytest.raises(UserError):
            number_format(name)
    with pytest.raises(ValueError, match="level"):
        number_format("int4").encode(torch.tensor([0.5]))
    with pytest.raises(ValueError, match="NaN"):
        PackedLinear.from_weight(torch.full((2, 2), float("nan")), None, "int4")
    with pytest.raises(ValueError, match="powers of two"):
        PackedLinear.from_levels(torch.ones(1, 2), torch.full((1, 1), 0.3), None, "int4", power_of_two=True)
    with pytest.raises(ValueError, match="features"):
        PackedLinear(4, 2, "int4")(torch.randn(1, 5))
    with pytest.raises(ValueError, match="group"):
        ActivationQuantizer(group="row")  # type: ignore[arg-type]
