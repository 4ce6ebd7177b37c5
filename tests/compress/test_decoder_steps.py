"""Steps on our own decoder: shortened, pruned, distilled, exported, opened again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import steps_world as world
import torch

import lightformers as lf
from lightformers import compress, export, runners
from lightformers.bundle import Bundle
from lightformers.export.reload import _forms
from lightformers.models.language.decoder import Decoder, DecoderConfig

ATTENTION = {"mixer": {"kind": "attention", "heads": 4}, "ffn": {"kind": "swiglu", "hidden": 64}}
MAMBA = {"mixer": {"kind": "mamba", "state": 4}, "ffn": {"kind": "mlp", "hidden": 64}}


def bundle(*layers: dict, **fields: Any) -> Bundle:
    words = world.tokenizer("bpe")
    torch.manual_seed(0)
    ids = {f"{name}_token_id": i for i, name in enumerate(("pad", "bos", "eos"))}
    model = Decoder(DecoderConfig(len(words), 32, layers, **ids, **fields)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1 and "A_log" not in name:
                p.normal_(0, 0.15)
    return Bundle(model, words, "causal-lm", max_length=48)


@pytest.mark.parametrize(
    "layers", [[ATTENTION] * 4, [MAMBA, ATTENTION, MAMBA, ATTENTION]], ids=["plain", "hybrid"]
)
def test_a_recipe_of_cuts(layers: list[dict], tmp_path: Path) -> None:
    mine = bundle(*layers)
    steps = [compress.DropBlocks(keep=3, examples=8), compress.PruneHeads(keep=0.5, examples=8),
             compress.PruneChannels(keep=0.5, examples=8)]  # fmt: skip
    small = lf.Recipe(steps).apply(mine, world.task())
    assert len(small.model.layers) == 3 == len(small.model.config.layers) and len(mine.model.layers) == 4
    rows = small.model.config.layers
    assert all(row["ffn"]["hidden"] == 32 for row in rows)
    heads = [row["mixer"]["heads"] for row in rows if row["mixer"]["kind"] == "attention"]
    assert heads and set(heads) == {2}
    assert export.save(small, tmp_path) == []
    again = lf.load(str(tmp_path))
    assert torch.equal(world.outputs(again), world.outputs(small))
    assert _forms(tmp_path, [{"text": "a"}])[0][0] == "lightformers"


def test_vocabulary_is_cut_with_its_tokenizer() -> None:
    mine = bundle(ATTENTION, MAMBA)
    step = compress.TrimVocabulary()
    small = lf.Recipe([step]).apply(mine, world.task())
    assert small.model.config.vocab_size == len(small.processor) < len(mine.processor)
    assert small.model.embedding.num_embeddings == small.model.config.vocab_size


def test_a_shorter_decoder_learns_from_the_longer_one() -> None:
    mine = bundle(*[ATTENTION] * 3)
    rows = [{"text": text} for text in world.TEXTS]
    task = lf.tasks.CausalLM({"train": rows[:60], "verify": rows[60:]})
    steps = [compress.DropBlocks(blocks=(0, 2)), compress.Recover(epochs=6, lr=5e-3, max_tokens=512)]
    before, after = (lf.Recipe(some).apply(mine, task) for some in (steps[:1], steps))
    target = world.outputs(mine)
    far, near = ((world.outputs(b) - target).square().mean() for b in (before, after))
    assert near < 0.9 * far


@pytest.mark.parametrize("positions", [None, "learned"])
def test_openvino_runs_it(positions: str | None) -> None:
    """Padding on the right and on the left, other lengths than the one that was looked at for the graph."""
    mine = bundle(ATTENTION, ATTENTION, positions=positions, max_position_embeddings=64)
    rows = [{"text": text} for text in world.TEXTS[:12]]

    def outputs(named: dict, batch: object) -> list:
        return list(named["logits"].float())

    for side in ("right", "left"):
        mine.processor.padding_side = side
        plain, other = (
            runners.build(mine, lf.Deploy(runtime=name, precision="fp32", batch_size=4), rows[:4])(
                rows, outputs
            )
            for name in ("torch", "openvino")
        )
        masks = [mine.collate(rows[i : i + 4]).inputs["attention_mask"].bool() for i in range(0, 12, 4)]
        for a, b, real in zip(plain, other, [row for mask in masks for row in mask]):
            assert (torch.as_tensor(a) - torch.as_tensor(b))[real].abs().max() < 1e-3
