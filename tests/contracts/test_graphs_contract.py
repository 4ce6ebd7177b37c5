"""Every mixer and feed-forward as a graph for other runtimes: right at another batch and length, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_mixers_contract import LAYERS, MIXER_OPTIONS, WIDTH, WORDS, _kind, model, tokens
from torch import Tensor, nn

from lightformers.errors import ModelError, reason
from lightformers.models.language.encoder import Encoder, EncoderConfig

#: What runs in torch alone: recurrences, and attention whose shape of work depends on the length.
REFUSED = {
    "aaren", "bigbird", "block-attention", "combiner", "combiner-axial", "combiner-logsparse", "deltanet", "linear-attention",
    "linformer", "local", "longformer", "mamba", "mamba2", "memory", "mlgru", "reformer", "sinkhorn",
    "sparse", "synthesizer",
}  # fmt: skip
CASES = [("decoder", name) for name in LAYERS] + [("encoder", name) for name in MIXER_OPTIONS]


class Outputs(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.inner(input_ids=input_ids, attention_mask=attention_mask)[0]  # type: ignore[no-any-return]


def built(where: str, name: str) -> Outputs:
    if where == "decoder":
        return Outputs(model(name)).eval()
    torch.manual_seed(0)
    row = {"mixer": {"kind": _kind(name), **MIXER_OPTIONS[name]}}
    made = Encoder(EncoderConfig(WORDS, WIDTH, [row] * 2, max_position_embeddings=48))
    with torch.no_grad():
        made.embedding.weight.mul_(50)
        made.train()(tokens(2, 16))  # what is learned from a first batch (the hash of ecoformer)
    return Outputs(made).eval()


def batch(rows: int, n: int, padded: bool = True) -> tuple[Tensor, Tensor]:
    ids, mask = tokens(rows, n), torch.ones(rows, n, dtype=torch.long)
    for row in range(1, rows if padded else 0):
        mask[row, n - row :] = 0
    return ids, mask


def traced(module: nn.Module, inputs: tuple[Tensor, Tensor]) -> Any:
    return torch.jit.trace(module, inputs, check_trace=False)


def exported(module: nn.Module, inputs: tuple[Tensor, Tensor]) -> Any:
    moving = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    return torch.export.export(module, inputs, dynamic_shapes=(moving, moving), strict=False).module()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # the tracer's, of every comparison of shapes
@pytest.mark.parametrize("written", [traced, pytest.param(exported, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("where", "name"), CASES)
def test_a_graph_holds_at_every_size_or_is_refused(where: str, name: str, written: Any) -> None:
    module, other = built(where, name), batch(3, 17)
    module(*batch(4, 9))  # tables of positions and the like exist
    try:
        graph = written(module, batch(4, 9, padded=False))
    except Exception as error:
        assert _kind(name) in REFUSED and "one length only" in reason(error), error
        return
    assert _kind(name) not in REFUSED
    there = other[1].bool()
    torch.testing.assert_close(graph(*other)[there], module(*other)[there], atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_the_refusal_says_what_to_do() -> None:
    with pytest.raises(ModelError, match="mamba would hold for one length only: run it in torch"):
        traced(built("decoder", "mamba"), batch(2, 9))
