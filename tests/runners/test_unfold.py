from __future__ import annotations

import pytest
import torch

from lightformers.runners.unfold import gathered, without_unfold


@pytest.mark.parametrize("dimension", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize(("size", "step"), [(1, 1), (2, 2), (3, 2), (4, 1), (2, 5)])
def test_it_is_unfold(dimension: int, size: int, step: int) -> None:
    x = torch.randn(4, 5, 6)
    torch.testing.assert_close(gathered(x, dimension, size, step), x.unfold(dimension, size, step))


def test_it_stands_in_and_goes_again() -> None:
    x, original = torch.randn(2, 9), torch.Tensor.unfold
    with without_unfold():
        assert torch.Tensor.unfold is gathered
        inside = x.unfold(-1, 4, 3)
    assert torch.Tensor.unfold is original
    torch.testing.assert_close(inside, x.unfold(-1, 4, 3))
    with pytest.raises(RuntimeError), without_unfold():
        raise RuntimeError
    assert torch.Tensor.unfold is original
