"""TabDPT: the network against a literal reading of its equations, and who may see what."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import lightformers as lf
from lightformers import anatomy
from lightformers.errors import UserError
from lightformers.models.tabular.tabdpt import TabDPT, TabDPTConfig, standardise

FEATURES = 6


def tiny(seed: int = 0, **fields: object) -> TabDPT:
    torch.manual_seed(seed)
    sizes = {
        "features": FEATURES,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
    }
    return TabDPT(TabDPTConfig(**{**sizes, **fields})).eval()


def world(
    context: int = 9, queries: int = 4, classes: int = 3, seed: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(context) % classes
    return torch.randn(context, FEATURES, generator=g), y.float(), torch.randn(queries, FEATURES, generator=g)


def literal(model: TabDPT, context_x: Tensor, context_y: Tensor, x: Tensor) -> Tensor:
    """One table, row by row and head by head, as the card writes it."""

    def norm(v: Tensor, by: torch.nn.LayerNorm) -> Tensor:
        centred = v - v.mean()
        return centred / (centred.square().mean() + by.eps).sqrt() * by.weight + by.bias

    def mlp(v: Tensor, by: torch.nn.Module) -> Tensor:
        h = by.up_proj.weight @ v + by.up_proj.bias
        h = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
        return by.down_proj.weight @ h + by.down_proj.bias

    rows = []
    for v in torch.cat([context_x, x]):
        v = model.row_embedding.weight @ v + model.row_embedding.bias
        rows.append(v / (v.square().mean() + 1e-8).sqrt())
    for i, y in enumerate(context_y):
        rows[i] = rows[i] + model.label_embedding.weight[:, 0] * y + model.label_embedding.bias
    for layer in model.layers:
        a, new = layer.attention, []
        size = a.q_norm.weight.numel()
        normed = [norm(v, layer.attention_norm) for v in rows]
        for v, n in zip(rows, normed):
            heads = []
            for h in range(a.heads):
                part = slice(h * size, (h + 1) * size)
                q = norm(a.q_proj.weight[part] @ n, a.q_norm)
                keys = [norm(a.k_proj.weight[part] @ c, a.k_norm) for c in normed[: len(context_x)]]
                weight = torch.stack([q @ k / math.sqrt(size) for k in keys]).softmax(0)
                heads.append(sum(w * (a.v_proj.weight[part] @ c) for w, c in zip(weight, normed)))
            v = v + a.o_proj.weight @ torch.cat(heads)
            new.append(v + mlp(norm(v, layer.mlp_norm), layer.mlp))
        rows = new
    return torch.stack([mlp(v, model.head) for v in rows[len(context_x) :]])


def test_network_is_the_equations() -> None:
    model = tiny().double()
    for p in model.parameters():  # gains and biases of norms other than 1 and 0
        p.data += 0.1 * torch.randn_like(p)
    context_x, y, x = (t.double() for t in world())
    out = model.answers(context_x[None], y[None], x[None])
    assert out.shape == (1, 4, 11)
    torch.testing.assert_close(out[0], literal(model, context_x, y, x))


def test_columns_are_standardised_by_the_context_alone() -> None:
    rng = np.random.default_rng(0)
    context, x = rng.standard_normal((40, 3)) * [1, 50, 0] + [0, 7, 5], rng.standard_normal((8, 3)) * 30
    context[3, 0], context[5, 1], x[0, 0] = 1e4, np.nan, np.nan

    def clip(column: np.ndarray, values: np.ndarray) -> np.ndarray:
        seen = column[~np.isnan(column)]
        inner = seen[np.abs(seen - seen.mean()) <= 4 * seen.std(ddof=1)]
        return np.clip(values, inner.mean() - 4 * inner.std(ddof=1), inner.mean() + 4 * inner.std(ddof=1))

    wanted = []
    for j in range(3):
        column = clip(context[:, j], context[:, j])
        mean, deviation = np.nanmean(column), np.nanstd(column, ddof=1) + 1e-6
        scaled = (column - mean) / deviation
        wanted.append([clip(scaled, scaled), clip(scaled, (clip(context[:, j], x[:, j]) - mean) / deviation)])
    made = standardise(torch.from_numpy(context), torch.from_numpy(x))
    for place, one in enumerate(made):
        expected = np.nan_to_num(np.stack([w[place] for w in wanted], 1))
        np.testing.assert_allclose(one.numpy(), expected, atol=1e-6)
    assert (made[1][:, 2] == 0).all()  # what never varied in the context says nothing
    again = standardise(torch.from_numpy(context), torch.from_numpy(x[2:3]))
    torch.testing.assert_close(again[1][0], made[1][2])


def test_a_mark_that_few_rows_have_is_no_outlier() -> None:
    column = torch.zeros(100, 1)
    column[7] = 1
    (scaled,) = standardise(column)
    assert scaled[7] == pytest.approx(4, abs=0.5) and scaled[8].abs() < 0.2


def test_queries_do_not_see_each_other() -> None:
    model = tiny()
    context_x, y, x = world()
    out = model(context_x, y, x)["logits"]
    for i in range(len(x)):
        torch.testing.assert_close(model(context_x, y, x[i : i + 1])["logits"], out[i : i + 1])
    other = x.clone()
    other[1:] *= 100
    torch.testing.assert_close(model(context_x, y, other)["logits"][0], out[0])


@pytest.mark.parametrize("task", ["tabular-classification", "tabular-regression"])
def test_the_order_of_the_context_says_nothing(task: str) -> None:
    model = tiny(task=task)
    context_x, y, x = world(30)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    (one,), (two,) = (model(a, b, x).values() for a, b in ((context_x, y), (context_x[order], y[order])))
    torch.testing.assert_close(one, two, atol=2e-5, rtol=1e-4)
    (changed,) = model(context_x, y.flip(0), x).values()
    assert not torch.allclose(one, changed, atol=1e-3)


def test_a_context_for_each_query() -> None:
    model = tiny(classes=3)
    context_x, y, x = world()
    own = model(context_x.expand(4, -1, -1), y.expand(4, -1), x)["logits"]
    torch.testing.assert_close(own, model(context_x, y, x)["logits"])
    assert own.shape == (4, 3)


def test_more_than_ten_classes_are_answered_digit_by_digit() -> None:
    model = tiny(classes=123, softmax_temperature=0.5)
    context_x, _, x = world(20)
    y = torch.tensor(
        [0, 9, 10, 11, 19, 20, 99, 100, 101, 109, 110, 119, 120, 122, 5, 50, 55, 90, 98, 111]
    ).float()
    a, b = standardise(context_x, x)
    digits = [[int(c) // 10**d % 10 for c in y] for d in range(3)]
    found = [model.answers(a[None], torch.tensor([d]).float(), b[None])[0] for d in digits]
    out = model(context_x, y, x)["logits"]
    assert out.shape == (4, 123)
    for c in (0, 7, 10, 99, 122):
        wanted = sum(found[d][:, c // 10**d % 10] for d in range(3)) / 0.5
        torch.testing.assert_close(out[:, c], wanted)


def test_permutations_are_averaged() -> None:
    orders = [[0, 1, 2, 3, 4, 5], [3, 1, 0, 2, 4, 5]]
    both, plain = tiny(permutations=orders), tiny()
    context_x, y, x = world()
    apart = [plain(context_x[:, o], y, x[:, o])["logits"] for o in orders]
    torch.testing.assert_close(both(context_x, y, x)["logits"], (apart[0] + apart[1]) / 2)
    assert not torch.allclose(*apart, atol=1e-3)


def test_predictions_are_in_units_of_the_target() -> None:
    model, moved = (
        tiny(task="tabular-regression"),
        tiny(task="tabular-regression", target_mean=7.0, target_deviation=3.0),
    )
    context_x, _, x = world(30)
    y = torch.randn(30, generator=torch.Generator().manual_seed(3))
    out = model(context_x, y, x)["prediction"]
    assert out.shape == (4,)
    torch.testing.assert_close(
        model(context_x, 50 * y - 4, x)["prediction"], 50 * out - 4, atol=1e-2, rtol=1e-4
    )
    torch.testing.assert_close(moved(context_x, y, x)["prediction"], 3 * out + 7)


def test_a_missing_cell_counts_as_the_mean() -> None:
    model = tiny()
    context_x, y, x = world(30)
    holes, filled = x.clone(), x.clone()
    holes[0, 2], filled[0, 2] = math.nan, context_x[:, 2].mean()
    torch.testing.assert_close(model(context_x, y, holes)["logits"], model(context_x, y, filled)["logits"])


def test_half_precision_comes_near() -> None:
    model = tiny().train()
    context_x, y, x = (t[None] for t in world(40))
    whole = model.answers(context_x, y, x)
    half = tiny().bfloat16().train().answers(context_x, y, x)  # with gradients: attention in plain products
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), whole, atol=0.05, rtol=0.1)


def test_the_graph_gives_equal_answers() -> None:
    model = tiny(permutations=[[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]], num_hidden_layers=1)
    context_x, y, x = world()
    moving = {
        "context_x": {0: torch.export.Dim.AUTO},
        "context_y": {0: torch.export.Dim.AUTO},
        "x": {0: torch.export.Dim.AUTO},
    }
    with torch.no_grad():
        graph = torch.export.export(model, (context_x, y, x), dynamic_shapes=moving).module()
        more = torch.randn(7, FEATURES)
        torch.testing.assert_close(graph(context_x, y, more)["logits"], model(context_x, y, more)["logits"])


def test_the_size_of_the_paper() -> None:
    with torch.device("meta"):
        model = lf.create_model("tabdpt")
    assert sum(p.numel() for p in model.parameters()) == 25_801_227


def test_a_cut_model_is_saved_and_opened(tmp_path: Path) -> None:
    model = tiny(num_hidden_layers=3)
    context_x, y, x = world()
    head = {k: v.clone() for k, v in model.layers[2].attention.q_proj.state_dict().items()}
    for cut in ("blocks", "heads", "channels"):
        assert anatomy.native(model, cut) is None
    anatomy.surgery.keep_blocks(model, [0, 2])
    anatomy.surgery.keep_heads(model, {0: [1], 1: [0]})
    anatomy.surgery.keep_channels(model, {0: range(8), 1: range(4, 12)})
    torch.testing.assert_close(model.layers[1].attention.q_proj.weight, head["weight"][:8])
    model.save_pretrained(tmp_path)
    again = TabDPT.from_pretrained(tmp_path)
    assert again.config.num_attention_heads == 1 and again.config.head_dim == 8
    torch.testing.assert_close(again(context_x, y, x)["logits"], model(context_x, y, x)["logits"])
    assert "embedded in the width" in (anatomy.native(tiny(), "width") or "")


def test_what_does_not_fit_is_refused() -> None:
    model = tiny()
    context_x, y, x = world()
    with pytest.raises(UserError, match="the context is empty"):
        model(context_x[:0], y[:0], x)
    with pytest.raises(UserError, match=r"x is \(batch, 6\)"):
        model(context_x, y, x[:, :5])
    with pytest.raises(UserError, match="context_x is"):
        model(context_x, y[:4], x)
    with pytest.raises(UserError, match="heads do not divide"):
        tiny(num_attention_heads=3)
    with pytest.raises(UserError, match="names each of 6 columns once"):
        tiny(permutations=[[0, 1, 2, 3, 4, 4]])
