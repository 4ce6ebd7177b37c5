"""AlgoFormer: the loop's equations, windows and their gradients, saving, sizes, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightformers.errors import UserError
from lightformers.models.language.algoformer import AlgoFormer, AlgoFormerConfig, prompt, window_error
from lightformers.reproduce.in_context import Representation, least_squares


def made(**changed: Any) -> AlgoFormer:
    torch.manual_seed(0)
    fields = {"inputs": 3, "width": 16, "heads": 2, "iterations": 6, "window": 4, "length": 12}
    model = AlgoFormer(AlgoFormerConfig(**(fields | changed))).double()
    for p in model.parameters():  # biases of zero would hide mistakes
        torch.nn.init.normal_(p, std=0.3)
    return model


def drawn(n: int = 10) -> torch.Tensor:
    return torch.randn(2, n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "changed", [{}, {"inject": False, "window": 6}, {"positions": "each"}, {"pre": 0, "post": 2}, {"loop": 2}]
)
def test_it_is_the_literal_loop(changed: dict[str, Any]) -> None:
    model, x = made(**changed), drawn()
    places = model.places.weight[:10]

    def through(layers: Any, h: torch.Tensor) -> torch.Tensor:
        for layer in layers:
            h = h + layer.mixer(layer.mixer_norm(h))
            h = h + layer.ffn(layer.ffn_norm(h))
        return h

    held = through(model.pre, model.read(x) + places)
    state = torch.zeros_like(held) if model.config.inject else held
    wanted = []
    for _ in range(6):
        entered = state + held if model.config.inject else state
        state = through(model.loop, entered + places if model.config.positions == "each" else entered)
        wanted.append(model.say(model.norm(through(model.post, state))))
    window = model.config.window
    assert torch.allclose(model.every(x), torch.stack(wanted[-window:]), atol=1e-10)
    assert torch.allclose(model(x, iterations=3)["prediction"], wanted[2], atol=1e-10)


def test_gradients_are_those_of_the_window() -> None:
    """With the state before the window held fixed; the input's part H keeps its gradient by injection."""
    model, x, y = made(), drawn(), torch.randn(2, 5, dtype=torch.float64)
    window_error(model.every(x), y).backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters()}
    assert all(g.abs().sum() > 0 for g in found.values())
    model.zero_grad()
    held = model.read(x) + model.places.weight[:10]
    for layer in model.pre:
        held = layer(held)
    with torch.no_grad():
        state = torch.zeros_like(held)
        for _ in range(2):
            state = model.loop[0](state + held)
    answers = []
    for _ in range(4):
        state = model.loop[0](state + held)
        answers.append(model.say(model.norm(model.post[0](state))))
    sum((a[:, ::2, 0] - y).square().mean() for a in answers).div(4).backward()
    for name, p in model.named_parameters():
        assert torch.allclose(found[name], p.grad, atol=1e-9), name


def test_it_is_causal_and_the_loop_is_stored_once() -> None:
    model, x = made(), drawn()
    other = x.clone()
    other[:, 7:] += 1
    same, changed = model(x)["prediction"], model(other)["prediction"]
    assert torch.allclose(same[:, :7], changed[:, :7]) and not torch.allclose(same[:, 7:], changed[:, 7:])
    long = made(iterations=40, window=4)
    assert sum(p.numel() for p in long.parameters()) == sum(p.numel() for p in model.parameters())
    words = AlgoFormer(AlgoFormerConfig(7, 7, 16, 2, 1, 1, 1, 3, 2, 9, words=True))
    assert words(torch.randint(7, (2, 9)))["prediction"].shape == (2, 9, 7)


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    model, x = made(), drawn()
    model.save_pretrained(tmp_path)
    again = AlgoFormer.from_pretrained(tmp_path).double()
    assert again.config == model.config
    assert torch.allclose(again(x)["prediction"], model(x)["prediction"], atol=1e-5)


def test_the_papers_size_is_a_quarter_of_twelve_layers() -> None:
    with torch.device("meta"):
        mine, deep = AlgoFormer(AlgoFormerConfig()), AlgoFormer(AlgoFormerConfig(pre=12, loop=0, post=0))
    block = 12 * 256**2 + 13 * 256  # GPT-2's
    rest = 20 * 256 + 256 + 82 * 256 + 2 * 256 + 256 + 1
    assert sum(p.numel() for p in mine.parameters()) == 3 * block + rest
    assert sum(p.numel() for p in deep.parameters()) == 12 * block + rest


def test_prompts_and_least_squares() -> None:
    x, y = torch.arange(6.0).view(1, 2, 3), torch.tensor([[7.0, 8.0]])
    assert prompt(x, y)[0].tolist() == [[0, 1, 2], [7, 0, 0], [3, 4, 5], [8, 0, 0]]
    task = Representation.drawn(3, 8, 3, seed=0)
    x, y = task.draw(50, 9, torch.Generator().manual_seed(0))
    error = (least_squares(task.features(x), y, 1e-9) - y).square().mean(0)
    assert error[0] > 0.01 and error[-1] < 1e-5 * y.square().mean()
    literal = x[0, :5].double(), y[0, :5].double()
    weights = torch.linalg.lstsq(literal[0], literal[1][:, None]).solution[:, 0]
    assert torch.allclose(
        least_squares(x[:1], y[:1], 1e-12)[0, 5].double(), weights @ x[0, 5].double(), atol=1e-4
    )


def test_what_does_not_fit_is_refused() -> None:
    for changed, said in (
        ({"window": 7}, "window is 1 to all 6"), ({"inject": False}, "without injection"),
        ({"pre": 0, "loop": 0, "post": 0}, "no layers"), ({"positions": "never"}, "'once' or in 'each'"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            made(**changed)
    with pytest.raises(UserError, match="more than the 12"):
        made()(drawn(13))
    with pytest.raises(UserError, match="does not fit 3 iterations"):
        made().every(drawn(), iterations=3, window=4)
    with pytest.raises(UserError, match="are not"):
        prompt(torch.zeros(1, 2, 3), torch.zeros(1, 3))
