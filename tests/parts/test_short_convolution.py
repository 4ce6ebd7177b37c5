"""The short causal convolution: the contract of mixers, and torch's own convolution."""

from __future__ import annotations

import pytest
import torch

from lightformers.errors import UserError
from lightformers.parts.mixers import places, starts
from lightformers.parts.short_convolution import ShortConvolution
from mixer_contract import check_causal, inputs


@pytest.mark.parametrize("kernel", [2, 3, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_it_keeps_the_contract_of_mixers(kernel: int, bias: bool) -> None:
    check_causal(ShortConvolution(6, kernel, bias), 6)


def test_it_is_the_padded_convolution_of_torch() -> None:
    mixer, x = ShortConvolution(6, 4).double(), inputs(6, 11)
    wanted = torch.nn.functional.conv1d(x.mT, mixer.weight, mixer.bias, padding=3, groups=6)[..., :11].mT
    torch.testing.assert_close(mixer(x), wanted)


def test_documents_start_and_count_anew() -> None:
    mask = torch.tensor([[0, 1, 1, 2, 2, 2, 0, 0], [1, 1, 0, 1, 1, 3, 3, 3]])
    assert starts(mask).tolist()[0] == [False, True, False, True, False, False, False, False]
    assert places(mask).tolist() == [[0, 0, 1, 0, 1, 2, 0, 0], [0, 1, 0, 0, 1, 0, 1, 2]]


def test_a_kernel_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="at least 1"):
        ShortConvolution(6, 0)
